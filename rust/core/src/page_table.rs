//! The pages of one sequence, in order, and the promise of those it may still need.
//!
//! # Invariants
//! 1. The promise covers every page up to the admitted length, so appending never finds a full pool.
//! 2. A page that others share is never written: a partial shared page comes with a promised page
//!    for its copy.

use crate::error::{Result, check_equal};
use crate::page::{PAGE_TOKENS, PageAllocator, PageHandle};
use crate::tenants::TenantId;

/// Copies the bytes of page `.0` to page `.1`; may refuse.
pub(crate) type CopyPage<'a> = &'a dyn Fn(u32, u32) -> Result<()>;

#[derive(Debug)]
pub(crate) struct PageTable {
    tenant: TenantId,
    pages: Vec<PageHandle>,
    admitted_pages: usize,
    holds_copy_promise: bool, // the last page was shared and partial when it was last looked at
}

/// Pages that hold `num_tokens` tokens.
pub(crate) fn pages_for(num_tokens: u32) -> usize {
    num_tokens.div_ceil(PAGE_TOKENS) as usize
}

impl PageTable {
    /// An empty table whose `admitted_pages` pages the caller has reserved for the tenant.
    pub(crate) fn new(tenant: TenantId, admitted_pages: usize) -> Self {
        Self::sharing(tenant, Vec::new(), admitted_pages, false)
    }

    /// A table that begins with pages of which it has a reference each; the caller has reserved the
    /// rest of `admitted_pages`, and a page to copy the last one to if that is partial and shared.
    pub(crate) fn sharing(
        tenant: TenantId,
        pages: Vec<PageHandle>,
        admitted_pages: usize,
        holds_copy_promise: bool,
    ) -> Self {
        Self { tenant, pages, admitted_pages, holds_copy_promise }
    }

    /// Puts a page with the same bytes in the place of another; the references are the caller's.
    pub(crate) fn replace(&mut self, at: usize, page: PageHandle) {
        self.pages[at] = page;
    }

    /// A table that shares the full pages of the first `length` tokens and copies the partial one.
    pub(crate) fn fork(
        &self,
        pool: &mut PageAllocator,
        length: u32,
        admitted_pages: usize,
        copy: CopyPage<'_>,
    ) -> Result<Self> {
        let num_shared = (length / PAGE_TOKENS) as usize;
        let num_owned = admitted_pages - num_shared;
        pool.reserve(self.tenant, num_owned)?;
        let mut fork = Self::new(self.tenant, admitted_pages);
        if num_shared < pages_for(length) {
            let source = self.pages[num_shared];
            let partial = take_copy(pool, self.tenant, source, copy);
            fork.pages.push(partial.inspect_err(|_| give_back(pool, self.tenant, num_owned))?);
        }
        for &page in &self.pages[..num_shared] {
            pool.share(page)?;
        }
        fork.pages.splice(0..0, self.pages[..num_shared].iter().copied());
        Ok(fork)
    }

    /// Makes pages for tokens `length..end`; a shared partial page is copied first. True if so.
    pub(crate) fn append(
        &mut self,
        pool: &mut PageAllocator,
        length: u32,
        end: u32,
        copy: CopyPage<'_>,
    ) -> Result<bool> {
        let copied = !length.is_multiple_of(PAGE_TOKENS) && self.own_last_page(pool, copy)?;
        for _ in self.pages.len()..pages_for(end) {
            self.pages.push(pool.take_reserved(self.tenant)?);
        }
        Ok(copied)
    }

    /// Drops pages beyond `length`; their places are promised again. Refused, with nothing changed,
    /// if pages that others keep leave too few for that promise.
    pub(crate) fn truncate(&mut self, pool: &mut PageAllocator, length: u32) -> Result<()> {
        let keep = pages_for(length);
        let freed = self.count_sole(pool, keep)?;
        let needs_copy = self.is_partial_shared(pool, length)?;
        let old_promise = self.num_promised();
        let promise = self.admitted_pages - keep + usize::from(needs_copy);
        let extra = promise.saturating_sub(old_promise + freed);
        pool.reserve(self.tenant, extra)?;
        for page in self.pages.drain(keep..) {
            pool.release(page)?;
        }
        self.holds_copy_promise = needs_copy;
        match (old_promise + extra).checked_sub(promise) {
            Some(surplus) => pool.unreserve(self.tenant, surplus),
            None => pool.reserve_again(self.tenant, promise - old_promise - extra),
        }
    }

    /// Gives back every page and the promise.
    pub(crate) fn release(self, pool: &mut PageAllocator) -> Result<()> {
        pool.unreserve(self.tenant, self.num_promised())?;
        for page in self.pages {
            pool.release(page)?;
        }
        Ok(())
    }

    /// Whose share the pages are in.
    pub(crate) fn tenant(&self) -> TenantId {
        self.tenant
    }

    pub(crate) fn pages(&self) -> &[PageHandle] {
        &self.pages
    }

    /// Pages promised and not picked yet.
    pub(crate) fn num_promised(&self) -> usize {
        self.admitted_pages - self.pages.len() + usize::from(self.holds_copy_promise)
    }

    pub(crate) fn check_integrity(&self, pool: &PageAllocator, length: u32) -> Result<()> {
        check_equal("pages of a sequence", self.pages.len(), pages_for(length))?;
        let needs_copy = self.is_partial_shared(pool, length)?;
        let uncovered = needs_copy && !self.holds_copy_promise;
        check_equal("partial shared pages without a promise", u8::from(uncovered), 0)
    }

    /// Replaces the last page by a copy if others share it; ends the promise for that.
    fn own_last_page(&mut self, pool: &mut PageAllocator, copy: CopyPage<'_>) -> Result<bool> {
        let Some(&last) = self.pages.last() else { return Ok(false) };
        let is_shared = pool.num_refs(last)? > 1;
        if is_shared {
            let owned = take_copy(pool, self.tenant, last, copy)?;
            pool.release(last)?;
            self.pages.pop();
            self.pages.push(owned);
        } else if self.holds_copy_promise {
            pool.unreserve(self.tenant, 1)?;
        }
        self.holds_copy_promise = false;
        Ok(is_shared)
    }

    fn count_sole(&self, pool: &PageAllocator, first: usize) -> Result<usize> {
        let is_sole = |&page| pool.num_refs(page).map(|refs| usize::from(refs == 1));
        self.pages[first..].iter().map(is_sole).sum()
    }

    fn is_partial_shared(&self, pool: &PageAllocator, length: u32) -> Result<bool> {
        if length.is_multiple_of(PAGE_TOKENS) {
            return Ok(false);
        }
        Ok(pool.num_refs(self.pages[pages_for(length) - 1])? > 1)
    }
}

/// Takes a promised page and copies `source` to it; a refused copy leaves the promise as it was.
fn take_copy(
    pool: &mut PageAllocator,
    tenant: TenantId,
    source: PageHandle,
    copy: CopyPage<'_>,
) -> Result<PageHandle> {
    let owned = pool.take_reserved(tenant)?;
    if let Err(error) = copy(source.page(), owned.page()) {
        pool.release(owned)?;
        pool.reserve(tenant, 1)?;
        return Err(error);
    }
    Ok(owned)
}

fn give_back(pool: &mut PageAllocator, tenant: TenantId, num_reserved: usize) {
    pool.unreserve(tenant, num_reserved).expect("this call reserved them");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    const TENANT: TenantId = TenantId::DEFAULT;
    const NO_COPY: CopyPage<'static> = &|_, _| panic!("no page is shared and partial");
    const COPY: CopyPage<'static> = &|_, _| Ok(());

    fn refuse(_: u32, _: u32) -> Result<()> {
        Err(Error::Poisoned)
    }

    fn table(pool: &mut PageAllocator, admitted: u32, length: u32) -> PageTable {
        pool.reserve(TENANT, pages_for(admitted)).unwrap();
        let mut table = PageTable::new(TENANT, pages_for(admitted));
        table.append(pool, 0, length, NO_COPY).unwrap();
        table
    }

    #[test]
    fn a_truncated_tail_goes_back_to_the_promise() {
        let mut pool = PageAllocator::new(4).unwrap();
        let mut table = table(&mut pool, 256, 200);
        table.truncate(&mut pool, 64).unwrap();
        assert_eq!((pool.num_free(), pool.num_reserved()), (3, 3));
        table.append(&mut pool, 64, 256, NO_COPY).unwrap();
        assert_eq!((pool.num_free(), pool.num_reserved()), (0, 0));
        table.release(&mut pool).unwrap();
        assert_eq!(pool.num_available(), 4);
    }

    #[test]
    fn cutting_into_shared_pages_needs_room_for_their_successors() {
        let mut pool = PageAllocator::new(3).unwrap();
        let mut table = table(&mut pool, 128, 128);
        let mut fork = table.fork(&mut pool, 128, 2, NO_COPY).unwrap();
        let error = table.truncate(&mut pool, 32).unwrap_err();
        assert_eq!(error.to_string(), "host pool full: need 2 pages, 1 free of 3");
        table.check_integrity(&pool, 128).unwrap();
        table.truncate(&mut pool, 64).unwrap();
        assert_eq!(fork.truncate(&mut pool, 32).unwrap_err().kind(), ErrorKind::HostPoolFull);
        table.release(&mut pool).unwrap();
        fork.truncate(&mut pool, 32).unwrap();
        assert!(!fork.append(&mut pool, 32, 33, NO_COPY).unwrap());
        fork.release(&mut pool).unwrap();
        assert_eq!(pool.num_available(), 3);
    }

    #[test]
    fn a_tail_goes_back_to_the_promise_whatever_the_quota_has_become() {
        let mut pool = PageAllocator::new(8).unwrap();
        let mut table = table(&mut pool, 256, 200);
        pool.set_quota(TENANT, 1).unwrap();
        table.truncate(&mut pool, 64).unwrap();
        table.check_integrity(&pool, 64).unwrap();
        assert_eq!(pool.tenant_usage(TENANT).unwrap().used_pages, 4);
        let fork = table.fork(&mut pool, 64, 1, NO_COPY).unwrap();
        assert_eq!(table.truncate(&mut pool, 32).unwrap_err().kind(), ErrorKind::TierFull);
        table.check_integrity(&pool, 64).unwrap();
        table.release(&mut pool).unwrap();
        fork.release(&mut pool).unwrap();
        pool.check_integrity().unwrap();
    }

    #[test]
    fn a_partial_shared_page_is_copied_before_it_grows() {
        let mut pool = PageAllocator::new(8).unwrap();
        let mut table = table(&mut pool, 128, 128);
        let fork = table.fork(&mut pool, 128, 2, NO_COPY).unwrap();
        table.truncate(&mut pool, 100).unwrap();
        assert!(table.append(&mut pool, 100, 101, COPY).unwrap());
        assert_ne!(table.pages()[1], fork.pages()[1]);
        assert_eq!(table.pages()[0], fork.pages()[0]);
        table.release(&mut pool).unwrap();
        fork.release(&mut pool).unwrap();
        assert_eq!(pool.num_available(), 8);
    }

    #[test]
    fn a_refused_copy_changes_nothing() {
        let mut pool = PageAllocator::new(8).unwrap();
        let mut table = table(&mut pool, 128, 100);
        assert!(table.fork(&mut pool, 100, 3, &refuse).is_err());
        assert_eq!((pool.num_free(), pool.num_reserved()), (6, 0));
        let fork = table.fork(&mut pool, 64, 1, NO_COPY).unwrap();
        table.truncate(&mut pool, 32).unwrap();
        let before = (pool.num_free(), pool.num_reserved());
        assert!(table.append(&mut pool, 32, 33, &refuse).is_err());
        assert_eq!((pool.num_free(), pool.num_reserved()), before);
        fork.release(&mut pool).unwrap();
        assert!(!table.append(&mut pool, 32, 33, NO_COPY).unwrap());
    }
}
