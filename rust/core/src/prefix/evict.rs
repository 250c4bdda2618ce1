//! Who makes room: pages that no lease and no sequence uses go in the order of the policy.

use super::decisions::{Decision, Verdict};
use super::entry::{Entry, Place};
use super::movement::Demotion;
use super::slab::SlabKey;
use super::table::PrefixTable;
use crate::error::{Error, Result};
use crate::page::{PageAllocator, PageHandle};
use crate::tenants::TenantId;

/// What became of the pages that the policy chose.
#[derive(Debug, Default)]
pub struct Pressure {
    /// Host pages that are free now: lower tiers had copies already.
    pub freed: usize,
    /// Pages that a lower tier has to take first.
    pub demotions: Vec<Demotion>,
}

impl PrefixTable {
    /// Promises `count` pages of the pool to a tenant, and makes room for them by giving up idle
    /// ones: the tenant's own where its quota needs it. All or none, and without room none goes.
    pub(crate) fn reserve(
        &mut self,
        pool: &mut PageAllocator,
        tenant: TenantId,
        count: usize,
    ) -> Result<()> {
        self.make_room(pool, tenant, count)?;
        pool.reserve(tenant, count)
    }

    /// Gives idle pages up until `count` pages may be promised to the tenant, or none.
    pub(crate) fn make_room(
        &mut self,
        pool: &mut PageAllocator,
        tenant: TenantId,
        count: usize,
    ) -> Result<()> {
        let mut victims = Vec::new();
        if let Err(error) = self.choose_room(pool, tenant, count, &mut victims) {
            self.put_back(&victims);
            return Err(error);
        }
        victims.iter().try_for_each(|&entry| self.give_up(pool, entry))
    }

    /// As [`reserve`](Self::reserve), and picks the pages.
    pub(crate) fn take(
        &mut self,
        pool: &mut PageAllocator,
        tenant: TenantId,
        count: usize,
    ) -> Result<Vec<PageHandle>> {
        self.reserve(pool, tenant, count)?;
        (0..count).map(|_| pool.take_reserved(tenant)).collect()
    }

    /// Gives up to `count` idle pages up at once, with their only copies if need be; how many.
    pub(crate) fn evict(&mut self, pool: &mut PageAllocator, count: usize) -> Result<usize> {
        let mut victims = Vec::new();
        self.choose(pool, count, may_give_up, &mut victims);
        victims.iter().try_for_each(|&entry| self.give_up(pool, entry))?;
        Ok(victims.len())
    }

    /// As [`evict`](Self::evict), but pages without a copy below begin to be copied instead.
    pub(super) fn begin_demotions(
        &mut self,
        pool: &mut PageAllocator,
        count: usize,
    ) -> Result<(usize, Vec<SlabKey>)> {
        let mut victims = Vec::new();
        self.choose(pool, count, is_idle, &mut victims);
        self.put_back(&victims); // a page in motion keeps those before it from being evicted
        let (mut freed, mut demoting) = (0, Vec::new());
        for entry in victims {
            match self.entries.at(entry).place {
                Place::Resident(host) if self.entries.at(entry).lower.is_empty() => {
                    self.decide(entry, Verdict::Demote(host.page()));
                    self.entries.at_mut(entry).place = Place::Demoting(host);
                    demoting.push(self.entries.key_of(entry));
                }
                _ => {
                    self.unorder_in_host(entry)?;
                    self.give_up(pool, entry)?;
                    freed += 1;
                }
            }
        }
        Ok((freed, demoting))
    }

    pub(crate) fn decisions_since(&self, epoch: u64) -> Result<Vec<Decision>> {
        self.log.since(epoch)
    }

    /// Forgets one idle page, or says that every entry is in use.
    pub(super) fn forget_idle(&mut self, pool: &mut PageAllocator) -> Result<()> {
        let mut victim = Vec::new();
        self.choose(pool, 1, may_forget, &mut victim);
        let Some(&entry) = victim.first() else { return Err(self.no_entry()) };
        self.drop_copies(entry);
        self.give_up(pool, entry)
    }

    /// Gives up the host page of a page that the policy has chosen.
    pub(super) fn give_up(&mut self, pool: &mut PageAllocator, entry: u32) -> Result<()> {
        let page = self.entries.at(entry);
        if let Some(host) = page.host_page() {
            let is_last = page.lower.is_empty();
            let verdict = if is_last { Verdict::Forget } else { Verdict::Leave };
            self.decide(entry, verdict(host.page()));
        }
        self.leave_host(pool, entry)
    }

    fn choose_room(
        &mut self,
        pool: &PageAllocator,
        tenant: TenantId,
        count: usize,
        victims: &mut Vec<u32>,
    ) -> Result<()> {
        let over_quota = pool.over_quota(tenant, count)?;
        self.choose_own(pool, tenant, over_quota, victims)?;
        if victims.len() < over_quota {
            return Err(pool.share_full(tenant, count));
        }
        let missing = count.saturating_sub(pool.num_available() + victims.len());
        self.choose(pool, missing, may_give_up, victims);
        let room = pool.num_available() + victims.len();
        if room >= count {
            return Ok(());
        }
        let (free, total) = (pool.num_available() as u64, pool.num_pages() as u64);
        Err(Error::HostPoolFull { need: count as u64, free, total })
    }

    /// Appends up to `count` idle pages in the order of the policy, which forgets them.
    fn choose(
        &mut self,
        pool: &PageAllocator,
        count: usize,
        may_go: fn(&Entry, &PageAllocator) -> bool,
        victims: &mut Vec<u32>,
    ) {
        if count == 0 {
            return;
        }
        let (entries, first) = (&self.entries, victims.len());
        let may_evict = |entry| may_go(entries.at(entry), pool);
        self.host_order.victims(count, &may_evict, victims);
        for &entry in &victims[first..] {
            if let Some(tenant) = entries.at(entry).tenant {
                self.own_order.unlink(tenant, entry);
            }
        }
    }

    /// Appends up to `count` idle pages of one tenant, the least recently used first.
    fn choose_own(
        &mut self,
        pool: &PageAllocator,
        tenant: TenantId,
        count: usize,
        victims: &mut Vec<u32>,
    ) -> Result<()> {
        let first = victims.len();
        let may_go = |&entry: &u32| may_give_up(self.entries.at(entry), pool);
        victims.extend(self.own_order.iter(tenant).filter(may_go).take(count));
        victims[first..].iter().try_for_each(|&entry| self.unorder_in_host(entry))
    }

    /// Undoes the choice of pages that stay after all.
    fn put_back(&mut self, victims: &[u32]) {
        self.host_order.restore(victims);
        for &entry in victims.iter().rev() {
            if let Some(tenant) = self.entries.at(entry).tenant {
                self.own_order.relink(tenant, entry);
            }
        }
    }
}

/// Whether neither a lease nor a sequence uses the page, which is in the host pool and at rest.
pub(super) fn is_idle(page: &Entry, pool: &PageAllocator) -> bool {
    let Place::Resident(host) = page.place else { return false };
    page.num_pins == 0 && pool.num_refs(host) == Ok(1)
}

/// Whether an idle page may go at once: nobody is resting on it alone.
fn may_give_up(page: &Entry, pool: &PageAllocator) -> bool {
    is_idle(page, pool) && (page.num_holds == 0 || !page.lower.is_empty())
}

/// Whether an idle page may be forgotten, whatever lower tiers have of it.
fn may_forget(page: &Entry, pool: &PageAllocator) -> bool {
    is_idle(page, pool) && page.num_holds == 0
}
