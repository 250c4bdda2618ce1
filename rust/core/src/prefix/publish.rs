//! How pages come to be known: published by a sequence, or found in a lower tier.

use super::decisions::Verdict;
use super::entry::{Entry, LowerTier, LowerTiers, Place};
use super::table::PrefixTable;
use crate::error::{Error, Result, check_range};
use crate::eviction::EvictionPolicy;
use crate::page::{PAGE_TOKENS, PageAllocator, PageHandle};
use crate::tenants::TenantId;
use crate::tier::{PageHeader, PageIdentity};

/// What came of publishing a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The page is the one that others will share.
    First,
    /// Another was first: its page took the place of the caller's, which is given back.
    Existing(PageHandle),
    /// Another is being copied to the host pool, or is kept below for a resting sequence: the caller
    /// keeps its page for itself.
    Unshared,
}

impl PrefixTable {
    /// Lets others of its tenant share a full page whose rows and pooled keys are all written, once.
    /// Of an existing page the caller gets a reference.
    pub(crate) fn publish(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        host: PageHandle,
    ) -> Result<Published> {
        check_range("tokens of a shared page", page.num_tokens, PAGE_TOKENS, PAGE_TOKENS)?;
        let tenant = pool.tenant_of(host)?;
        match self.find(&page.identity) {
            Some(entry) => self.publish_again(pool, entry, host, tenant),
            None => self.keep(pool, page, host).map(|_| Published::First),
        }
    }

    /// Notes that `tier` has a page: put there, or found there after a restart. Without a tenant it
    /// is that of the first who asks for it: only its own tenant knows its name.
    pub(crate) fn found_below(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        tier: LowerTier,
        tenant: Option<TenantId>,
    ) -> Result<()> {
        check_range("tokens of a page", page.num_tokens, 1, PAGE_TOKENS)?;
        tenant.map_or(Ok(()), |tenant| pool.tenant_usage(tenant).map(drop))?;
        let Some(entry) = self.find(&page.identity) else {
            let entry = self.insert(pool, page, Place::Lower, tenant)?;
            self.entries.at_mut(entry).lower = LowerTiers::NONE.with(tier);
            return self.settle_below(entry);
        };
        tenant.map_or(Ok(()), |tenant| self.check_tenant(entry, tenant))?;
        let page = self.entries.at_mut(entry);
        let was_lost = page.is_lost();
        page.lower = page.lower.with(tier);
        if was_lost { self.settle_below(entry) } else { Ok(()) }
    }

    /// As [`found_below`](Self::found_below), of a page that another may have put there: by other
    /// bytes perhaps, or to be gone soon. One that is known keeps the copies that it has.
    pub(super) fn found_elsewhere(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        tier: LowerTier,
        tenant: TenantId,
    ) -> Result<()> {
        let known = self.find(&page.identity);
        if known.is_some_and(|entry| !self.entries.at(entry).is_lost()) {
            return Ok(());
        }
        self.found_below(pool, page, tier, Some(tenant))
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

    /// Gives up to `count` pages of a tier up, the least recently used first: those that the host
    /// pool has no longer, then second copies. None that a resting sequence has nowhere else.
    pub(crate) fn leave_below(&mut self, tier: LowerTier, count: usize) -> Result<Vec<PageHeader>> {
        let entries = &self.entries;
        let may_leave = |entry| {
            let page: &Entry = entries.at(entry);
            let has_other = page.host_page().is_some() || !page.lower.without(tier).is_empty();
            page.lower.has(tier) && (has_other || !page.is_kept())
        };
        let mut leaving = Vec::new();
        self.lower_order.victims(count, &may_leave, &mut leaving);
        self.lower_order.restore(&leaving);
        let second = entries.iter().filter(|(_, page)| matches!(page.place, Place::Resident(_)));
        let second = second.map(|(key, _)| key.entry).filter(|&entry| may_leave(entry));
        leaving.extend(second.take(count - leaving.len()));
        let headers: Vec<PageHeader> =
            leaving.iter().map(|&entry| entries.at(entry).header()).collect();
        for page in &headers {
            self.lost_below(&page.identity, tier)?;
        }
        Ok(headers)
    }

    /// Makes an entry of a page that has none, with a reference of its own to the host page.
    pub(super) fn keep(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        host: PageHandle,
    ) -> Result<u32> {
        let tenant = pool.tenant_of(host)?;
        pool.share(host)?;
        let entry = match self.insert(pool, page, Place::Resident(host), Some(tenant)) {
            Ok(entry) => entry,
            Err(error) => return pool.release(host).and(Err(error)),
        };
        self.order_in_host(entry)?;
        Ok(entry)
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
            // it rests on the bytes that it has left there, and these may be others
            Place::Lower if self.entries.at(entry).num_holds > 0 => Published::Unshared,
            Place::Lower => {
                pool.share(host)?;
                self.raise(entry, host)?;
                Published::First
            }
        };
        self.link(entry);
        Ok(published)
    }

    /// A page that lower tiers had is in the host pool again, by other bytes perhaps: an engine may
    /// compute a row in more than one way. The copies below go, so that all have the same.
    fn raise(&mut self, entry: u32, host: PageHandle) -> Result<()> {
        if !self.entries.at(entry).is_lost() {
            self.lower_order.removed(entry)?;
            self.drop_copies(entry);
        }
        self.entries.at_mut(entry).place = Place::Resident(host);
        self.note_host(entry);
        self.order_in_host(entry)
    }

    fn insert(
        &mut self,
        pool: &mut PageAllocator,
        page: &PageHeader,
        place: Place,
        tenant: Option<TenantId>,
    ) -> Result<u32> {
        self.make_entry_room(pool)?;
        let new = Entry {
            identity: page.identity,
            parent: page.parent,
            parent_key: None,
            num_children: 0,
            num_pins: 0,
            num_holds: 0,
            place,
            tenant,
            num_tokens: u8::try_from(page.num_tokens).expect("64 at most"),
            is_private: false,
            lower: LowerTiers::NONE,
        };
        let key = self.entries.insert(new).ok_or_else(|| self.no_entry())?;
        self.link(key.entry);
        self.by_identity.insert(key.entry, &self.entries);
        self.note_host(key.entry);
        Ok(key.entry)
    }

    /// Forgets the page that should go first if every entry is in use: of the lower tiers' pages,
    /// or else of the idle ones in the host pool.
    fn make_entry_room(&mut self, pool: &mut PageAllocator) -> Result<()> {
        if !self.entries.is_full() {
            return Ok(());
        }
        let entries = &self.entries;
        let may_forget = |entry| !entries.at(entry).is_kept();
        let Some(entry) = self.lower_order.victim(&may_forget) else {
            return self.forget_idle(pool);
        };
        self.decide(entry, Verdict::ForgetLower);
        self.forget(entry);
        Ok(())
    }

    /// Refuses another tenant's page; one that was nobody's yet is the tenant's from now on.
    fn check_tenant(&mut self, entry: u32, tenant: TenantId) -> Result<()> {
        let needed = *self.entries.at_mut(entry).tenant.get_or_insert(tenant);
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
