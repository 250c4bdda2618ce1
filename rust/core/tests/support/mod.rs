//! A small manager over a real region, and tokens written to and read from its rows.
#![allow(dead_code, reason = "each test uses a part of it")]

use hisparse_core::sync::Arc;
use hisparse_core::{
    DeviceCapacity, DeviceSlots, HostLayout, HostRegion, LayoutShape, Manager, PAGE_TOKENS,
    RegionOptions,
};

pub(crate) const NUM_LAYERS: usize = 2;
pub(crate) const NUM_ANCHORS: usize = 2;
pub(crate) const BLOCK_TOKENS: u32 = 128;
const ROW_BYTES: usize = size_of::<u64>();

pub(crate) const SHAPE: LayoutShape = LayoutShape {
    num_layers: NUM_LAYERS,
    num_anchors: NUM_ANCHORS,
    kv_row_bytes: ROW_BYTES,
    index_row_bytes: ROW_BYTES,
    num_pages: 24,
};

pub(crate) const CAPACITY: DeviceCapacity = DeviceCapacity {
    slots: 40,
    window_slots: 20,
    table_tokens: 2500,
    table_blocks: 40,
    pooled_keys: 64 * 6,
    sequences: 6,
};

pub(crate) const DEVICE: DeviceSlots = DeviceSlots { slots: 8, window_slots: 4 };

/// A manager and the region that it has charge of.
pub(crate) struct Host {
    pub(crate) region: Arc<HostRegion>,
    pub(crate) layout: HostLayout,
    pub(crate) manager: Manager,
}

impl Host {
    pub(crate) fn new() -> Self {
        let layout = HostLayout::new(SHAPE).expect("a legal shape");
        let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default());
        let region = Arc::new(region.expect("a small region"));
        let manager = Manager::new(Arc::clone(&region), layout, CAPACITY, BLOCK_TOKENS);
        Self { region, layout, manager: manager.expect("the region is large enough") }
    }

    /// Writes `token` to the row of every layer and anchor.
    pub(crate) fn write_token(&self, pages: &[u32], position: u32, token: u64) {
        for offset in self.row_offsets(pages, position) {
            // SAFETY: the row lies inside the mapping.
            let row = unsafe { self.address().add(offset).cast::<[u8; ROW_BYTES]>() };
            // SAFETY: the mapping is writable, and only this thread touches it.
            unsafe { row.write(token.to_le_bytes()) };
        }
    }

    /// The token in the rows of every layer and anchor; they have to agree.
    pub(crate) fn read_token(&self, pages: &[u32], position: u32) -> u64 {
        let read = |offset| {
            // SAFETY: the row lies inside the mapping.
            let row = unsafe { self.address().add(offset).cast::<[u8; ROW_BYTES]>() };
            // SAFETY: the mapping is readable, and only this thread touches it.
            u64::from_le_bytes(unsafe { row.read() })
        };
        let tokens: Vec<u64> = self.row_offsets(pages, position).map(read).collect();
        assert!(tokens.iter().all(|&token| token == tokens[0]), "layers differ: {tokens:?}");
        tokens[0]
    }

    /// The tokens of a whole page.
    pub(crate) fn read_page(&self, page: u32) -> Vec<u64> {
        (0..PAGE_TOKENS).map(|row| self.read_token(&[page], row)).collect()
    }

    /// Writes the tokens of a whole page.
    pub(crate) fn write_page(&self, page: u32, tokens: &[u64]) {
        (0..).zip(tokens).for_each(|(row, &token)| self.write_token(&[page], row, token));
    }

    fn address(&self) -> *mut u8 {
        self.region.address().expect("the region is open").as_ptr()
    }

    fn row_offsets(&self, pages: &[u32], position: u32) -> impl Iterator<Item = usize> {
        let page = pages[(position / PAGE_TOKENS) as usize];
        let row = (page * PAGE_TOKENS + position % PAGE_TOKENS) as usize * ROW_BYTES;
        let layout = self.layout;
        let kv = (0..NUM_LAYERS).map(move |layer| layout.kv_offset(layer));
        let index = (0..NUM_ANCHORS).map(move |anchor| layout.index_offset(anchor));
        kv.chain(index).map(move |start| start.expect("the layer exists") + row)
    }
}
