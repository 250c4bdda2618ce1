//! Where every array lies in a host region: KV rows per layer, index rows and pooled keys per anchor.

use crate::error::{Result, check_range};
use crate::page::{MAX_PAGES, PAGE_TOKENS};

const ARRAY_ALIGN_BYTES: usize = 4096;
const MAX_LAYERS: usize = 1024;
const MAX_ROW_BYTES: usize = 1 << 16;

/// The numbers that a [`HostLayout`] follows from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayoutShape {
    /// Layers that store KV rows.
    pub num_layers: usize,
    /// Layers that store index rows and pooled keys; 0 where selections come from outside.
    pub num_anchors: usize,
    /// Bytes of one token's KV row of one layer.
    pub kv_row_bytes: usize,
    /// Bytes of one token's index row of one anchor, and of one pooled key.
    pub index_row_bytes: usize,
    /// Pages of [`PAGE_TOKENS`] tokens.
    pub num_pages: u32,
}

/// Byte offsets of all arrays of a region, each at a multiple of 4096.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLayout {
    shape: LayoutShape,
    kv_array_bytes: usize,
    index_array_bytes: usize,
    pooled_array_bytes: usize,
}

/// One array of `num_pages` equal pieces, one piece a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PagedArray {
    pub(crate) offset: usize,
    pub(crate) page_bytes: usize,
}

impl PagedArray {
    /// Where a page's piece begins.
    pub(crate) fn at(self, page: u32) -> usize {
        self.offset + page as usize * self.page_bytes
    }
}

impl HostLayout {
    /// Lays out `shape`; every count is checked, so no offset overflows.
    pub fn new(shape: LayoutShape) -> Result<Self> {
        check_range("num_layers", shape.num_layers, 1, MAX_LAYERS)?;
        check_range("num_anchors", shape.num_anchors, 0, MAX_LAYERS)?;
        check_range("kv_row_bytes", shape.kv_row_bytes, 1, MAX_ROW_BYTES)?;
        check_range("index_row_bytes", shape.index_row_bytes, 1, MAX_ROW_BYTES)?;
        check_range("num_pages", shape.num_pages, 1, MAX_PAGES)?;
        let (pages, tokens) = (shape.num_pages as usize, PAGE_TOKENS as usize);
        let aligned = |bytes: usize| bytes.next_multiple_of(ARRAY_ALIGN_BYTES);
        Ok(Self {
            shape,
            kv_array_bytes: aligned(pages * tokens * shape.kv_row_bytes),
            index_array_bytes: aligned(pages * tokens * shape.index_row_bytes),
            pooled_array_bytes: aligned(pages * shape.index_row_bytes),
        })
    }

    /// The numbers that this layout follows from.
    pub fn shape(&self) -> LayoutShape {
        self.shape
    }

    /// Bytes of all arrays: the least size of a region.
    pub fn num_bytes(&self) -> usize {
        self.pooled_start() + self.shape.num_anchors * self.pooled_array_bytes
    }

    /// Bytes of one page over all layers and anchors.
    pub fn page_bytes(&self) -> usize {
        self.arrays().map(|array| array.page_bytes).sum()
    }

    /// Where the rows `[num_pages * 64, kv_row_bytes]` of a layer begin.
    pub fn kv_offset(&self, layer: usize) -> Result<usize> {
        check_index("layer", layer, self.shape.num_layers)?;
        Ok(layer * self.kv_array_bytes)
    }

    /// Where the index pages `[num_pages, 64 * index_row_bytes]` of an anchor begin.
    pub fn index_offset(&self, anchor: usize) -> Result<usize> {
        check_index("anchor", anchor, self.shape.num_anchors)?;
        Ok(self.index_start() + anchor * self.index_array_bytes)
    }

    /// Where the pooled keys `[num_pages, index_row_bytes]` of an anchor begin; a block's key lies
    /// at the block's last page.
    pub fn pooled_offset(&self, anchor: usize) -> Result<usize> {
        check_index("anchor", anchor, self.shape.num_anchors)?;
        Ok(self.pooled_start() + anchor * self.pooled_array_bytes)
    }

    /// Every array, in the order in which they lie.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = PagedArray> {
        let (shape, tokens) = (self.shape, PAGE_TOKENS as usize);
        let (kv, index, pooled) =
            (self.kv_array_bytes, self.index_array_bytes, self.pooled_array_bytes);
        let (index_start, pooled_start) = (self.index_start(), self.pooled_start());
        let array = |offset, page_bytes| PagedArray { offset, page_bytes };
        let kv = (0..shape.num_layers).map(move |i| array(i * kv, tokens * shape.kv_row_bytes));
        let index = (0..shape.num_anchors)
            .map(move |i| array(index_start + i * index, tokens * shape.index_row_bytes));
        let pooled = (0..shape.num_anchors)
            .map(move |i| array(pooled_start + i * pooled, shape.index_row_bytes));
        kv.chain(index).chain(pooled)
    }

    fn index_start(&self) -> usize {
        self.shape.num_layers * self.kv_array_bytes
    }

    fn pooled_start(&self) -> usize {
        self.index_start() + self.shape.num_anchors * self.index_array_bytes
    }
}

/// Refuses an index outside of `0..count`.
pub(crate) fn check_index(what: &'static str, index: usize, count: usize) -> Result<()> {
    let max = i128::try_from(count).unwrap_or(i128::MAX) - 1;
    check_range(what, i128::try_from(index).unwrap_or(i128::MAX), 0, max)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> LayoutShape {
        LayoutShape {
            num_layers: 2,
            num_anchors: 1,
            kv_row_bytes: 656,
            index_row_bytes: 132,
            num_pages: 3,
        }
    }

    #[test]
    fn arrays_are_aligned_and_do_not_overlap() {
        let layout = HostLayout::new(shape()).unwrap();
        let mut end = 0;
        for array in layout.arrays() {
            assert_eq!(array.offset % 4096, 0);
            assert!(array.offset >= end);
            end = array.offset + 3 * array.page_bytes;
        }
        assert!(end <= layout.num_bytes());
        assert_eq!(layout.kv_offset(1), Ok((3 * 64 * 656_usize).next_multiple_of(4096)));
        assert_eq!(layout.page_bytes(), 2 * 64 * 656 + 64 * 132 + 132);
    }

    #[test]
    fn a_layer_beyond_the_last_is_refused() {
        let layout = HostLayout::new(shape()).unwrap();
        let error = layout.kv_offset(2).unwrap_err();
        assert_eq!(error.to_string(), "layer: found 2, needed 0 to 1");
        let none = HostLayout::new(LayoutShape { num_anchors: 0, ..shape() }).unwrap();
        let error = none.index_offset(0).unwrap_err();
        assert_eq!(error.to_string(), "anchor: found 0, needed 0 to -1");
    }

    #[test]
    fn the_largest_layout_does_not_overflow() {
        let layout = HostLayout::new(LayoutShape {
            num_layers: MAX_LAYERS,
            num_anchors: MAX_LAYERS,
            kv_row_bytes: MAX_ROW_BYTES,
            index_row_bytes: MAX_ROW_BYTES,
            num_pages: MAX_PAGES,
        });
        assert!(layout.unwrap().num_bytes() > 1 << 56);
    }
}
