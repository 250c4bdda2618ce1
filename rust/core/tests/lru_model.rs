//! The slot LRU against its definition, sorted anew for every miss.

use std::collections::{BTreeSet, HashMap};

use hisparse_core::{Error, Resolution, SlotLru};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[derive(Debug, Clone)]
enum Op {
    Resolve { items: Vec<i32>, stamp: i32, protect_since: i32 },
    ReleaseFrom(i32),
}

fn op() -> impl Strategy<Value = Op> {
    let items = prop::collection::vec(-1..40_i32, 0..12);
    prop_oneof![
        9 => (items, 0..30_i32, 0..30_i32)
            .prop_map(|(items, stamp, protect_since)| Op::Resolve { items, stamp, protect_since }),
        1 => (0..45_i32).prop_map(Op::ReleaseFrom),
    ]
}

/// Slot -> (item, stamp); a slot that is not in the map is free.
#[derive(Debug, Clone, Default)]
struct Model {
    used: HashMap<usize, (i32, i32)>,
    num_slots: usize,
}

impl Model {
    fn slot_of(&self, item: i32) -> Option<usize> {
        self.used.iter().find(|(_, held)| held.0 == item).map(|(&slot, _)| slot)
    }

    fn oldest_victim(&self, union: &BTreeSet<i32>, protect_since: i32) -> Option<(i32, usize)> {
        (0..self.num_slots)
            .map(|slot| (self.used.get(&slot).copied().unwrap_or((-1, -1)), slot))
            .filter(|&((item, stamp), _)| stamp < protect_since && !union.contains(&item))
            .map(|((_, stamp), slot)| (stamp, slot))
            .min()
    }

    /// None if a miss finds no victim.
    fn resolve(&mut self, items: &[i32], stamp: i32, protect_since: i32) -> Option<Resolution> {
        let union: BTreeSet<i32> = items.iter().copied().filter(|&item| item >= 0).collect();
        let mut done = Resolution::default();
        for &item in &union {
            if let Some(slot) = self.slot_of(item) {
                done.hits.push(item);
                let held = self.used.get_mut(&slot)?;
                held.1 = held.1.max(stamp);
            }
        }
        for &item in union.iter().filter(|item| !done.hits.contains(item)) {
            let (_, slot) = self.oldest_victim(&union, protect_since)?;
            let old = self.used.insert(slot, (item, stamp));
            done.misses.push(item);
            done.victims.push(i32::try_from(slot).ok()?);
            done.evicted.push(old.map_or(-1, |held| held.0));
        }
        let slot = |&item: &i32| self.slot_of(item).map_or(-1, |s| i32::try_from(s).unwrap_or(-2));
        done.slots = items.iter().map(slot).collect();
        Some(done)
    }
}

fn apply(op: &Op, lru: &mut SlotLru, model: &mut Model) {
    match op {
        Op::Resolve { items, stamp, protect_since } => {
            let before = model.clone();
            let expected = model.resolve(items, *stamp, *protect_since);
            match lru.resolve(items, *stamp, *protect_since) {
                Ok(found) => assert_eq!(Some(found), expected),
                Err(error) => {
                    assert!(matches!(error, Error::TooFewVictims { .. }));
                    assert_eq!(expected, None);
                    *model = before;
                }
            }
        }
        Op::ReleaseFrom(first_item) => {
            lru.release_from(*first_item).expect("no item is negative");
            model.used.retain(|_, held| held.0 < *first_item);
        }
    }
}

fn check_same(lru: &SlotLru, model: &Model) {
    lru.check_integrity().expect("every step leaves a sound LRU");
    for slot in 0..model.num_slots {
        let held = model.used.get(&slot).copied().unwrap_or((-1, -1));
        assert_eq!((lru.item_in(slot), lru.stamp_of(slot)), (Ok(held.0), Ok(held.1)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 600, rng_seed: RngSeed::Fixed(3), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_lru_equals_its_definition(
        num_slots in 1..16_usize,
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let mut lru = SlotLru::new(num_slots).expect("legal");
        let mut model = Model { num_slots, ..Default::default() };
        for op in &ops {
            apply(op, &mut lru, &mut model);
            check_same(&lru, &model);
        }
    }
}
