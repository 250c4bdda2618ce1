//! How pages come to be known: published by a sequence, or found in a lower tier.

use super::decisions::Verdict;
use super::entry::{Entry, LowerTier, LowerTiers, Place};
use super::table::PrefixTable;
use super::tenants::TenantId;
use crate::error::{Error, Result, check_range};
use crate::eviction::EvictionPolicy;
use crate::page::{PAGE_TOKENS, PageAllocator, PageHandle};
use crate::tier::{PageHeader, PageIdentity};

/// What came of publishing a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The page is the one that others will share.
    First,
    /// Another was first: its page took the place of the caller's, which is given back.
    Existing(PageHandle),
    /// Another is being copied to the host pool: the caller keeps its page for itself.
    Unshared,
}

impl PrefixTable {
    /// Lets others share a full page whose rows and pooled keys are all written, once. The caller's
    /// charge for the page becomes the directory's; of an existing page it gets a reference.
    pub(crate) fn publish(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        host: PageHandle,
        tenant: TenantId,
    ) -> Result<Published> {
        check_range("tokens of a shared page", page.num_tokens, PAGE_TOKENS, PAGE_TOKENS)?;
        self.tenants.usage(tenant)?;
        pool.num_refs(host)?;
        match self.find(&page.identity) {
            Some(entry) => self.publish_again(pool, entry, host, tenant),
            None => self.publish_first(pool, page, host, tenant),
        }
    }

    /// Notes that `tier` has a page: put there, or found there after a restart.
    pub(crate) fn found_below(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        tier: LowerTier,
        tenant: TenantId,
    ) -> Result<()> {
        check_range("tokens of a shared page", page.num_tokens, PAGE_TOKENS, PAGE_TOKENS)?;
        self.tenants.usage(tenant)?;
        let Some(entry) = self.find(&page.identity) else {
            let entry = self.insert(pool, page, Place::Lower, tenant)?;
            self.entries.at_mut(entry).lower = LowerTiers::NONE.with(tier);
            return self.settle_below(entry);
        };
        self.check_tenant(entry, tenant)?;
        let page = self.entries.at_mut(entry);
        let was_lost = page.is_lost();
        page.lower = page.lower.with(tier);
        if was_lost { self.settle_below(entry) } else { Ok(()) }
    }

    /// Notes that `tier` has a page no longer; false if the directory did not know that it had it.
    pub(crate) fn lost_below(&mut self, identity: &PageIdentity, tier: LowerTier) -> Result<bool> {
        let found = self.find(identity);
        let Some(entry) = found.filter(|&entry| self.entries.at(entry).lower.has(tier)) else {
            return Ok(false);
        };
        let page = self.entries.at_mut(entry);
        page.lower = page.lower.without(tier);
        if page.is_lost() {
            self.lower_order.removed(entry)?;
            self.settle_below(entry)?;
        }
        Ok(true)
    }

    /// Notes that `tier` loses the least recently used of the pages that nobody pins.
    pub(crate) fn leave_below(&mut self, tier: LowerTier, count: usize) -> Result<Vec<PageHeader>> {
        let mut leaving = Vec::new();
        let entries = &self.entries;
        let may_leave =
            |entry| entries.at(entry).lower.has(tier) && entries.at(entry).num_pins == 0;
        self.lower_order.victims(count, &may_leave, &mut leaving);
        let mut left = Vec::with_capacity(leaving.len());
        for entry in leaving {
            let page = self.entries.at_mut(entry);
            page.lower = page.lower.without(tier);
            let (identity, parent) = (page.identity, page.parent);
            left.push(PageHeader { identity, parent, num_tokens: PAGE_TOKENS });
            self.settle_below(entry)?;
        }
        Ok(left)
    }

    fn publish_first(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        host: PageHandle,
        tenant: TenantId,
    ) -> Result<Published> {
        pool.share(host)?;
        match self.insert(pool, page, Place::Resident(host), tenant) {
            Ok(entry) => self.order_in_host(entry).map(|()| Published::First),
            Err(error) => {
                pool.release(host)?;
                Err(error)
            }
        }
    }

    fn publish_again(
        &mut self,
        pool: &mut PageAllocator,
        entry: u32,
        host: PageHandle,
        tenant: TenantId,
    ) -> Result<Published> {
        self.check_tenant(entry, tenant)?;
        let published = match self.entries.at(entry).place {
            Place::Promoting(_) => return Ok(Published::Unshared),
            Place::Resident(existing) | Place::Demoting(existing) => {
                pool.share(existing)?;
                self.touch(entry);
                Published::Existing(existing)
            }
            Place::Lower => {
                pool.share(host)?;
                self.raise(entry, host)?;
                Published::First
            }
        };
        self.link(entry);
        Ok(published)
    }

    /// A page that lower tiers had is in the host pool again.
    fn raise(&mut self, entry: u32, host: PageHandle) -> Result<()> {
        if !self.entries.at(entry).is_lost() {
            self.lower_order.removed(entry)?;
        }
        self.entries.at_mut(entry).place = Place::Resident(host);
        self.order_in_host(entry)
    }

    fn insert(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        place: Place,
        tenant: TenantId,
    ) -> Result<u32> {
        self.make_entry_room(pool)?;
        let PageHeader { identity, parent, .. } = *page;
        let (num_children, num_pins, lower) = (0, 0, LowerTiers::NONE);
        let parent_key = None;
        let new =
            Entry { identity, parent, parent_key, num_children, num_pins, place, tenant, lower };
        let key = self.entries.insert(new).ok_or_else(|| self.no_entry())?;
        self.link(key.entry);
        self.by_identity.insert(key.entry, &self.entries);
        Ok(key.entry)
    }

    /// Forgets the page that should go first if every entry is in use: of the lower tiers' pages,
    /// or else of the idle ones in the host pool.
    fn make_entry_room(&mut self, pool: &mut PageAllocator) -> Result<()> {
        if !self.entries.is_full() {
            return Ok(());
        }
        let entries = &self.entries;
        let may_forget = |entry| entries.at(entry).num_pins == 0;
        let Some(entry) = self.lower_order.victim(&may_forget) else {
            return self.forget_idle(pool);
        };
        self.decide(entry, Verdict::ForgetLower);
        self.forget(entry);
        Ok(())
    }

    fn check_tenant(&self, entry: u32, tenant: TenantId) -> Result<()> {
        let needed = self.entries.at(entry).tenant;
        if needed == tenant {
            return Ok(());
        }
        let (found, needed) = (tenant.number().into(), needed.number().into());
        Err(Error::WrongState { what: "tenant of a page", found, needed })
    }

    pub(super) fn no_entry(&self) -> Error {
        let need = self.limits.page_bytes;
        let capacity = need.saturating_mul(u64::from(self.limits.max_pages));
        Error::TierFull { tier: "prefix directory", need, free: 0, capacity }
    }
}
