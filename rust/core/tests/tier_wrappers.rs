//! Tiers that lie or fail, and verification, which must not let it show.

#[path = "support/tier_pages.rs"]
mod tier_pages;

use std::collections::HashMap;
use std::time::Duration;

use hisparse_core::tier::{
    Deadline, DrawBy, FaultCounts, FaultPlan, FaultTier, MemoryTier, PageTier, Stored, VerifiedTier,
};
use hisparse_core::{Error, ErrorKind};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use tier_pages::{bytes_of, far, faulty, get, header, identity, put};

const NUM_PAGES: u32 = 2000;

#[derive(Debug, Clone)]
enum Op {
    Put(u32, usize),
    Get(u32, usize),
    Remove(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop::sample::select(vec![0_usize, 10, 30, 100]);
    prop_oneof![
        (0..12_u32, len.clone()).prop_map(|(page, len)| Op::Put(page, len)),
        (0..12_u32, len).prop_map(|(page, len)| Op::Get(page, len)),
        (0..12_u32).prop_map(Op::Remove),
    ]
}

const CAPACITY: u64 = 250;

fn apply(op: &Op, tier: &MemoryTier, model: &mut HashMap<u32, Vec<u8>>) {
    match *op {
        Op::Put(page, len) => {
            let bytes = vec![u8::try_from(len).expect("short"); len];
            let used: usize = model.values().map(Vec::len).sum();
            let (need, free) = (len as u64, CAPACITY - used as u64);
            let expected = match model.contains_key(&page) {
                true => Ok(Stored::Already),
                false if need > free => {
                    Err(Error::TierFull { tier: "memory tier", need, free, capacity: CAPACITY })
                }
                false => Ok(Stored::New),
            };
            assert_eq!(tier.put(&header(page), &bytes, far()), expected);
            if expected == Ok(Stored::New) {
                model.insert(page, bytes);
            }
        }
        Op::Get(page, len) => {
            let mut into = vec![0; len];
            let expected = model.get(&page).filter(|bytes| bytes.len() == len);
            let is_found = tier.get(&identity(page), &mut into, far()).expect("in time");
            assert_eq!(is_found.then_some(&into), expected);
        }
        Op::Remove(page) => {
            let found = tier.remove(&identity(page), far());
            assert_eq!(found, Ok(model.remove(&page).is_some()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400, rng_seed: RngSeed::Fixed(9), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_memory_tier_equals_a_map_with_a_capacity(ops in prop::collection::vec(op(), 1..80)) {
        let (tier, mut model) = (MemoryTier::new(CAPACITY), HashMap::new());
        for op in &ops {
            apply(op, &tier, &mut model);
            let used: usize = model.values().map(Vec::len).sum();
            let usage = tier.usage();
            assert_eq!((usage.pages, usage.used_bytes), (model.len() as u64, used as u64));
        }
    }
}

#[test]
fn a_call_after_its_deadline_is_refused_and_changes_nothing() {
    let tier = MemoryTier::new(1000);
    let passed = Deadline::after(Duration::ZERO);
    let found = tier.put(&header(1), &bytes_of(1), passed);
    assert_eq!(found, Err(Error::DeadlinePassed { call: "put" }));
    assert_eq!(tier.usage().pages, 0);
}

/// Puts every page and gets it three times; the hits and misses. Every hit has the right bytes.
fn exercise(tier: &VerifiedTier<FaultTier<MemoryTier>>) -> (u32, u32) {
    let (mut hits, mut misses) = (0, 0);
    (0..NUM_PAGES).for_each(|page| {
        let _ = put(tier, page); // may fail by plan
    });
    for page in (0..3).flat_map(|_| 0..NUM_PAGES) {
        match get(tier, page) {
            Ok(Some(bytes)) => {
                assert_eq!(bytes, bytes_of(page), "wrong bytes of page {page}");
                hits += 1;
            }
            Ok(None) => misses += 1,
            Err(error) => assert_eq!(error.kind(), ErrorKind::TierDown),
        }
    }
    (hits, misses)
}

#[test]
fn pages_that_exist_and_then_are_empty_are_misses_never_empty_hits() {
    let plan = FaultPlan { seed: 13, vanished: 100_000, ..Default::default() };
    let tier = faulty(plan);
    let (hits, misses) = exercise(&tier);
    let injected = tier.inner().injected().vanished;
    assert_eq!((u64::from(misses), hits + misses), (injected, 3 * NUM_PAGES));
    assert!((500..700).contains(&injected), "{injected} of 6000 at 10 %");
    assert!((0..NUM_PAGES).all(|page| tier.holds(&identity(page), far()) == Ok(true)));
}

#[test]
fn a_tier_that_says_yes_and_writes_nothing_is_caught() {
    let tier = faulty(FaultPlan { seed: 14, hollow: 100_000, ..Default::default() });
    let (_, misses) = exercise(&tier);
    let hollow = tier.inner().injected().hollow;
    assert!(hollow > 300 && u64::from(misses) >= hollow, "{misses} misses of {hollow}");
    assert_eq!(tier.usage().corrupt, hollow);
}

#[test]
fn no_page_of_an_earlier_call_passes_for_an_answer_that_wrote_nothing() {
    let tier = faulty(FaultPlan { seed: 17, hollow: 500_000, ..Default::default() });
    let (mut num_hits, mut num_hollow) = (0, 0);
    for _ in 0..100 {
        put(&tier, 1).expect("no errors planned"); // a hollow answer has removed it
        let found = get(&tier, 1).expect("no errors planned");
        let hollow = tier.inner().injected().hollow;
        assert_eq!(found.is_none(), hollow > num_hollow);
        num_hits += u32::from(found.is_some());
        num_hollow = hollow;
    }
    assert!(num_hits > 30 && num_hollow > 30, "{num_hits} hits, {num_hollow} hollow");
}

#[test]
fn every_flipped_bit_is_caught_and_counted() {
    let (seed, corrupt_read, corrupt_stored) = (15, 80_000, 50_000);
    let tier = faulty(FaultPlan { seed, corrupt_read, corrupt_stored, ..Default::default() });
    exercise(&tier);
    let injected = tier.inner().injected();
    assert!(injected.corrupt_read > 300 && injected.corrupt_stored > 60, "{injected:?}");
    let usage = tier.usage();
    // a page that was stored flipped may be flipped once more when it is read
    let caught = usage.corrupt;
    let (least, most) = (injected.corrupt_read, injected.corrupt_read + injected.corrupt_stored);
    assert!((least..=most).contains(&caught), "{caught} caught of {injected:?}");
}

#[test]
fn a_corrupt_page_can_be_put_again() {
    let plan = FaultPlan { corrupt_stored: 500_000, seed: 16, ..Default::default() };
    let tier = faulty(plan);
    let mut num_retries = 0;
    for page in 0..100 {
        assert_eq!(put(&tier, page), Ok(Stored::New));
        while get(&tier, page).expect("no errors planned").is_none() {
            assert_eq!(put(&tier, page), Ok(Stored::New), "page {page} is wedged");
            num_retries += 1;
        }
    }
    assert_eq!(num_retries, tier.inner().injected().corrupt_stored);
}

#[test]
fn all_faults_together_give_no_wrong_byte() {
    let rate = 60_000;
    for seed in 0..4 {
        let draw_by = if seed % 2 == 0 { DrawBy::Call } else { DrawBy::Identity };
        let tier = faulty(FaultPlan {
            seed,
            draw_by,
            vanished: rate,
            hollow: rate,
            short: rate,
            corrupt_read: rate,
            corrupt_stored: rate,
            error: rate,
            ..Default::default()
        });
        let (hits, _) = exercise(&tier);
        assert!(hits > NUM_PAGES, "{hits} hits");
    }
}

#[test]
fn a_seed_gives_the_same_faults_and_another_seed_others() {
    let injected = |seed, draw_by| -> FaultCounts {
        let plan =
            FaultPlan { seed, draw_by, vanished: 70_000, error: 30_000, ..Default::default() };
        let tier = faulty(plan);
        exercise(&tier);
        tier.inner().injected()
    };
    for draw_by in [DrawBy::Call, DrawBy::Identity] {
        assert_eq!(injected(5, draw_by), injected(5, draw_by));
        assert_ne!(injected(5, draw_by), injected(6, draw_by));
    }
}

#[test]
fn an_unlucky_identity_fails_each_time() {
    let plan = FaultPlan { draw_by: DrawBy::Identity, error: 200_000, ..Default::default() };
    let tier = FaultTier::new(MemoryTier::new(1 << 24), plan).expect("legal rates");
    let fails = |page| put(&tier, page).is_err();
    let first: Vec<bool> = (0..500).map(fails).collect();
    let again: Vec<bool> = (0..500).rev().map(fails).rev().collect();
    assert_eq!(first, again);
    assert!(first.contains(&true) && first.contains(&false));
}

#[test]
fn a_short_read_is_an_error_and_a_slow_call_comes_late() {
    let plan = FaultPlan { short: 1_000_000, ..Default::default() };
    let tier = FaultTier::new(MemoryTier::new(1 << 20), plan).expect("legal rates");
    put(&tier, 1).expect("puts are not short");
    let text = get(&tier, 1).unwrap_err().to_string();
    assert_eq!(text, "faulty tier: get failed: 48 of 96 bytes read");

    let delay = Duration::from_millis(20);
    let plan = FaultPlan { slow: 1_000_000, delay, ..Default::default() };
    let tier = FaultTier::new(MemoryTier::new(1 << 20), plan).expect("legal rates");
    let soon = Deadline::after(delay / 2);
    assert_eq!(tier.flush(soon), Err(Error::DeadlinePassed { call: "flush" }));
    assert_eq!(tier.injected().slow, 1);
    assert!(FaultTier::new(MemoryTier::new(1), FaultPlan { slow: 1_000_001, ..plan }).is_err());
}
