//! What a movement does to the table: begun, completed, or cancelled with all given back.

use std::collections::HashSet;
use std::ops::Range;

use super::decisions::Verdict;
use super::entry::{Held, LowerTier, Place};
use super::leases::LeaseKey;
use super::slab::SlabKey;
use super::table::PrefixTable;
use crate::error::{Error, Result};
use crate::eviction::EvictionPolicy;
use crate::page::{PageAllocator, PageHandle};
use crate::tier::PageHeader;

/// Which way a page moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Down,
    Up,
}

impl PrefixTable {
    /// Takes a host page for every page of the lease in `range` that lower tiers alone have: for
    /// all of them, or for none. Pages that are there or on their way need nothing.
    pub(super) fn begin_promotions(
        &mut self,
        pool: &mut PageAllocator,
        lease: LeaseKey,
        range: Range<usize>,
        now_ms: u64,
    ) -> Result<Vec<SlabKey>> {
        let mut below = self.leased_entries(pool, lease, range, now_ms)?.to_vec();
        let mut seen = HashSet::new(); // a chain may name a page twice
        below.retain(|&entry| {
            let page = self.entries.at(entry);
            page.place == Place::Lower && !page.is_lost() && seen.insert(entry)
        });
        let tenant = self.lease_tenant(lease)?;
        let hosts = self.take(pool, tenant, below.len())?;
        let begin = |(entry, host)| self.begin_promotion(entry, host);
        below.into_iter().zip(hosts).map(begin).collect()
    }

    /// What a tier has to know of a page in motion, and its host page.
    pub(super) fn in_motion(&self, key: SlabKey) -> Result<(PageHeader, u32)> {
        let page = self.entries.get(key)?;
        Ok((page.header(), page.host_page().map_or(0, PageHandle::page)))
    }

    /// `tier` has the copy. The host page goes unless somebody uses it by now.
    pub(super) fn complete_demotion(
        &mut self,
        pool: &mut PageAllocator,
        key: SlabKey,
        tier: LowerTier,
    ) -> Result<Held> {
        let host = self.moving_host(key, Direction::Down)?;
        let page = self.entries.get_mut(key)?;
        page.lower = page.lower.with(tier);
        page.place = Place::Resident(host);
        if page.num_pins == 0 && pool.num_refs(host)? == 1 {
            self.unorder_in_host(key.entry)?;
            self.decide(key.entry, Verdict::Leave(host.page()));
            self.leave_host(pool, key.entry)?;
        }
        let held = self.entries.get(key)?.held();
        self.let_go(pool, key.entry)?;
        Ok(held)
    }

    /// The host page has all rows: leases may read it.
    pub(super) fn complete_promotion(
        &mut self,
        pool: &mut PageAllocator,
        key: SlabKey,
    ) -> Result<Held> {
        let host = self.moving_host(key, Direction::Up)?;
        self.entries.get_mut(key)?.place = Place::Resident(host);
        self.let_go(pool, key.entry)?;
        Ok(Held::Host(host.page()))
    }

    /// Makes the page what it was before the movement.
    pub(super) fn cancel(
        &mut self,
        pool: &mut PageAllocator,
        key: SlabKey,
        direction: Direction,
    ) -> Result<()> {
        let host = self.moving_host(key, direction)?;
        if direction == Direction::Up {
            self.unorder_in_host(key.entry)?;
            self.leave_host(pool, key.entry)?;
        } else {
            self.entries.get_mut(key)?.place = Place::Resident(host);
        }
        if self.entries.get(key).is_ok() { self.let_go(pool, key.entry) } else { Ok(()) }
    }

    fn begin_promotion(&mut self, entry: u32, host: PageHandle) -> Result<SlabKey> {
        self.lower_order.removed(entry)?;
        self.entries.at_mut(entry).place = Place::Promoting(host);
        self.note_host(entry);
        self.order_in_host(entry)?;
        Ok(self.entries.key_of(entry))
    }

    /// The host page of a page that moves that way.
    fn moving_host(&self, key: SlabKey, direction: Direction) -> Result<PageHandle> {
        match (self.entries.get(key)?.place, direction) {
            (Place::Demoting(host), Direction::Down) | (Place::Promoting(host), Direction::Up) => {
                Ok(host)
            }
            _ => Err(Error::WrongState { what: "movements of a page", found: 0, needed: 1 }),
        }
    }
}
