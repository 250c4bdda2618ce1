//! The leases of a table: which pages each pins, for whom, until when.

use std::ops::Range;

use super::entry::{Held, LowerTier};
use super::owners::{self, OwnerId};
use super::slab::SlabKey;
use super::table::PrefixTable;
use crate::error::{Error, Result, check_range};
use crate::page::{PageAllocator, PageHandle};
use crate::tenants::TenantId;
use crate::tier::{PageHeader, PageIdentity};

/// Names one lease; stale for ever after the lease has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LeaseKey(SlabKey);

impl LeaseKey {
    /// A key from its number.
    #[allow(clippy::cast_possible_truncation, reason = "the low half is the entry")]
    pub const fn from_bits(bits: u64) -> Self {
        Self(SlabKey { entry: bits as u32, generation: (bits >> 32) as u32 })
    }

    /// The key as a number: entry in the low half, generation in the high one.
    pub const fn bits(self) -> u64 {
        (self.0.generation as u64) << 32 | self.0.entry as u64
    }
}

/// The pages that follow those of a lease, and how many of them `tier` says that it has: a store
/// which others fill, too.
#[derive(Debug, Clone, Copy)]
pub struct Elsewhere<'a> {
    /// Each follows the one before it; the first follows the last page of the lease.
    pub pages: &'a [PageHeader],
    /// So many of them, from the first on.
    pub num_held: usize,
    /// Who has them.
    pub tier: LowerTier,
}

#[derive(Debug)]
pub(super) struct LeaseRecord {
    pub(super) owner: OwnerId,
    pub(super) tenant: TenantId,
    pub(super) entries: Box<[u32]>, // pinned, so they stay what they are
    pub(super) deadline_ms: u64,
}

impl PrefixTable {
    /// Pins the longest run of `chain`, from its first page on, that any tier holds for one tenant.
    pub(crate) fn match_prefix(
        &mut self,
        pool: &PageAllocator,
        chain: &[PageIdentity],
        tenant: TenantId,
        owner: OwnerId,
        deadline_ms: u64,
    ) -> Result<(LeaseKey, Vec<Held>)> {
        pool.tenant_usage(tenant)?;
        self.check_owner(owner)?;
        let (entries, found) = self.pin_run(chain, tenant);
        self.counters.hits += entries.len() as u64;
        self.counters.misses += (chain.len() - entries.len()) as u64;
        let entries = entries.into_boxed_slice();
        let key = self.add_lease(LeaseRecord { owner, tenant, entries, deadline_ms });
        Ok((key, found))
    }

    /// Lengthens a lease by the run of pages that follows it: those that are known, and those that
    /// were found elsewhere, as far as entries are left. Each is pinned before the next one makes
    /// room for itself. What was added; nothing, if it fails.
    pub(crate) fn lengthen_lease(
        &mut self,
        pool: &mut PageAllocator,
        lease: LeaseKey,
        found: Elsewhere<'_>,
        now_ms: u64,
    ) -> Result<Vec<Held>> {
        self.end_if_expired(pool, lease, now_ms)?;
        let tenant = self.lease_tenant(lease)?;
        let mut run = Vec::new();
        if let Err(error) = self.pin_elsewhere(pool, tenant, found, &mut run) {
            return self.unpin(pool, &run).and(Err(error));
        }
        self.counters.hits += run.len() as u64;
        let held = run.iter().map(|&entry| self.entries.at(entry).held()).collect();
        let record = self.leases.get_mut(lease.0)?;
        let all = [&record.entries, run.as_slice()].concat();
        record.entries = all.clone().into_boxed_slice();
        self.touch_run(&all);
        Ok(held)
    }

    /// A lease of pages that are pinned for it already.
    pub(super) fn add_lease(&mut self, lease: LeaseRecord) -> LeaseKey {
        self.next_deadline_ms = self.next_deadline_ms.min(lease.deadline_ms);
        LeaseKey(self.leases.insert(lease).expect("fewer than 2^32 leases fit in memory"))
    }

    /// Where the leased pages lie now.
    pub(crate) fn lease_pages(
        &mut self,
        pool: &mut PageAllocator,
        lease: LeaseKey,
        now_ms: u64,
    ) -> Result<Vec<Held>> {
        self.end_if_expired(pool, lease, now_ms)?;
        let record = self.leases.get(lease.0)?;
        Ok(record.entries.iter().map(|&entry| self.entries.at(entry).held()).collect())
    }

    /// Refuses a lease of other pages than these: one of an earlier rest, say.
    pub(crate) fn check_leased(&self, lease: LeaseKey, entries: &[u32]) -> Result<()> {
        let leased = &self.leases.get(lease.0)?.entries;
        check_range("pages of the lease", leased.len(), entries.len(), entries.len())?;
        let num_same = leased.iter().zip(entries).filter(|(leased, entry)| leased == entry).count();
        if num_same == entries.len() {
            return Ok(());
        }
        let (found, needed) = (num_same as u64, entries.len() as u64);
        Err(Error::WrongState { what: "pages of the lease that the sequence has", found, needed })
    }

    /// Adds a reference to the host page of each of the first `count` leased pages: all or none.
    pub(crate) fn share_lease(
        &mut self,
        pool: &mut PageAllocator,
        lease: LeaseKey,
        count: usize,
        now_ms: u64,
    ) -> Result<Vec<PageHandle>> {
        self.end_if_expired(pool, lease, now_ms)?;
        let entries = &self.leases.get(lease.0)?.entries;
        check_range("leased pages to share", count, 0, entries.len())?;
        let readable = |&entry: &u32| self.entries.at(entry).readable_page();
        let pages: Vec<PageHandle> = entries[..count].iter().filter_map(readable).collect();
        if pages.len() < count {
            let (found, needed) = (pages.len() as u64, count as u64);
            return Err(Error::WrongState { what: "leased pages in the host pool", found, needed });
        }
        for (num_shared, &page) in pages.iter().enumerate() {
            if let Err(error) = pool.share(page) {
                pages[..num_shared].iter().try_for_each(|&page| pool.release(page).map(drop))?;
                return Err(error);
            }
        }
        Ok(pages)
    }

    /// Lets a lease last until `deadline_ms` instead.
    pub(crate) fn extend_lease(
        &mut self,
        pool: &mut PageAllocator,
        lease: LeaseKey,
        now_ms: u64,
        deadline_ms: u64,
    ) -> Result<()> {
        self.end_if_expired(pool, lease, now_ms)?;
        self.leases.get_mut(lease.0)?.deadline_ms = deadline_ms;
        self.next_deadline_ms = self.next_deadline_ms.min(deadline_ms);
        Ok(())
    }

    /// Unpins the pages of a lease.
    pub(crate) fn end_lease(&mut self, pool: &mut PageAllocator, lease: LeaseKey) -> Result<()> {
        let record = self.leases.remove(lease.0)?;
        self.unpin(pool, &record.entries)
    }

    /// Ends every lease whose deadline has come; how many.
    pub(crate) fn sweep(&mut self, pool: &mut PageAllocator, now_ms: u64) -> Result<usize> {
        if now_ms < self.next_deadline_ms {
            return Ok(0);
        }
        let ended = self.end_leases_if(pool, |lease| lease.deadline_ms <= now_ms)?;
        let deadlines = self.leases.iter().map(|(_, lease)| lease.deadline_ms);
        self.next_deadline_ms = deadlines.min().unwrap_or(u64::MAX);
        Ok(ended)
    }

    /// Lets an owner hold leases.
    pub(crate) fn add_owner(&mut self, owner: OwnerId) {
        self.owners.insert(owner);
    }

    /// Ends the owners, and every lease of theirs; how many leases.
    pub(crate) fn end_owners(
        &mut self,
        pool: &mut PageAllocator,
        ended: &[OwnerId],
    ) -> Result<usize> {
        let is_known = ended.iter().filter(|&owner| self.owners.remove(owner)).count();
        if is_known == 0 {
            return Ok(0);
        }
        let owners = std::mem::take(&mut self.owners);
        let num_leases = self.end_leases_if(pool, |lease| !owners.contains(&lease.owner));
        self.owners = owners;
        num_leases
    }

    /// The entries of those leased pages in `range`; ends the lease first if it has expired.
    pub(super) fn leased_entries(
        &mut self,
        pool: &mut PageAllocator,
        lease: LeaseKey,
        range: Range<usize>,
        now_ms: u64,
    ) -> Result<&[u32]> {
        self.end_if_expired(pool, lease, now_ms)?;
        let entries = &self.leases.get(lease.0)?.entries;
        check_range("end of the leased pages", range.end, 0, entries.len())?;
        check_range("first of the leased pages", range.start, 0, range.end)?;
        Ok(&entries[range])
    }

    /// Whose pages a lease names.
    pub(super) fn lease_tenant(&self, lease: LeaseKey) -> Result<TenantId> {
        self.leases.get(lease.0).map(|lease| lease.tenant)
    }

    /// A lease is over at its deadline, even before it is swept.
    fn end_if_expired(
        &mut self,
        pool: &mut PageAllocator,
        lease: LeaseKey,
        now_ms: u64,
    ) -> Result<()> {
        if self.leases.get(lease.0)?.deadline_ms <= now_ms {
            self.end_lease(pool, lease)?;
        }
        Ok(())
    }

    pub(super) fn check_owner(&self, owner: OwnerId) -> Result<()> {
        if self.owners.contains(&owner) {
            return Ok(());
        }
        Err(owners::unknown(owner, self.owners.len()))
    }

    fn pin_run(&mut self, chain: &[PageIdentity], tenant: TenantId) -> (Vec<u32>, Vec<Held>) {
        let (mut run, mut found) = (Vec::new(), Vec::new());
        for identity in chain {
            let Some(entry) = self.pin(identity, tenant) else { break };
            reserve_once(&mut run, &mut found, chain.len());
            found.push(self.entries.at(entry).held());
            run.push(entry);
        }
        self.touch_run(&run);
        (run, found)
    }

    /// Appends the entries of the run to `run`, each pinned.
    fn pin_elsewhere(
        &mut self,
        pool: &mut PageAllocator,
        tenant: TenantId,
        found: Elsewhere<'_>,
        run: &mut Vec<u32>,
    ) -> Result<()> {
        for (at, page) in found.pages.iter().enumerate() {
            if at < found.num_held {
                match self.found_elsewhere(pool, page, found.tier, tenant) {
                    Err(Error::TierFull { .. }) => return Ok(()),
                    noted => noted?,
                }
            }
            let Some(entry) = self.pin(&page.identity, tenant) else { return Ok(()) };
            run.push(entry);
        }
        Ok(())
    }

    /// Pins a page that some tier has for the tenant.
    fn pin(&mut self, identity: &PageIdentity, tenant: TenantId) -> Option<u32> {
        let entry = self.find(identity)?;
        let page = self.entries.at_mut(entry);
        let is_foreign = page.tenant.is_some_and(|owner| owner != tenant);
        if is_foreign || page.is_lost() || page.num_pins == u32::MAX {
            return None;
        }
        page.tenant = Some(tenant);
        page.num_pins += 1;
        Some(entry)
    }

    fn unpin(&mut self, pool: &mut PageAllocator, run: &[u32]) -> Result<()> {
        for &entry in run.iter().rev() {
            self.entries.at_mut(entry).num_pins -= 1;
            self.let_go(pool, entry)?;
        }
        Ok(())
    }

    /// Counts a use of every page; the first is the newest, for without it no other could be found.
    fn touch_run(&mut self, run: &[u32]) {
        run.iter().rev().for_each(|&entry| self.touch(entry));
    }

    fn end_leases_if(
        &mut self,
        pool: &mut PageAllocator,
        is_over: impl Fn(&LeaseRecord) -> bool,
    ) -> Result<usize> {
        let over = self.leases.iter().filter(|(_, lease)| is_over(lease));
        let over: Vec<LeaseKey> = over.map(|(key, _)| LeaseKey(key)).collect();
        over.iter().try_for_each(|&lease| self.end_lease(pool, lease))?;
        Ok(over.len())
    }
}

/// Makes room for the whole chain at the first hit, and none for a miss.
fn reserve_once(run: &mut Vec<u32>, found: &mut Vec<Held>, num_pages: usize) {
    if run.is_empty() {
        run.reserve_exact(num_pages);
        found.reserve_exact(num_pages);
    }
}
