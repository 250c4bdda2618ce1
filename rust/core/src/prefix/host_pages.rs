//! Host pages that a sequence holds: taken for new tokens, or shared from a prefix.

use super::publish::Published;
use super::shelf::ShelfRef;
use super::table::PrefixTable;
use crate::error::{Error, Result, check_range};
use crate::page::{PageAllocator, PageHandle};
use crate::tier::PageHeader;

/// References to host pages; dropping them gives them back.
#[derive(Debug)]
#[must_use = "dropping it gives the pages back"]
pub struct HostPages {
    shelf: ShelfRef,
    pages: Vec<HeldPage>,
}

#[derive(Debug, Clone, Copy)]
struct HeldPage {
    handle: PageHandle,
    is_own: bool, // nobody else has it
}

impl HostPages {
    pub(super) fn taken(shelf: ShelfRef, pages: Vec<PageHandle>) -> Self {
        Self::new(shelf, pages, true)
    }

    pub(super) fn shared(shelf: ShelfRef, pages: Vec<PageHandle>) -> Self {
        Self::new(shelf, pages, false)
    }

    fn new(shelf: ShelfRef, pages: Vec<PageHandle>, is_own: bool) -> Self {
        let pages = pages.into_iter().map(|handle| HeldPage { handle, is_own }).collect();
        Self { shelf, pages }
    }

    /// Numbers of the pages.
    pub fn numbers(&self) -> Vec<u32> {
        self.pages.iter().map(|page| page.handle.page()).collect()
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Lets others share the pages from `first` on, one for each of `headers`, under one lock. Every
    /// row, index row and pooled key of them has to be written.
    ///
    /// It stops at a page that is refused: the answer is then shorter, or the error for the first.
    pub fn publish(&mut self, first: usize, headers: &[PageHeader]) -> Result<Vec<Published>> {
        check_range("pages to publish", headers.len(), 0, self.pages.len())?;
        check_range("first page to publish", first, 0, self.pages.len() - headers.len())?;
        let pages = &mut self.pages[first..first + headers.len()];
        self.shelf.with(|pool, table| {
            let mut published = Vec::with_capacity(pages.len());
            for (page, header) in pages.iter_mut().zip(headers) {
                match publish(pool, table, page, header) {
                    Ok(one) => published.push(one),
                    Err(error) if published.is_empty() => return Err(error),
                    Err(_) => break,
                }
            }
            Ok(published)
        })
    }

    /// Gives the pages back now, and reports what dropping them could only swallow.
    pub fn release(mut self) -> Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        let pages = std::mem::take(&mut self.pages);
        if pages.is_empty() {
            return Ok(());
        }
        self.shelf
            .with(|pool, _| pages.iter().try_for_each(|page| pool.release(page.handle).map(drop)))
    }
}

impl Drop for HostPages {
    fn drop(&mut self) {
        let _ = self.give_back(); // fails only if the pool is gone, or after a panic under its lock
    }
}

fn publish(
    pool: &mut PageAllocator,
    table: &mut PrefixTable,
    page: &mut HeldPage,
    header: &PageHeader,
) -> Result<Published> {
    if !page.is_own {
        let what = "sequences that own the page";
        return Err(Error::WrongState { what, found: 0, needed: 1 });
    }
    let published = table.publish(pool, header, page.handle)?;
    match published {
        Published::First => page.is_own = false,
        Published::Existing(existing) => {
            pool.release(page.handle)?;
            *page = HeldPage { handle: existing, is_own: false };
        }
        Published::Unshared => {}
    }
    Ok(published)
}
