//! Case 7, scaled to a hundredth: the pool refuses at admission, and never while a sequence grows.

use hisparse_core::sync::Arc;
use hisparse_core::{
    DeviceCapacity, DeviceSlots, ErrorKind, HostLayout, HostRegion, LayoutShape, Manager,
    PAGE_TOKENS, RegionOptions, SequenceHandle,
};

const PROMPT: u32 = 400;
const GROWTH: u32 = 200;
const NUM_ADMITTED: u32 = 100;
const DEVICE: DeviceSlots = DeviceSlots { slots: 1, window_slots: 0 };

/// A pool for a hundred sequences, and device ranges for two hundred.
fn manager() -> Manager {
    let pages_each = (PROMPT + GROWTH).div_ceil(PAGE_TOKENS);
    let shape = LayoutShape {
        num_layers: 1,
        num_anchors: 1,
        kv_row_bytes: 8,
        index_row_bytes: 8,
        num_pages: NUM_ADMITTED * pages_each,
    };
    let layout = HostLayout::new(shape).expect("a legal shape");
    let region =
        HostRegion::create(layout.num_bytes(), &RegionOptions::default()).expect("a small region");
    let capacity = DeviceCapacity {
        slots: 200,
        window_slots: 0,
        table_tokens: 200 * (PROMPT + GROWTH),
        table_blocks: 200 * 5,
        pooled_keys: 200 * 64,
        sequences: 200,
    };
    Manager::new(Arc::new(region), layout, capacity, 128).expect("the region is large enough")
}

fn admit(manager: &Manager, count: u32) -> Vec<SequenceHandle> {
    let open = |_| manager.open_sequence(PROMPT, GROWTH, DEVICE).ok();
    (0..count).filter_map(open).collect()
}

fn grow(manager: &Manager, sequences: &[SequenceHandle], num_tokens: u32) {
    for &sequence in sequences {
        manager.append(sequence, num_tokens).expect("an admitted append never fails");
    }
}

#[test]
fn a_pool_for_half_of_the_sessions_refuses_the_others_before_they_start() {
    let manager = manager();
    let mut open = admit(&manager, 200);
    assert_eq!(open.len(), NUM_ADMITTED as usize);
    let error = manager.open_sequence(PROMPT, GROWTH, DEVICE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostPoolFull);
    assert_eq!(error.to_string(), "host pool full: need 10 pages, 0 free of 1000");
    assert_eq!(manager.stats().unwrap().refused, 101);

    grow(&manager, &open, PROMPT);
    (0..GROWTH / 2).for_each(|_| grow(&manager, &open, 1));

    // fifty are retracted in the middle of decoding; fifty others take their places
    for sequence in open.drain(..50) {
        manager.close(sequence).unwrap();
    }
    let late = admit(&manager, 100);
    assert_eq!(late.len(), 50);
    grow(&manager, &late, PROMPT);
    (0..GROWTH / 2).for_each(|_| grow(&manager, &open, 1));
    (0..GROWTH).for_each(|_| grow(&manager, &late, 1));
    manager.check_integrity().unwrap();

    for sequence in open.into_iter().chain(late) {
        manager.close(sequence).unwrap();
    }
    assert_eq!(manager.stats().unwrap().host_pages_free, 1000);
}
