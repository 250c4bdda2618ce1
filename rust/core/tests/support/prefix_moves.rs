//! Pages of a run that move between tiers, or go.

use hisparse_core::prefix::{Held, LowerTier, LowerTiers};
use hisparse_core::tier::PageIdentity;

use crate::prefix_run::{Down, Page, Place, Run};

impl Run {
    pub(crate) fn evict(&mut self, count: usize) {
        let idle = self.idle(None, &[]).len();
        let evicted = self.directory.evict(count).expect("no lock is poisoned");
        self.check_chosen(evicted, count.min(idle));
        self.follow(&[]);
    }

    pub(crate) fn demote(&mut self, count: usize) {
        let idle = self.idle(None, &[]).len();
        let pressure = self.directory.demote(count).expect("no lock is poisoned");
        self.check_chosen(pressure.freed + pressure.demotions.len(), count.min(idle));
        self.follow(&[]);
        self.down.extend(pressure.demotions.into_iter().map(Down::Started));
    }

    /// Moves a demotion on by one step, or drops it.
    pub(crate) fn step_down(&mut self, pick: usize, tier: Option<LowerTier>) {
        let step = self.down.swap_remove(pick);
        let (identity, number) = match &step {
            Down::Started(guard) => (guard.header().identity, guard.page()),
            Down::Enqueued(guard) => (guard.header().identity, guard.page()),
        };
        match (step, tier) {
            (Down::Started(guard), Some(_)) => self.down.push(Down::Enqueued(guard.enqueued())),
            (Down::Enqueued(guard), Some(tier)) => {
                let is_used = self.is_used(&identity, number);
                let held = guard.completed(tier).expect("a demotion in motion");
                let page = self.pages.get_mut(&identity).expect("pages in motion stay");
                page.place = Place::Resident(number);
                page.lower = page.lower.with(tier);
                let lower = page.lower;
                self.follow(&[]);
                assert_eq!(held, if is_used { Held::Host(number) } else { Held::Lower(lower) });
            }
            (step, None) => {
                drop(step);
                self.page(&identity).place = Place::Resident(number);
            }
        }
    }

    pub(crate) fn promote(&mut self, lease: usize, first: usize, end: usize) {
        let pages = self.leases[lease].pages.clone();
        let (first, end) = (first.min(pages.len()), end.clamp(first, pages.len().max(first)));
        let Some(asked) = pages.get(first..end) else { return };
        let is_below = |page: &&PageIdentity| {
            self.pages[*page].place == Place::Lower && !self.pages[*page].lower.is_empty()
        };
        let below: Vec<PageIdentity> = asked.iter().filter(is_below).copied().collect();
        let tenant = pages.first().map_or(0, |page| self.pages[page].tenant);
        let refusal = self.expected_refusal(tenant, below.len(), &[]);
        match self.leases[lease].lease.promote(first..end, self.now_ms) {
            Err(error) => self.check_refusal(&error, refusal.as_ref()),
            Ok(begun) => {
                assert!(refusal.is_none() && begun.len() == below.len());
                self.follow(&[]);
                for guard in begun {
                    assert!(below.contains(&guard.header().identity));
                    self.page(&guard.header().identity).place = Place::Promoting(guard.page());
                    self.up.push(guard);
                }
            }
        }
    }

    pub(crate) fn step_up(&mut self, pick: usize, completes: bool) {
        let guard = self.up.swap_remove(pick);
        let (identity, number) = (guard.header().identity, guard.page());
        if completes {
            let held = guard.enqueued().completed().expect("a promotion in motion");
            assert_eq!(held, Held::Host(number));
            self.page(&identity).place = Place::Resident(number);
        } else {
            drop(guard);
            self.page(&identity).place = Place::Lower;
            self.forget_lost(&[identity]);
        }
    }

    pub(crate) fn found_below(&mut self, chain: usize, at: usize, tier: LowerTier) {
        let (tenant, header) = (self.chains[chain].0, self.chains[chain].1[at]);
        let known = self.pages.get(&header.identity).copied();
        let is_full = known.is_none() && self.is_full();
        if let Err(error) = self.directory.found_below(&header, tier, Some(self.tenants[tenant])) {
            return self.check_no_entry(&error, is_full);
        }
        assert!(!is_full);
        self.follow(&[]);
        let new = Page { place: Place::Lower, lower: LowerTiers::NONE, tenant };
        let page = self.pages.entry(header.identity).or_insert(new);
        page.lower = page.lower.with(tier);
    }

    pub(crate) fn lost_below(&mut self, chain: usize, at: usize, tier: LowerTier) {
        let identity = self.chains[chain].1[at].identity;
        let had = self.pages.get(&identity).is_some_and(|page| page.lower.has(tier));
        assert_eq!(self.directory.lost_below(&identity, tier), Ok(had));
        if had {
            let page = self.page(&identity);
            page.lower = page.lower.without(tier);
            self.forget_lost(&[identity]);
        }
    }
}
