//! A region on loan, page by page: the bytes of one page, as the tiers below keep them.
//!
//! A page is moved whole: the KV rows of every layer, then the index rows and the pooled keys of
//! every anchor. So the three always belong together, wherever the page comes to lie.

use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::error::{Error, Result, check_range};
use crate::layout::HostLayout;
use crate::region::HostRegion;

/// The right to copy pages in and out while the region stays mapped; dropping it ends the loan.
///
/// No lock is held while bytes are copied. Whoever copies has to know that nobody writes a page
/// which it reads, and that nobody uses one which it writes: the directory's guards say so.
#[derive(Debug)]
pub struct PageLoan<'a> {
    region: &'a HostRegion,
    layout: &'a HostLayout,
    address: NonNull<u8>,
    is_lent: PhantomData<*mut u8>, // stays on the thread that borrowed it
}

impl HostRegion {
    /// Lends the pages of `layout`; the region cannot be closed before the loan ends.
    pub fn lend_pages<'a>(&'a self, layout: &'a HostLayout) -> Result<PageLoan<'a>> {
        check_range("bytes of the layout", layout.num_bytes(), 1, self.num_bytes())?;
        let address = self.begin_export()?;
        Ok(PageLoan { region: self, layout, address, is_lent: PhantomData })
    }
}

impl PageLoan<'_> {
    /// Copies every byte of a page to `into`, which is as long as a page.
    pub fn read(&self, page: u32, into: &mut [u8]) -> Result<()> {
        self.check(page, into.len())?;
        let mut rest = into;
        for (offset, num_bytes) in self.pieces(page) {
            let piece;
            (piece, rest) = rest.split_at_mut(num_bytes);
            // SAFETY: `check` holds the page to the layout, which lies inside the mapping.
            let source = unsafe { self.address.add(offset) };
            // SAFETY: the piece lies inside the mapping; a slice of safe code lies outside of it.
            unsafe { source.copy_to_nonoverlapping(NonNull::from(piece).cast(), num_bytes) };
        }
        Ok(())
    }

    /// Copies `bytes`, which are as long as a page, over every byte of a page.
    pub fn write(&self, page: u32, bytes: &[u8]) -> Result<()> {
        self.check(page, bytes.len())?;
        let mut rest = bytes;
        for (offset, num_bytes) in self.pieces(page) {
            let piece;
            (piece, rest) = rest.split_at(num_bytes);
            // SAFETY: `check` holds the page to the layout, which lies inside the mapping.
            let target = unsafe { self.address.add(offset) };
            // SAFETY: the piece lies inside the mapping; a slice of safe code lies outside of it.
            unsafe { target.copy_from_nonoverlapping(NonNull::from(piece).cast(), num_bytes) };
        }
        Ok(())
    }

    /// Where the parts of a page lie, and how long they are.
    fn pieces(&self, page: u32) -> impl Iterator<Item = (usize, usize)> {
        self.layout.arrays().map(move |array| (array.at(page), array.page_bytes))
    }

    fn check(&self, page: u32, num_bytes: usize) -> Result<()> {
        check_range("page", page, 0, self.layout.shape().num_pages - 1)?;
        let page_bytes = self.layout.page_bytes();
        check_range("bytes of a page", num_bytes, page_bytes, page_bytes)
    }
}

impl Drop for PageLoan<'_> {
    fn drop(&mut self) {
        let ended = self.region.end_export();
        debug_assert!(matches!(ended, Ok(()) | Err(Error::Poisoned)), "{ended:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LayoutShape;
    use crate::region::RegionOptions;

    fn layout(num_pages: u32) -> HostLayout {
        let (kv_row_bytes, index_row_bytes) = (5, 3);
        let (num_layers, num_anchors) = (3, 2);
        let shape =
            LayoutShape { num_layers, num_anchors, kv_row_bytes, index_row_bytes, num_pages };
        HostLayout::new(shape).unwrap()
    }

    fn bytes_of(page: u32, num_bytes: usize) -> Vec<u8> {
        (0..num_bytes).map(|at| (at * 7 + page as usize * 13).to_le_bytes()[0]).collect()
    }

    #[test]
    fn every_page_comes_back_as_it_was_and_no_page_touches_another() {
        let layout = layout(7);
        let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default()).unwrap();
        let loan = region.lend_pages(&layout).unwrap();
        for page in 0..7 {
            loan.write(page, &bytes_of(page, layout.page_bytes())).unwrap();
        }
        let mut found = vec![0; layout.page_bytes()];
        for page in (0..7).rev() {
            loan.read(page, &mut found).unwrap();
            assert_eq!(found, bytes_of(page, layout.page_bytes()));
        }
    }

    #[test]
    fn a_page_is_kv_rows_then_index_rows_then_pooled_keys() {
        let layout = layout(2);
        let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default()).unwrap();
        let loan = region.lend_pages(&layout).unwrap();
        loan.write(1, &bytes_of(1, layout.page_bytes())).unwrap();
        let kv = layout.kv_offset(2).unwrap() + 64 * 5;
        let pooled = layout.pooled_offset(1).unwrap() + 3;
        let byte_at = |offset: usize| {
            // SAFETY: `offset` lies inside the mapping.
            let place = unsafe { region.address().unwrap().add(offset) };
            // SAFETY: the byte is mapped readable, and no other thread uses it.
            unsafe { place.read() }
        };
        let bytes = bytes_of(1, layout.page_bytes());
        assert_eq!(byte_at(kv), bytes[2 * 64 * 5]);
        assert_eq!(byte_at(pooled), bytes[layout.page_bytes() - 3]);
    }

    #[test]
    fn a_loan_holds_the_region_open_and_refuses_what_is_not_a_page() {
        let layout = layout(2);
        let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default()).unwrap();
        let loan = region.lend_pages(&layout).unwrap();
        assert!(region.close().is_err());
        let mut page = vec![0; layout.page_bytes()];
        let error = loan.read(2, &mut page).unwrap_err();
        assert_eq!(error.to_string(), "page: found 2, needed 0 to 1");
        assert!(loan.write(0, &page[1..]).is_err());
        drop(loan);
        region.close().unwrap();
        assert!(region.lend_pages(&layout).is_err());
        let small = HostRegion::create(4096, &RegionOptions::default()).unwrap();
        assert!(small.lend_pages(&layout).is_err());
    }
}
