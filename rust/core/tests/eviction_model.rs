//! Every eviction policy against its definition.

#[path = "support/eviction_models.rs"]
mod eviction_models;

use std::collections::HashSet;

use hisparse_core::eviction::{EvictionPolicy, LeafFirst, Lru, S3Fifo};
use hisparse_core::{Error, ErrorKind};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use eviction_models::{LeafFirstModel, LruModel, Model, NUM_KEYS, S3FifoModel};

const NUM_NAMES: u64 = 40;

#[derive(Debug, Clone)]
enum Op {
    Insert { key: u32, parent: prop::sample::Index, is_root: bool, name: u64 },
    Touch { key: u32, times: u32 },
    Remove(u32),
    Evict { count: usize, pinned: HashSet<u32>, is_batched: bool },
}

fn op() -> impl Strategy<Value = Op> {
    let pinned = prop::collection::hash_set(0..NUM_KEYS, 0..16);
    let insert = (0..NUM_KEYS + 1, any::<prop::sample::Index>(), any::<bool>(), 0..NUM_NAMES);
    prop_oneof![
        6 => insert.prop_map(|(key, parent, is_root, name)| {
            Op::Insert { key, parent, is_root, name }
        }),
        5 => (0..NUM_KEYS + 1, 1..6_u32).prop_map(|(key, times)| Op::Touch { key, times }),
        1 => (0..NUM_KEYS + 1).prop_map(Op::Remove),
        4 => (0..5_usize, pinned, any::<bool>()).prop_map(|(count, pinned, is_batched)| {
            Op::Evict { count, pinned, is_batched }
        }),
    ]
}

fn insert(op: &Op, policy: &mut dyn EvictionPolicy, model: &mut dyn Model) {
    let Op::Insert { key, parent, is_root, name } = op else { return };
    let held = model.held();
    let is_legal = *key < NUM_KEYS && !held.contains(key);
    let parent = (!is_root && !held.is_empty()).then(|| *parent.get(&held));
    let found = policy.inserted(*key, parent, *name);
    assert_eq!(found.is_ok(), is_legal, "{found:?}");
    if is_legal {
        model.insert(*key, parent, *name);
    }
}

fn apply(op: &Op, policy: &mut dyn EvictionPolicy, model: &mut dyn Model) {
    let is_held = |key: &u32, model: &dyn Model| model.held().contains(key);
    let kind = |error: Error| error.kind();
    match op {
        Op::Insert { .. } => insert(op, policy, model),
        Op::Touch { key, times } if is_held(key, model) => {
            for _ in 0..*times {
                assert_eq!(policy.touched(*key), Ok(()));
                model.touch(*key);
            }
        }
        Op::Remove(key) if is_held(key, model) => {
            assert_eq!(policy.removed(*key), Ok(()));
            model.remove(*key);
        }
        Op::Touch { key, .. } => {
            assert_eq!(policy.touched(*key).map_err(kind), Err(ErrorKind::WrongState));
        }
        Op::Remove(key) => {
            assert_eq!(policy.removed(*key).map_err(kind), Err(ErrorKind::WrongState));
        }
        Op::Evict { count, pinned, is_batched } => {
            let expected: Vec<u32> = (0..*count).map_while(|_| model.victim(pinned)).collect();
            assert_eq!(evict(policy, *count, pinned, *is_batched), expected);
        }
    }
}

fn evict(
    policy: &mut dyn EvictionPolicy,
    count: usize,
    pinned: &HashSet<u32>,
    is_batched: bool,
) -> Vec<u32> {
    let may_evict = |key: u32| !pinned.contains(&key);
    let mut victims = Vec::new();
    if is_batched {
        policy.victims(count, &may_evict, &mut victims);
    } else {
        victims.extend((0..count).map_while(|_| policy.victim(&may_evict)));
    }
    victims
}

/// What goes and is taken back at once leaves an exact policy as it was.
fn probe(policy: &mut dyn EvictionPolicy, op: usize) {
    let pinned: HashSet<u32> = (0..NUM_KEYS).filter(|&key| key as usize % 5 == op % 7).collect();
    let gone = evict(policy, op % 11, &pinned, true);
    policy.restore(&gone);
}

fn check(ops: &[Op], policy: &mut dyn EvictionPolicy, model: &mut dyn Model, is_exact: bool) {
    for (at, op) in ops.iter().enumerate() {
        apply(op, policy, model);
        if is_exact {
            probe(policy, at);
        }
        let held = model.held();
        assert_eq!(policy.num_pages(), held.len());
        (0..NUM_KEYS).for_each(|key| assert_eq!(policy.holds(key), held.contains(&key)));
    }
    let no_pins = HashSet::new();
    let expected: Vec<u32> = std::iter::from_fn(|| model.victim(&no_pins)).collect();
    assert_eq!(evict(policy, usize::MAX, &no_pins, true), expected);
    assert_eq!(policy.num_pages(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 800, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn lru_equals_its_definition(ops in prop::collection::vec(op(), 1..160)) {
        check(&ops, &mut Lru::new(NUM_KEYS).expect("legal"), &mut LruModel::default(), true);
    }

    #[test]
    fn s3_fifo_equals_its_definition(ops in prop::collection::vec(op(), 1..160)) {
        check(&ops, &mut S3Fifo::new(NUM_KEYS).expect("legal"), &mut S3FifoModel::default(), false);
    }

    #[test]
    fn leaf_first_equals_its_definition(ops in prop::collection::vec(op(), 1..160)) {
        check(&ops, &mut LeafFirst::new(NUM_KEYS).expect("legal"), &mut LeafFirstModel::default(), true);
    }
}

#[test]
fn a_pinned_leaf_keeps_every_page_before_it() {
    let mut policy = LeafFirst::new(4).expect("legal");
    for (key, parent) in [(0, None), (1, Some(0)), (2, Some(1))] {
        policy.inserted(key, parent, 0).expect("new");
    }
    assert_eq!(policy.victim(&|key| key != 2), None);
    assert_eq!(evict(&mut policy, 9, &HashSet::new(), true), [2, 1, 0]);
}

#[test]
fn a_parent_that_is_not_held_is_refused_and_nothing_changes() {
    let mut policy = LeafFirst::new(4).expect("legal");
    let error = policy.inserted(1, Some(3), 0).expect_err("3 is not held");
    assert_eq!(error.to_string(), "pages held under a key: found 0, needed 1");
    assert_eq!((policy.num_pages(), policy.holds(1)), (0, false));
}

#[test]
fn a_scan_passes_through_the_small_queue_and_leaves_used_pages_alone() {
    let mut policy = S3Fifo::new(100).expect("legal");
    for key in 0..100 {
        policy.inserted(key, None, key.into()).expect("new");
    }
    (0..80).for_each(|key| policy.touched(key).expect("held"));
    for name in 1000..2000 {
        let key = policy.victim(&|_| true).expect("a page may go");
        policy.inserted(key, None, name).expect("new");
        assert!(key >= 80, "{key} was used");
    }
}

#[test]
fn what_s3_fifo_takes_back_is_held_and_goes_next() {
    let mut policy = S3Fifo::new(20).expect("legal");
    for key in 0..20 {
        policy.inserted(key, None, key.into()).expect("new");
    }
    let gone = evict(&mut policy, 5, &HashSet::new(), true);
    policy.restore(&gone);
    assert_eq!((policy.num_pages(), policy.holds(gone[0])), (20, true));
    assert_eq!(evict(&mut policy, 5, &HashSet::new(), true), gone);
}
