//! What a page and a session cost in memory of this process: case 19's limit, and 200 B a page.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use hisparse_core::prefix::{OwnerId, PrefixDirectory, PrefixLease, TenantId};
use hisparse_core::sync::Arc;
use hisparse_core::{
    DeviceCapacity, DeviceSlots, HostLayout, HostRegion, LayoutShape, Manager, PAGE_TOKENS,
    PageAllocator, RegionOptions, SequenceHandle,
};
use prefix_pages::{FOREVER, LEAF_FIRST, OWNERS, headers, identities, table};

const NUM_SESSIONS: u32 = 10_000;
const SESSION_PAGES: u32 = 16;
const SESSION_TOKENS: u32 = SESSION_PAGES * PAGE_TOKENS;

/// Counts the bytes that are allocated and not freed.
struct Counting;

static HELD_BYTES: AtomicIsize = AtomicIsize::new(0);

fn held_bytes() -> isize {
    HELD_BYTES.load(Ordering::Relaxed)
}

fn count(bytes: usize, sign: isize) {
    HELD_BYTES.fetch_add(sign * bytes.cast_signed(), Ordering::Relaxed);
}

// SAFETY: every call is passed on unchanged; the count is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn manager() -> Manager {
    let shape = LayoutShape {
        num_layers: 1,
        num_anchors: 4,
        kv_row_bytes: 8,
        index_row_bytes: 8,
        num_pages: NUM_SESSIONS * SESSION_PAGES,
    };
    let layout = HostLayout::new(shape).expect("a legal shape");
    let region =
        HostRegion::create(layout.num_bytes(), &RegionOptions::default()).expect("a small region");
    let capacity = DeviceCapacity {
        slots: NUM_SESSIONS * 8,
        window_slots: NUM_SESSIONS * 4,
        table_tokens: NUM_SESSIONS * SESSION_TOKENS,
        table_blocks: NUM_SESSIONS * SESSION_TOKENS / 128,
        pooled_keys: NUM_SESSIONS * 64,
        sequences: NUM_SESSIONS,
    };
    Manager::new(Arc::new(region), layout, capacity, 128).expect("the region is large enough")
}

type Session = (SequenceHandle, OwnerId, PrefixLease);

fn open(manager: &Manager, directory: &PrefixDirectory, tenant: TenantId, number: u32) -> Session {
    let device = DeviceSlots { slots: 8, window_slots: 4 };
    let sequence =
        manager.open_sequence(SESSION_TOKENS, 0, device).expect("room for every session");
    manager.append(sequence, SESSION_TOKENS).expect("admitted");
    let owner = directory.register(0).expect("numbers are left");
    let chain = identities(&headers("a", number % 100, SESSION_PAGES as usize));
    let lease = directory.match_prefix(&chain, tenant, owner, FOREVER).expect("the owner lives");
    assert_eq!(lease.found().len(), SESSION_PAGES as usize);
    (sequence, owner, lease)
}

/// One test, so that no other allocates meanwhile.
#[test]
fn a_page_takes_200_bytes_and_a_session_2_kib() {
    let num_pages = 100 * SESSION_PAGES;
    let before = held_bytes();
    let table = table(100_000, LEAF_FIRST);
    let per_page = (held_bytes() - before) / 100_000;
    assert!(per_page <= 200, "{per_page} bytes a page, its policies' share included");

    let pool = PageAllocator::new(num_pages).unwrap();
    let directory = PrefixDirectory::new(pool, table, OWNERS).unwrap();
    let tenant = directory.add_tenant(num_pages.into()).unwrap();
    for seed in 0..100 {
        let pages = headers("a", seed, SESSION_PAGES as usize);
        directory.take(tenant, pages.len()).unwrap().publish(0, &pages).unwrap();
    }
    let manager = manager();
    let before = held_bytes();
    let sessions: Vec<Session> =
        (0..NUM_SESSIONS).map(|number| open(&manager, &directory, tenant, number)).collect();
    let per_session = (held_bytes() - before) / isize::try_from(NUM_SESSIONS).unwrap();
    assert!(per_session <= 2048, "{per_session} bytes a session");
    drop(sessions);
    assert_eq!(directory.stats().unwrap().pins, 0);
}
