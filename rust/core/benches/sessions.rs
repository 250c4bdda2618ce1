//! `cargo bench -p hisparse-core --bench sessions`: what pages, sessions and steps cost, in JSON lines.
//!
//! `metadata`: bytes of a directory's table a page. `sessions`: bytes of an open sequence of 16 pages
//! with an owner and a lease on as many; `prompts`: of one that was told its tokens, its pages shared.
//! `lookup`: microseconds in which the 16 pages of one of 10,000 sessions are found and leased, by Zipf's
//! law. `plan`: microseconds in which a step of 256 sequences, one row each, gets room for its rows and the
//! tables of where everything lies.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Instant;

use hisparse_core::eviction::{EvictionPolicy, LeafFirst, Lru, S3Fifo};
use hisparse_core::prefix::{
    OwnerId, OwnerLimits, PrefixDirectory, PrefixLease, PrefixLimits, PrefixTable,
};
use hisparse_core::sync::Arc;
use hisparse_core::tier::{IdentityChain, PageHeader, PageIdentity, TenantKey};
use hisparse_core::{
    DeviceCapacity, DeviceSlots, HostLayout, HostRegion, LayoutShape, Manager, PAGE_TOKENS,
    PageAllocator, RegionOptions, Result, SequenceHandle, TenantId,
};

const TABLE_PAGES: u32 = 100_000;
const NUM_SESSIONS: u32 = 10_000;
const NUM_PREFIXES: u32 = 100;
const SESSION_PAGES: u32 = 16;
const SESSION_TOKENS: u32 = SESSION_PAGES * PAGE_TOKENS;
const NUM_ANCHORS: usize = 4;
const NUM_LOOKUPS: usize = 200_000;
const ZIPF: f64 = 0.9;
const PLAN_SEQUENCES: u32 = 256;
const PLAN_STEPS: u32 = 512;

/// Counts the bytes that are allocated and not freed.
struct Counting;

static HELD_BYTES: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed on unchanged; the count is beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD_BYTES.fetch_add(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HELD_BYTES.fetch_sub(layout.size().cast_signed(), Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type MakeOrder = fn(u32) -> Result<Box<dyn EvictionPolicy>>;

const ORDERS: [(&str, MakeOrder); 3] = [
    ("lru", |keys| Ok(Box::new(Lru::new(keys)?))),
    ("s3_fifo", |keys| Ok(Box::new(S3Fifo::new(keys)?))),
    ("leaf_first", |keys| Ok(Box::new(LeafFirst::new(keys)?))),
];

fn main() -> Result<()> {
    for (order, make_order) in ORDERS {
        let (table, bytes) = counted(|| table(make_order, TABLE_PAGES))?;
        let bytes_per_page = per(bytes, TABLE_PAGES);
        report(&format!(
            r#""case": "metadata", "order": "{order}", "pages": {TABLE_PAGES}, "bytes": {bytes_per_page:.1}"#
        ));
        drop(table);
    }
    for (case, bytes) in [("sessions", session_bytes()?), ("prompts", prompt_bytes()?)] {
        report(&format!(r#""case": "{case}", "sessions": {NUM_SESSIONS}, "bytes": {bytes:.1}"#));
    }
    let microseconds = lookup_us()?;
    report(&format!(
        r#""case": "lookup", "sessions": {NUM_SESSIONS}, "microseconds": {microseconds:.2?}"#
    ));
    let microseconds = plan_us()?;
    report(&format!(
        r#""case": "plan", "sequences": {PLAN_SEQUENCES}, "microseconds": {microseconds:.1?}"#
    ));
    Ok(())
}

/// What `make` made, and the bytes that it holds.
fn counted<T>(make: impl FnOnce() -> Result<T>) -> Result<(T, isize)> {
    let before = HELD_BYTES.load(Ordering::Relaxed);
    let kept = make()?;
    Ok((kept, HELD_BYTES.load(Ordering::Relaxed) - before))
}

fn table(make_order: MakeOrder, max_pages: u32) -> Result<PrefixTable> {
    let limits = PrefixLimits { max_pages, page_bytes: 1 << 20, max_decisions: 4096 };
    PrefixTable::new(limits, make_order)
}

type Session = (SequenceHandle, OwnerId, PrefixLease);

fn session_bytes() -> Result<f64> {
    let (directory, tenant) = stocked_directory(NUM_PREFIXES)?;
    let manager = manager(NUM_SESSIONS, SESSION_TOKENS)?;
    let open = |number| open_session(&manager, &directory, tenant, number);
    let (sessions, bytes) = counted(|| (0..NUM_SESSIONS).map(open).collect::<Result<Vec<_>>>())?;
    drop(sessions);
    Ok(per(bytes, NUM_SESSIONS))
}

fn stocked_directory(num_prefixes: u32) -> Result<(PrefixDirectory, TenantId)> {
    let num_pages = num_prefixes * SESSION_PAGES;
    let (pool, table) = (PageAllocator::new(num_pages)?, table(ORDERS[2].1, num_pages)?);
    let directory = PrefixDirectory::new(pool, table, OwnerLimits::with_seed(1))?;
    let tenant = directory.add_tenant(num_pages.into())?;
    for first in 0..num_prefixes {
        directory.take(tenant, SESSION_PAGES as usize)?.publish(0, &headers(first)?)?;
    }
    Ok((directory, tenant))
}

fn open_session(
    manager: &Manager,
    directory: &PrefixDirectory,
    tenant: TenantId,
    number: u32,
) -> Result<Session> {
    let device = DeviceSlots { slots: 8, window_slots: 4 };
    let sequence = manager.open_sequence(SESSION_TOKENS, 0, device)?;
    manager.append(sequence, SESSION_TOKENS)?;
    let owner = directory.register(0)?;
    let pages = headers(number % NUM_PREFIXES)?;
    let chain: Vec<PageIdentity> = pages.iter().map(|page| page.identity).collect();
    Ok((sequence, owner, directory.match_prefix(&chain, tenant, owner, u64::MAX)?))
}

fn prompt_bytes() -> Result<f64> {
    let manager = manager(NUM_SESSIONS, SESSION_TOKENS)?;
    let open = |number| open_prompt(&manager, number);
    let (sequences, bytes) = counted(|| (0..NUM_SESSIONS).map(open).collect::<Result<Vec<_>>>())?;
    drop(sequences);
    Ok(per(bytes, NUM_SESSIONS))
}

/// A sequence that shares nothing yet, each of whose full pages others may have.
fn open_prompt(manager: &Manager, number: u32) -> Result<SequenceHandle> {
    let tokens: Vec<u32> = (0..SESSION_TOKENS).map(|token| number + token).collect();
    let device = DeviceSlots { slots: 8, window_slots: 4 };
    let sequence = manager.open_prompt(&manager.match_prompt("", &tokens)?, 0, 0, device)?;
    manager.append(sequence, SESSION_TOKENS)?;
    manager.note_tokens(sequence, 0, &tokens)?;
    for anchor in 0..NUM_ANCHORS {
        manager.advance_pooled(sequence, anchor, SESSION_TOKENS)?;
    }
    manager.publish(sequence)?;
    Ok(sequence)
}

/// Times of lookups among the pages of 10,000 sessions; each ends its lease again.
fn lookup_us() -> Result<Vec<f64>> {
    let (directory, tenant) = stocked_directory(NUM_SESSIONS)?;
    let owner = directory.register(0)?;
    let chain = |first| -> Result<Vec<PageIdentity>> {
        Ok(headers(first)?.iter().map(|page| page.identity).collect())
    };
    let chains = (0..NUM_SESSIONS).map(chain).collect::<Result<Vec<_>>>()?;
    let mut sum = 0.0;
    let shares: Vec<f64> = (1..=NUM_SESSIONS)
        .map(|rank| {
            sum += f64::from(rank).powf(-ZIPF);
            sum
        })
        .collect();
    let mut draw = 1_u32;
    (0..NUM_LOOKUPS)
        .map(|_| {
            draw = draw.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); // Numerical Recipes
            let place = sum * f64::from(draw) / 2.0_f64.powi(32);
            let chain = &chains[shares.partition_point(|&share| share < place)];
            let start = Instant::now();
            let lease = directory.match_prefix(chain, tenant, owner, u64::MAX)?;
            let took = start.elapsed();
            assert_eq!(lease.found().len(), chain.len(), "every page is there");
            Ok(took.as_secs_f64() * 1e6)
        })
        .collect()
}

/// Times of the steps in which sequences of 1 page to 16 pages grow by a token each.
fn plan_us() -> Result<Vec<f64>> {
    let manager = manager(PLAN_SEQUENCES, SESSION_TOKENS + PLAN_STEPS)?;
    let device = DeviceSlots { slots: 8, window_slots: 4 };
    let open = |number| {
        let sequence = manager.open_sequence(SESSION_TOKENS, PLAN_STEPS, device)?;
        manager.append(sequence, 1 + number * 37 % SESSION_TOKENS)?;
        Ok(sequence)
    };
    let sequences = (0..PLAN_SEQUENCES).map(open).collect::<Result<Vec<_>>>()?;
    let rows: Vec<_> = sequences.into_iter().map(|sequence| (sequence, 1)).collect();
    (0..PLAN_STEPS)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(manager.append_rows(&rows, None)?);
            std::hint::black_box(manager.plan_step(&rows, rows.len())?);
            Ok(start.elapsed().as_secs_f64() * 1e6)
        })
        .collect()
}

fn manager(sequences: u32, tokens: u32) -> Result<Manager> {
    let shape = LayoutShape {
        num_layers: 1,
        num_anchors: NUM_ANCHORS,
        kv_row_bytes: 8,
        index_row_bytes: 8,
        num_pages: sequences * tokens.div_ceil(PAGE_TOKENS),
    };
    let layout = HostLayout::new(shape)?;
    let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default())?;
    let capacity = DeviceCapacity {
        slots: sequences * 8,
        window_slots: sequences * 4,
        table_tokens: sequences * tokens,
        table_blocks: sequences * tokens.div_ceil(128),
        pooled_keys: sequences * 64,
        sequences,
    };
    Manager::new(Arc::new(region), layout, capacity, 128)
}

fn headers(first: u32) -> Result<Vec<PageHeader>> {
    let chain = IdentityChain::new(TenantKey::derive(&[1; 32], "bench"), "model", "layout");
    let mut parent = chain.root();
    let next = |_| {
        let identity = chain.page(&parent, &[first])?;
        let page = PageHeader { identity, parent, num_tokens: PAGE_TOKENS };
        parent = identity;
        Ok(page)
    };
    (0..SESSION_PAGES).map(next).collect()
}

#[allow(clippy::cast_precision_loss, reason = "a size needs four digits")]
fn per(bytes: isize, count: u32) -> f64 {
    bytes as f64 / f64::from(count)
}

fn report(fields: &str) {
    let _ = writeln!(std::io::stdout(), "{{{fields}}}");
}
