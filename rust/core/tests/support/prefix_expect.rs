//! What the model expects of the directory, and whether the directory agrees.

use hisparse_core::prefix::{Held, LowerTiers, OwnerId, Verdict};
use hisparse_core::tier::{PageHeader, PageIdentity};
use hisparse_core::{Error, ErrorKind};

use crate::prefix_run::{Holding, MAX_PAGES, NUM_PAGES, Page, Place, Run};

impl Run {
    /// Forgets those of the pages that nothing has and no lease keeps.
    pub(crate) fn forget_lost(&mut self, pages: &[PageIdentity]) {
        for identity in pages {
            let Some(page) = self.pages.get(identity) else { continue };
            let is_lost = page.place == Place::Lower && page.lower.is_empty();
            if is_lost && !self.is_pinned(identity) {
                self.pages.remove(identity);
            }
        }
    }

    pub(crate) fn pick_owner(&self, pick: usize) -> Option<OwnerId> {
        self.owners.keys().nth(pick % self.owners.len().max(1)).copied()
    }

    pub(crate) fn page(&mut self, identity: &PageIdentity) -> &mut Page {
        self.pages.get_mut(identity).expect("the model knows it")
    }

    /// What the lease says, checked.
    pub(crate) fn lease_pages(&self, lease: usize) -> Vec<Held> {
        let leased = &self.leases[lease];
        let found = leased.lease.pages(self.now_ms).expect("swept whenever time passes");
        let expected: Vec<Held> = leased.pages.iter().map(|page| held(&self.pages[page])).collect();
        assert_eq!(found, expected);
        found
    }

    pub(crate) fn expected_run(&self, headers: &[PageHeader]) -> Vec<Held> {
        let pages = headers.iter().map_while(|header| self.pages.get(&header.identity));
        pages.map(held).take_while(|held| *held != Held::Lower(LowerTiers::NONE)).collect()
    }

    /// Why a take of `need` pages must fail, if it must.
    pub(crate) fn expected_refusal(
        &self,
        tenant: usize,
        need: usize,
        pinned: &[PageIdentity],
    ) -> Option<Error> {
        let (need_pages, used) = (need as u64, self.used(tenant));
        let (quota, own_idle) = (self.quotas[tenant], self.idle(Some(tenant), pinned).len() as u64);
        if need_pages > quota.saturating_sub(used) + own_idle {
            return Some(Error::ShareFull {
                tenant: self.tenants[tenant].number(),
                need: need_pages,
                free: quota.saturating_sub(used),
                quota,
            });
        }
        let total = u64::from(NUM_PAGES);
        let free = total - self.used(0) - self.used(1);
        let idle = self.idle(None, pinned).len() as u64;
        (need_pages > free + idle).then_some(Error::HostPoolFull { need: need_pages, free, total })
    }

    /// A policy that spares the pages before a page in use may find fewer than are idle.
    pub(crate) fn check_refusal(&self, error: &Error, expected: Option<&Error>) {
        let is_full = matches!(error.kind(), ErrorKind::TierFull | ErrorKind::HostPoolFull);
        assert!(Some(error) == expected || (is_full && !self.takes_any_idle), "{error}");
    }

    pub(crate) fn check_no_entry(&self, error: &Error, is_full: bool) {
        assert_eq!(error.kind(), ErrorKind::TierFull);
        let has_many = self.pages.len() >= MAX_PAGES as usize;
        assert!(is_full || (has_many && !self.takes_any_idle), "{error}");
    }

    pub(crate) fn check_chosen(&self, chosen: usize, idle: usize) {
        assert!(chosen <= idle && (chosen == idle || !self.takes_any_idle), "{chosen} of {idle}");
    }

    pub(crate) fn used(&self, tenant: usize) -> u64 {
        let pages = self.pages.values().filter(|page| page.tenant == tenant);
        let in_directory = pages.filter(|page| page.place != Place::Lower).count();
        let holdings = self.holdings.iter().filter(|held| held.tenant == tenant);
        let taken = holdings.flat_map(|held| &held.pages).filter(|(_, is_own)| *is_own).count();
        (in_directory + taken) as u64
    }

    /// Pages that the policy may choose.
    pub(crate) fn idle(&self, tenant: Option<usize>, pinned: &[PageIdentity]) -> Vec<PageIdentity> {
        let is_idle = |(identity, page): &(&PageIdentity, &Page)| {
            let Place::Resident(host) = page.place else { return false };
            tenant.is_none_or(|tenant| page.tenant == tenant)
                && !pinned.contains(identity)
                && !self.is_used(identity, host)
        };
        self.pages.iter().filter(is_idle).map(|(identity, _)| *identity).collect()
    }

    pub(crate) fn is_used(&self, identity: &PageIdentity, host: u32) -> bool {
        let is_held = |held: &Holding| held.pages.contains(&(host, false));
        self.is_pinned(identity) || self.holdings.iter().any(is_held)
    }

    pub(crate) fn is_pinned(&self, identity: &PageIdentity) -> bool {
        self.leases.iter().any(|leased| leased.pages.contains(identity))
    }

    /// Whether every entry is in use, and none may be forgotten.
    pub(crate) fn is_full(&self) -> bool {
        let may_go = |(identity, page): (&PageIdentity, &Page)| match page.place {
            Place::Lower => !self.is_pinned(identity),
            Place::Resident(host) => !self.is_used(identity, host),
            Place::Demoting(_) | Place::Promoting(_) => false,
        };
        self.pages.len() >= MAX_PAGES as usize && !self.pages.iter().any(may_go)
    }

    /// Applies the decisions that the directory has made, as another rank would; each must be one
    /// that it was free to make.
    pub(crate) fn follow(&mut self, pinned: &[PageIdentity]) {
        for decision in self.directory.decisions_since(self.epoch).expect("kept long enough") {
            assert_eq!(decision.epoch, self.epoch + 1);
            self.epoch = decision.epoch;
            let identity = decision.identity;
            assert!(!self.is_pinned(&identity) && !pinned.contains(&identity), "pages in use stay");
            let (place, lower) = (self.page(&identity).place, self.page(&identity).lower);
            match decision.verdict {
                Verdict::Demote(host) => {
                    assert_eq!((place, lower.is_empty()), (Place::Resident(host), true));
                    self.page(&identity).place = Place::Demoting(host);
                }
                Verdict::Leave(host) => {
                    assert_eq!((place, lower.is_empty()), (Place::Resident(host), false));
                    assert!(!self.is_used(&identity, host), "pages in use stay");
                    self.page(&identity).place = Place::Lower;
                }
                Verdict::Forget(host) => {
                    assert_eq!(place, Place::Resident(host));
                    assert!(!self.is_used(&identity, host), "pages in use stay");
                    self.pages.remove(&identity);
                }
                Verdict::ForgetLower => {
                    assert_eq!(place, Place::Lower);
                    self.pages.remove(&identity);
                }
            }
        }
    }

    /// The directory answers everything as the model does.
    pub(crate) fn check_same(&mut self) {
        self.directory.check_integrity().expect("every step leaves a sound directory");
        let stats = self.directory.stats().expect("no lock is poisoned");
        let count =
            |is: fn(&Place) -> bool| self.pages.values().filter(|page| is(&page.place)).count();
        assert_eq!(stats.pages, self.pages.len() as u64);
        assert_eq!(stats.resident, count(|place| matches!(place, Place::Resident(_))) as u64);
        assert_eq!(stats.demoting, count(|place| matches!(place, Place::Demoting(_))) as u64);
        assert_eq!(stats.promoting, count(|place| matches!(place, Place::Promoting(_))) as u64);
        let pins: usize = self.leases.iter().map(|leased| leased.pages.len()).sum();
        assert_eq!((stats.pins, stats.leases), (pins as u64, self.leases.len() as u64));
        assert_eq!((stats.epoch, stats.owners), (self.epoch, self.owners.len() as u64));
        for (tenant, id) in self.tenants.into_iter().enumerate() {
            let usage = self.directory.tenant_usage(id).expect("a known tenant");
            assert_eq!(usage.used_pages, self.used(tenant));
            assert!(usage.used_pages <= usage.quota_pages, "over quota: {usage:?}");
        }
        (0..self.leases.len()).for_each(|lease| drop(self.lease_pages(lease)));
    }

    /// Ends everything; the whole pool is free again.
    pub(crate) fn finish(mut self) {
        self.leases.clear();
        self.holdings.clear();
        self.down.clear();
        self.up.clear();
        let stats = self.directory.stats().expect("no lock is poisoned");
        assert_eq!((stats.leases, stats.pins, stats.demoting, stats.promoting), (0, 0, 0, 0));
        self.directory.evict(MAX_PAGES as usize).expect("no lock is poisoned");
        for tenant in self.tenants {
            let usage = self.directory.tenant_usage(tenant).expect("a known tenant");
            assert_eq!(usage.used_pages, 0, "pages leaked");
        }
        let whole = self.directory.set_quota(self.tenants[0], NUM_PAGES.into());
        whole.expect("a known tenant");
        let all = self.directory.take(self.tenants[0], NUM_PAGES as usize);
        all.expect("the whole pool is free").release().expect("just taken");
    }
}

fn held(page: &Page) -> Held {
    match page.place {
        Place::Resident(host) | Place::Demoting(host) => Held::Host(host),
        Place::Promoting(host) => Held::Arriving(host),
        Place::Lower => Held::Lower(page.lower),
    }
}
