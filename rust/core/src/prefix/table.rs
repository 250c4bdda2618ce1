//! The directory itself, without a lock: entries by identity, and what each step does to them.

use std::collections::HashSet;
use std::fmt;

use super::decisions::{DecisionLog, Verdict};
use super::entry::{Entry, Lineage, LowerTier, LowerTiers, Place};
use super::identity_map::{IdentityMap, first_bytes};
use super::leases::LeaseRecord;
use super::own_order::OwnOrder;
use super::owners::OwnerId;
use super::slab::Slab;
use crate::error::{Result, check_range};
use crate::eviction::{EvictionPolicy, Lru, MAX_KEYS};
use crate::page::{PageAllocator, PageHandle};
use crate::tier::PageIdentity;

const NO_ENTRY: u32 = u32::MAX;

/// How large a directory may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefixLimits {
    /// Pages that it may know, in all tiers together.
    pub max_pages: u32,
    /// Bytes that one page takes of the host pool.
    pub page_bytes: u64,
    /// Decisions that it keeps for ranks that are behind.
    pub max_decisions: usize,
}

/// What a directory holds at one moment, and has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PrefixStats {
    /// Pages known, in all tiers.
    pub pages: u64,
    /// Of these: in the host pool.
    pub resident: u64,
    /// In the host pool, and being copied to a lower tier.
    pub demoting: u64,
    /// In lower tiers only.
    pub lower: u64,
    /// Being copied to the host pool.
    pub promoting: u64,
    /// Leases.
    pub leases: u64,
    /// Pages of all leases; a page counts once for each.
    pub pins: u64,
    /// Pages of all resting sequences; a page counts once for each.
    pub holds: u64,
    /// Owners that may hold leases.
    pub owners: u64,
    /// Number of the newest decision.
    pub epoch: u64,
    /// Pages that a match found, since the start.
    pub hits: u64,
    /// Pages that a match was asked for and did not find, though they may have been found elsewhere
    /// then: those are hits, too.
    pub misses: u64,
}

/// Pages, leases, owners and tenants of one host pool. Whoever owns the pool keeps it beside the
/// pool, under the same lock; see [`Shelf`](super::Shelf).
pub struct PrefixTable {
    pub(super) entries: Slab<Entry>,
    pub(super) by_identity: IdentityMap,
    by_host: Vec<u32>, // entry of each host page; NO_ENTRY = it has none
    orphans: Vec<(PageIdentity, LowerTiers)>,
    pub(super) leases: Slab<LeaseRecord>,
    pub(super) next_deadline_ms: u64, // no lease ends before
    pub(super) owners: HashSet<OwnerId>,
    pub(super) host_order: Box<dyn EvictionPolicy>, // of the pages that have a host page
    pub(super) own_order: OwnOrder,                 // of the same, by tenant
    pub(super) lower_order: Lru,                    // of the pages that lower tiers alone have
    pub(super) log: DecisionLog,
    pub(super) counters: Counters,
    pub(super) limits: PrefixLimits,
}

/// Counts since the start.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) hits: u64,
    pub(super) misses: u64,
}

impl PrefixTable {
    /// An empty directory; `make_order` makes the eviction policy for so many keys.
    pub fn new(
        limits: PrefixLimits,
        make_order: impl FnOnce(u32) -> Result<Box<dyn EvictionPolicy>>,
    ) -> Result<Self> {
        check_range("max_pages", limits.max_pages, 1, MAX_KEYS)?;
        check_range("page_bytes", limits.page_bytes, 1, u64::MAX)?;
        check_range("max_decisions", limits.max_decisions, 1, 1 << 24)?;
        Ok(Self {
            entries: Slab::new("prefix page", limits.max_pages, limits.max_pages),
            by_identity: IdentityMap::new(limits.max_pages),
            by_host: Vec::new(),
            orphans: Vec::new(),
            leases: Slab::new("prefix lease", 0, u32::MAX),
            next_deadline_ms: u64::MAX,
            owners: HashSet::new(),
            host_order: make_order(limits.max_pages)?,
            own_order: OwnOrder::new(limits.max_pages),
            lower_order: Lru::new(limits.max_pages)?,
            log: DecisionLog::new(limits.max_decisions),
            counters: Counters::default(),
            limits,
        })
    }

    pub(super) fn find(&self, identity: &PageIdentity) -> Option<u32> {
        self.by_identity.find(identity, &self.entries)
    }

    /// The entry whose page lies in this host page.
    pub(super) fn at_host(&self, host: PageHandle) -> Option<u32> {
        let entry = self.by_host.get(host.page() as usize).copied()?;
        let lies_there = |&entry: &u32| self.entries.at(entry).host_page() == Some(host);
        Some(entry).filter(|&entry| entry != NO_ENTRY).filter(lies_there)
    }

    /// Notes which host page an entry has from now on, if it has one.
    pub(super) fn note_host(&mut self, entry: u32) {
        let Some(host) = self.entries.at(entry).host_page() else { return };
        let at = host.page() as usize;
        if self.by_host.len() <= at {
            self.by_host.resize(at + 1, NO_ENTRY);
        }
        self.by_host[at] = entry;
    }

    /// Copies in lower tiers are not wanted any more.
    pub(super) fn note_orphan(&mut self, identity: PageIdentity, lower: LowerTiers) {
        if !lower.is_empty() {
            self.orphans.push((identity, lower));
        }
    }

    /// Copies in lower tiers that are not wanted any more, since the last call.
    pub(crate) fn take_orphans(&mut self) -> Vec<(PageIdentity, LowerTiers)> {
        std::mem::take(&mut self.orphans)
    }

    /// Counts a use of the page.
    pub(super) fn touch(&mut self, entry: u32) {
        let page = self.entries.at(entry);
        let touched = match page.host_page() {
            Some(_) => {
                if let Some(tenant) = page.tenant {
                    self.own_order.unlink(tenant, entry);
                    self.own_order.push(tenant, entry, None);
                }
                self.host_order.touched(entry)
            }
            None if page.is_lost() => Ok(()),
            None => self.lower_order.touched(entry),
        };
        debug_assert!(touched.is_ok(), "{touched:?}");
    }

    /// Links a page to the page before it, if that is held.
    pub(super) fn link(&mut self, entry: u32) {
        let page = self.entries.at(entry);
        let is_linked = page.parent_key.is_some_and(|link| self.entries.get(link.key()).is_ok());
        let Some(parent) = self.find(&page.parent).filter(|_| !is_linked) else { return };
        self.entries.at_mut(entry).parent_key = Lineage::new(self.entries.key_of(parent));
        self.entries.at_mut(parent).num_children += 1;
    }

    /// Lets the eviction policy have a page that has a host page from now on.
    pub(super) fn order_in_host(&mut self, entry: u32) -> Result<()> {
        let page = self.entries.at(entry);
        let parent = page.parent_key.filter(|link| self.entries.get(link.key()).is_ok());
        let parent = parent.map(|link| link.key().entry);
        let parent = parent.filter(|&parent| self.host_order.holds(parent));
        self.host_order.inserted(entry, parent, first_bytes(&page.identity))?;
        let is_own = |&parent: &u32| self.entries.at(parent).tenant == page.tenant;
        if let Some(tenant) = page.tenant {
            self.own_order.push(tenant, entry, parent.filter(is_own));
        }
        Ok(())
    }

    /// Takes a page out of the eviction policy.
    pub(super) fn unorder_in_host(&mut self, entry: u32) -> Result<()> {
        if let Some(tenant) = self.entries.at(entry).tenant {
            self.own_order.unlink(tenant, entry);
        }
        self.host_order.removed(entry)
    }

    /// Gives up the host page of a page that no policy has now; without a copy below it is gone.
    pub(super) fn leave_host(&mut self, pool: &mut PageAllocator, entry: u32) -> Result<()> {
        let page = self.entries.at_mut(entry);
        if let Some(host) = page.host_page() {
            page.place = Place::Lower;
            self.by_host[host.page() as usize] = NO_ENTRY;
            pool.release(host)?;
        }
        self.settle_below(entry)
    }

    /// Orders a page that is in lower tiers only, or forgets it if they have none.
    pub(super) fn settle_below(&mut self, entry: u32) -> Result<()> {
        let page = self.entries.at(entry);
        if !page.is_lost() {
            return self.lower_order.inserted(entry, None, first_bytes(&page.identity));
        }
        if !page.is_kept() {
            self.forget(entry);
        }
        Ok(())
    }

    /// Forgets a page that no policy, no lease and no host page belongs to.
    pub(super) fn forget(&mut self, entry: u32) {
        self.by_identity.remove(entry, &self.entries);
        let key = self.entries.key_of(entry);
        let Ok(page) = self.entries.remove(key) else { return };
        // another host may want what a shared store has; files are this directory's own
        self.note_orphan(page.identity, page.lower.without(LowerTier::Remote));
        let parent = page.parent_key.map(Lineage::key);
        if let Some(Ok(parent)) = parent.map(|key| self.entries.get_mut(key)) {
            parent.num_children -= 1;
        }
    }

    pub(super) fn decide(&mut self, entry: u32, verdict: Verdict) {
        self.log.note(self.entries.at(entry).identity, verdict);
    }

    pub(crate) fn stats(&self) -> PrefixStats {
        let mut stats = PrefixStats {
            pages: self.entries.len() as u64,
            leases: self.leases.len() as u64,
            owners: self.owners.len() as u64,
            epoch: self.log.epoch(),
            hits: self.counters.hits,
            misses: self.counters.misses,
            ..PrefixStats::default()
        };
        for (_, page) in self.entries.iter() {
            stats.pins += u64::from(page.num_pins);
            stats.holds += u64::from(page.num_holds);
            match page.place {
                Place::Resident(_) => stats.resident += 1,
                Place::Demoting(_) => stats.demoting += 1,
                Place::Lower => stats.lower += 1,
                Place::Promoting(_) => stats.promoting += 1,
            }
        }
        stats
    }
}

impl fmt::Debug for PrefixTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PrefixTable").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
