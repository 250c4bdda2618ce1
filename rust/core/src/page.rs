//! Life of a host page: `free -> reserved -> used by 1 -> shared by n -> ... -> free`.
//!
//! A reservation is a count, not a choice: pages are picked when they are needed, so a reserved
//! page never fails to appear. Freeing a page raises its generation, which makes old handles stale.
//! Every page and every promise counts for one tenant.

use crate::error::{Error, Result, check_equal, check_range};
use crate::tenants::{TenantId, TenantUsage, Tenants};

/// Tokens of one page: the unit of allocation.
pub const PAGE_TOKENS: u32 = 64;

/// Most pages of one pool: 2^30 tokens.
pub const MAX_PAGES: u32 = 1 << 24;

/// The right to name one page for as long as it is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageHandle {
    page: u32,
    generation: u32,
}

impl PageHandle {
    /// Number of the page in its pool.
    pub const fn page(self) -> u32 {
        self.page
    }

    /// How often the page had been freed when this handle was made, modulo 2^32.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

#[derive(Debug, Clone, Copy)]
struct PageState {
    generation: u32,
    num_refs: u32, // 0 = free
    tenant: TenantId,
}

/// Hands out pages with reference counts.
#[derive(Debug)]
pub struct PageAllocator {
    pages: Vec<PageState>,
    free: Vec<u32>, // the last one is handed out next
    num_reserved: usize,
    num_shared: usize, // pages with two references or more
    tenants: Tenants,
}

impl PageAllocator {
    /// A pool of `num_pages` free pages, 1 to [`MAX_PAGES`].
    pub fn new(num_pages: u32) -> Result<Self> {
        check_range("num_pages", num_pages, 1, MAX_PAGES)?;
        let page = PageState { generation: 0, num_refs: 0, tenant: TenantId::DEFAULT };
        Ok(Self {
            pages: vec![page; num_pages as usize],
            free: (0..num_pages).rev().collect(),
            num_reserved: 0,
            num_shared: 0,
            tenants: Tenants::new(),
        })
    }

    /// All pages of the pool.
    pub fn num_pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that are not in use; reserved ones included.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Pages promised and not picked yet.
    pub fn num_reserved(&self) -> usize {
        self.num_reserved
    }

    /// Pages that may be reserved now.
    pub fn num_available(&self) -> usize {
        self.free.len() - self.num_reserved
    }

    /// Pages with two references or more.
    pub fn num_shared(&self) -> usize {
        self.num_shared
    }

    /// Adds a tenant that may have so many pages.
    pub fn add_tenant(&mut self, quota_pages: u64) -> Result<TenantId> {
        self.tenants.add(quota_pages)
    }

    /// Changes a quota; what a tenant has beyond it stays until it goes by itself.
    pub fn set_quota(&mut self, tenant: TenantId, quota_pages: u64) -> Result<()> {
        self.tenants.set_quota(tenant, quota_pages)
    }

    /// What a tenant has, and may have.
    pub fn tenant_usage(&self, tenant: TenantId) -> Result<TenantUsage> {
        self.tenants.usage(tenant)
    }

    /// Every tenant.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = TenantId> {
        (0..self.tenants.iter().len())
            .filter_map(|number| u16::try_from(number).ok())
            .map(TenantId::from_number)
    }

    /// Pages that a tenant has to give up before it may have `count` more.
    pub(crate) fn over_quota(&self, tenant: TenantId, count: usize) -> Result<usize> {
        self.tenants.missing(tenant, count)
    }

    /// Why a tenant may not have `count` pages more.
    pub(crate) fn share_full(&self, tenant: TenantId, count: usize) -> Error {
        self.tenants.full(tenant, count)
    }

    /// Promises `count` pages to later [`take_reserved`](Self::take_reserved) calls of a tenant.
    pub fn reserve(&mut self, tenant: TenantId, count: usize) -> Result<()> {
        if count > self.num_available() {
            return Err(self.full(count));
        }
        self.tenants.charge(tenant, count)?;
        self.num_reserved += count;
        Ok(())
    }

    /// Promises pages that the tenant has just released: no more than it had, so whatever its quota
    /// has become.
    pub(crate) fn reserve_again(&mut self, tenant: TenantId, count: usize) -> Result<()> {
        self.tenants.usage(tenant)?;
        if count > self.num_available() {
            return Err(self.full(count));
        }
        self.tenants.charge_again(tenant, count);
        self.num_reserved += count;
        Ok(())
    }

    /// Takes back the promise of `count` pages, made to the same tenant.
    pub fn unreserve(&mut self, tenant: TenantId, count: usize) -> Result<()> {
        self.tenants.usage(tenant)?;
        self.check_reserved(count)?;
        self.num_reserved -= count;
        self.tenants.credit(tenant, count);
        Ok(())
    }

    /// Picks a page that was promised to the tenant; the caller holds its only reference.
    pub fn take_reserved(&mut self, tenant: TenantId) -> Result<PageHandle> {
        self.tenants.usage(tenant)?;
        self.check_reserved(1)?;
        let page = self.free.pop().ok_or(Error::HostPoolFull {
            need: 1,
            free: 0,
            total: self.pages.len() as u64,
        })?;
        self.num_reserved -= 1;
        let state = &mut self.pages[page as usize];
        (state.num_refs, state.tenant) = (1, tenant);
        Ok(PageHandle { page, generation: state.generation })
    }

    /// Picks `count` pages without an earlier promise: all or none.
    pub fn allocate(&mut self, tenant: TenantId, count: usize) -> Result<Vec<PageHandle>> {
        self.reserve(tenant, count)?;
        (0..count).map(|_| self.take_reserved(tenant)).collect()
    }

    /// The tenant that the page counts for.
    pub fn tenant_of(&self, handle: PageHandle) -> Result<TenantId> {
        self.state(handle).map(|state| state.tenant)
    }

    /// References to the page.
    pub fn num_refs(&self, handle: PageHandle) -> Result<u32> {
        self.state(handle).map(|state| state.num_refs)
    }

    /// Adds a reference.
    pub fn share(&mut self, handle: PageHandle) -> Result<()> {
        let num_refs = self.state(handle)?.num_refs;
        check_range("page references", num_refs, 1, u32::MAX - 1)?;
        self.num_shared += usize::from(num_refs == 1);
        self.pages[handle.page as usize].num_refs += 1;
        Ok(())
    }

    /// Drops a reference; true if that was the last one and the page is free again.
    pub fn release(&mut self, handle: PageHandle) -> Result<bool> {
        let num_refs = self.state(handle)?.num_refs;
        self.num_shared -= usize::from(num_refs == 2);
        let state = &mut self.pages[handle.page as usize];
        state.num_refs -= 1;
        if state.num_refs > 0 {
            return Ok(false);
        }
        state.generation = state.generation.wrapping_add(1);
        self.tenants.credit(state.tenant, 1);
        self.free.push(handle.page);
        Ok(true)
    }

    /// Every page is either free, once, or used; the counts agree with the pages.
    pub fn check_integrity(&self) -> Result<()> {
        let mut is_free = vec![false; self.pages.len()];
        for &page in &self.free {
            let refs = self.pages[page as usize].num_refs;
            check_equal("references of a free page", refs, 0)?;
            check_equal("times a page is free", 1 + u32::from(is_free[page as usize]), 1)?;
            is_free[page as usize] = true;
        }
        let used = self.pages.iter().filter(|state| state.num_refs > 0).count();
        check_equal("pages used and free", used + self.free.len(), self.pages.len())?;
        let shared = self.pages.iter().filter(|state| state.num_refs > 1).count();
        check_equal("shared pages", self.num_shared, shared)?;
        check_range("reserved pages", self.num_reserved, 0, self.free.len())?;
        let charged: u64 = self.tenants.iter().map(|share| share.used_pages).sum();
        check_equal("pages charged to tenants", charged, (used + self.num_reserved) as u64)
    }

    fn state(&self, handle: PageHandle) -> Result<PageState> {
        let max = self.pages.len() - 1;
        check_range("page", handle.page as usize, 0, max)?;
        let state = self.pages[handle.page as usize];
        if state.generation == handle.generation && state.num_refs > 0 {
            return Ok(state);
        }
        Err(Error::StaleHandle {
            what: "page",
            id: handle.page,
            found: handle.generation,
            current: state.generation,
        })
    }

    fn check_reserved(&self, count: usize) -> Result<()> {
        if count <= self.num_reserved {
            return Ok(());
        }
        let (found, needed) = (self.num_reserved as u64, count as u64);
        Err(Error::WrongState { what: "reserved pages", found, needed })
    }

    fn full(&self, need: usize) -> Error {
        let (free, total) = (self.num_available() as u64, self.pages.len() as u64);
        Error::HostPoolFull { need: need as u64, free, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const TENANT: TenantId = TenantId::DEFAULT;

    #[test]
    fn a_full_pool_says_what_was_needed_and_what_was_free() {
        let mut pages = PageAllocator::new(4).unwrap();
        pages.reserve(TENANT, 3).unwrap();
        let error = pages.allocate(TENANT, 2).unwrap_err();
        assert_eq!(error.to_string(), "host pool full: need 2 pages, 1 free of 4");
        assert_eq!(pages.allocate(TENANT, 1).unwrap().len(), 1);
        pages.check_integrity().unwrap();
    }

    #[test]
    fn a_freed_page_makes_its_handle_stale() {
        let mut pages = PageAllocator::new(1).unwrap();
        let old = pages.allocate(TENANT, 1).unwrap()[0];
        assert!(pages.release(old).unwrap());
        let new = pages.allocate(TENANT, 1).unwrap()[0];
        assert_eq!(new.page(), old.page());
        let error = pages.release(old).unwrap_err();
        assert_eq!(error.to_string(), "stale page handle 0: found generation 0, needed 1");
        assert_eq!(pages.num_refs(new), Ok(1));
    }

    #[test]
    fn a_page_generation_wraps_to_zero() {
        let mut pages = PageAllocator::new(1).unwrap();
        pages.pages[0].generation = u32::MAX;
        let last = pages.allocate(TENANT, 1).unwrap()[0];
        pages.release(last).unwrap();
        assert_eq!(pages.allocate(TENANT, 1).unwrap()[0].generation(), 0);
        assert_eq!(pages.num_refs(last).unwrap_err().kind(), ErrorKind::StaleHandle);
    }

    #[test]
    fn a_shared_page_is_free_after_its_last_release() {
        let mut pages = PageAllocator::new(2).unwrap();
        let page = pages.allocate(TENANT, 1).unwrap()[0];
        pages.share(page).unwrap();
        assert_eq!(pages.num_shared(), 1);
        assert!(!pages.release(page).unwrap());
        assert_eq!(pages.num_shared(), 0);
        assert!(pages.release(page).unwrap());
        pages.check_integrity().unwrap();
    }

    #[test]
    fn a_page_of_another_pool_is_refused() {
        let far = PageAllocator::new(9).unwrap().allocate(TENANT, 9).unwrap()[8];
        let error = PageAllocator::new(2).unwrap().share(far).unwrap_err();
        assert_eq!(error.to_string(), "page: found 8, needed 0 to 1");
    }

    #[test]
    fn a_page_that_was_not_reserved_cannot_be_taken() {
        let mut pages = PageAllocator::new(2).unwrap();
        let error = pages.take_reserved(TENANT).unwrap_err();
        assert_eq!(error.to_string(), "reserved pages: found 0, needed 1");
        assert_eq!(pages.unreserve(TENANT, 1).unwrap_err().kind(), ErrorKind::WrongState);
    }

    #[test]
    fn a_page_counts_for_its_tenant_from_the_promise_to_the_last_release() {
        let mut pages = PageAllocator::new(8).unwrap();
        let tenant = pages.add_tenant(3).unwrap();
        let used = |pages: &PageAllocator| pages.tenant_usage(tenant).unwrap().used_pages;
        pages.reserve(tenant, 3).unwrap();
        assert_eq!(pages.reserve(tenant, 1).unwrap_err().kind(), ErrorKind::TierFull);
        let page = pages.take_reserved(tenant).unwrap();
        pages.unreserve(tenant, 1).unwrap();
        assert_eq!((used(&pages), pages.tenant_of(page)), (2, Ok(tenant)));
        pages.share(page).unwrap();
        pages.release(page).unwrap();
        assert_eq!(used(&pages), 2);
        pages.release(page).unwrap();
        assert_eq!(used(&pages), 1);
        pages.check_integrity().unwrap();
        assert!(pages.reserve(TenantId::from_number(2), 1).is_err());
    }
}
