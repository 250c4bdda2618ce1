//! The directory as its users see it: every call takes one lock, once.

use super::decisions::Decision;
use super::entry::{Held, LowerTier, LowerTiers};
use super::evict::Pressure;
use super::host_pages::HostPages;
use super::lease::PrefixLease;
use super::leases::LeaseKey;
use super::movement::Demotion;
use super::owners::{OwnerId, OwnerLimits, Owners, Reaped};
use super::shelf::{self, HostShelf, Shelf, ShelfRef};
use super::table::{PrefixStats, PrefixTable};
use crate::error::{Result, check_equal};
use crate::page::PageAllocator;
use crate::sync::{Arc, Mutex};
use crate::tenants::{TenantId, TenantUsage};
use crate::tier::{PageHeader, PageIdentity};

/// How full a host pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostRoom {
    /// Pages neither used nor promised.
    pub available: usize,
    /// Pages of the pool.
    pub total: usize,
}

/// Where the pages of prefixes are held, and who may use them until when.
#[derive(Debug, Clone)]
pub struct PrefixDirectory {
    shelf: Arc<Mutex<dyn Shelf>>,
    owners: Arc<Owners>,
}

impl PrefixDirectory {
    /// A directory of a pool that nothing else uses.
    pub fn new(pool: PageAllocator, table: PrefixTable, owners: OwnerLimits) -> Result<Self> {
        Self::over(Arc::new(Mutex::new(HostShelf::new(pool, table))), owners)
    }

    /// A directory beside whatever else `shelf` keeps under its lock.
    pub fn over(shelf: Arc<Mutex<dyn Shelf>>, owners: OwnerLimits) -> Result<Self> {
        Ok(Self { shelf, owners: Arc::new(Owners::new(owners)?) })
    }

    /// Leases the longest run of `chain`, from its first page on, that any tier holds.
    pub fn match_prefix(
        &self,
        chain: &[PageIdentity],
        tenant: TenantId,
        owner: OwnerId,
        deadline_ms: u64,
    ) -> Result<PrefixLease> {
        let matched =
            self.with(|pool, table| table.match_prefix(pool, chain, tenant, owner, deadline_ms));
        let (key, found) = matched?;
        Ok(PrefixLease::new(self.weak(), key, found))
    }

    /// Leases what is held of `chain`, and takes host pages for the rest of `num_pages`, idle pages
    /// making room: what a prefill needs, at once or not at all.
    pub fn match_and_take(
        &self,
        chain: &[PageIdentity],
        num_pages: usize,
        tenant: TenantId,
        owner: OwnerId,
        deadline_ms: u64,
    ) -> Result<(PrefixLease, HostPages)> {
        let (key, found, taken) = self.with(|pool, table| {
            let (key, found) = table.match_prefix(pool, chain, tenant, owner, deadline_ms)?;
            match table.take(pool, tenant, num_pages.saturating_sub(found.len())) {
                Ok(taken) => Ok((key, found, taken)),
                Err(error) => table.end_lease(pool, key).and(Err(error)),
            }
        })?;
        let taken = HostPages::taken(self.weak(), taken);
        Ok((PrefixLease::new(self.weak(), key, found), taken))
    }

    /// Takes host pages for a tenant, idle pages making room: all or none.
    pub fn take(&self, tenant: TenantId, num_pages: usize) -> Result<HostPages> {
        let taken = self.with(|pool, table| table.take(pool, tenant, num_pages))?;
        Ok(HostPages::taken(self.weak(), taken))
    }

    /// The guard of a lease that was begun by its name.
    pub(crate) fn lease(&self, key: LeaseKey, found: Vec<Held>) -> PrefixLease {
        PrefixLease::new(self.weak(), key, found)
    }

    /// Ends a lease by its name, as dropping its guard would.
    pub fn end_lease(&self, lease: LeaseKey) -> Result<()> {
        self.with(|pool, table| table.end_lease(pool, lease))
    }

    /// Ends the leases whose deadline has come; how many.
    pub fn sweep(&self, now_ms: u64) -> Result<usize> {
        self.with(|pool, table| table.sweep(pool, now_ms))
    }

    /// Gives up to `count` idle host pages up at once, and pages that no lower tier has for good.
    pub fn evict(&self, count: usize) -> Result<usize> {
        self.with(|pool, table| table.evict(pool, count))
    }

    /// Begins to empty up to `count` idle host pages: those that lower tiers have are free at once.
    pub fn demote(&self, count: usize) -> Result<Pressure> {
        let weak = self.weak();
        let (freed, begun) = self.with(|pool, table| {
            let (freed, keys) = table.begin_demotions(pool, count)?;
            let begin = |key| Demotion::new(&weak, table, key);
            Ok((freed, keys.into_iter().map(begin).collect::<Vec<_>>()))
        })?;
        Ok(Pressure { freed, demotions: begun.into_iter().collect::<Result<_>>()? })
    }

    /// Notes that a lower tier has a page: put there, or found there after a restart. Without a
    /// tenant it is that of the first who asks for it: only its own tenant knows its name.
    pub fn found_below(
        &self,
        page: &PageHeader,
        tier: LowerTier,
        tenant: Option<TenantId>,
    ) -> Result<()> {
        self.with(|pool, table| table.found_below(pool, page, tier, tenant))
    }

    /// Notes that a lower tier has lost a page; false if it was not known to have it.
    pub fn lost_below(&self, identity: &PageIdentity, tier: LowerTier) -> Result<bool> {
        self.with(|_, table| table.lost_below(identity, tier))
    }

    /// Gives up to `count` pages of a lower tier up, the least recently used first, and notes that
    /// it has them no longer: the caller removes them there. A page that a resting sequence has
    /// nowhere else stays.
    pub fn leave_below(&self, tier: LowerTier, count: usize) -> Result<Vec<PageHeader>> {
        self.with(|_, table| table.leave_below(tier, count))
    }

    /// Copies in lower tiers that are not wanted any more, since the last call. They have to be
    /// removed there before another page of the same name is put.
    pub fn take_orphans(&self) -> Result<Vec<(PageIdentity, LowerTiers)>> {
        self.with(|_, table| Ok(table.take_orphans()))
    }

    /// Host pages that are neither used nor promised, and all of them.
    pub fn host_room(&self) -> Result<HostRoom> {
        self.with(|pool, _| {
            let (available, total) = (pool.num_available(), pool.num_pages());
            Ok(HostRoom { available, total })
        })
    }

    /// The decisions after the one numbered `epoch`, for a rank that has applied all up to it.
    pub fn decisions_since(&self, epoch: u64) -> Result<Vec<Decision>> {
        self.with(|_, table| table.decisions_since(epoch))
    }

    /// Adds a tenant that may have so many host pages.
    pub fn add_tenant(&self, quota_pages: u64) -> Result<TenantId> {
        self.with(|pool, _| pool.add_tenant(quota_pages))
    }

    /// Changes a quota; what a tenant has beyond it stays until it goes by itself.
    pub fn set_quota(&self, tenant: TenantId, quota_pages: u64) -> Result<()> {
        self.with(|pool, _| pool.set_quota(tenant, quota_pages))
    }

    /// What a tenant has, and may have.
    pub fn tenant_usage(&self, tenant: TenantId) -> Result<TenantUsage> {
        self.with(|pool, _| pool.tenant_usage(tenant))
    }

    /// Registers an owner of leases; it lives as long as it says so.
    pub fn register(&self, now_ms: u64) -> Result<OwnerId> {
        let owner = self.owners.issue()?;
        self.with(|_, table| {
            table.add_owner(owner);
            Ok(())
        })?;
        self.owners.register(owner, now_ms)?;
        Ok(owner)
    }

    /// The owner lives.
    pub fn heartbeat(&self, owner: OwnerId, now_ms: u64) -> Result<()> {
        self.owners.heartbeat(owner, now_ms)
    }

    /// Ends an owner and all its leases; how many they were.
    pub fn unregister(&self, owner: OwnerId) -> Result<usize> {
        self.owners.remove(owner)?;
        self.with(|pool, table| table.end_owners(pool, &[owner]))
    }

    /// Gives up the owners that have been silent for too long, if a scan is due, and then, outside
    /// of the owners' lock, their leases.
    pub fn reap(&self, now_ms: u64) -> Result<Reaped> {
        let dead = self.owners.take_dead(now_ms)?;
        if dead.is_empty() {
            return Ok(Reaped::default());
        }
        let leases = self.with(|pool, table| table.end_owners(pool, &dead))?;
        Ok(Reaped { owners: dead.len(), leases })
    }

    /// Counts of this moment; looks at every page.
    pub fn stats(&self) -> Result<PrefixStats> {
        self.with(|_, table| Ok(table.stats()))
    }

    /// Fails with the first invariant that does not hold. Nobody may be registering meanwhile.
    pub fn check_integrity(&self) -> Result<()> {
        let num_live = self.owners.num_live()?;
        self.with(|pool, table| {
            check_equal("owners registered", table.stats().owners, num_live as u64)?;
            table.check_integrity(pool)
        })
    }

    fn with<R>(
        &self,
        work: impl FnOnce(&mut PageAllocator, &mut PrefixTable) -> Result<R>,
    ) -> Result<R> {
        shelf::with(&self.shelf, work)
    }

    fn weak(&self) -> ShelfRef {
        ShelfRef::new(&self.shelf)
    }
}
