//! The range arena against one flag an id.

use hisparse_core::{Error, ErrorKind, IdRange, RangeArena};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[derive(Debug, Clone)]
enum Op {
    Claim(u32),
    Release(prop::sample::Index),
    ReleaseAny(IdRange),
}

fn op() -> impl Strategy<Value = Op> {
    let range = (0..220_u32, 1..40_u32).prop_map(|(base, count)| IdRange { base, count });
    prop_oneof![
        5 => (0..60_u32).prop_map(Op::Claim),
        4 => any::<prop::sample::Index>().prop_map(Op::Release),
        1 => range.prop_map(Op::ReleaseAny),
    ]
}

struct Model {
    is_out: Vec<bool>,
    ranges: Vec<IdRange>,
    unit: usize,
}

impl Model {
    /// Lowest run of free ids that is long enough, found by trying every base.
    fn first_fit(&self, count: u32) -> Option<IdRange> {
        let count = (count as usize).next_multiple_of(self.unit);
        let fits = |&base: &usize| self.is_out[base..base + count].iter().all(|out| !out);
        let last_base = self.is_out.len().checked_sub(count)?;
        let base = (0..=last_base).step_by(self.unit).find(fits)?;
        let id = |n: usize| u32::try_from(n).expect("a small arena");
        Some(IdRange { base: id(base), count: id(count) })
    }

    fn mark(&mut self, range: IdRange, out: bool) {
        let (base, count) = (range.base as usize, range.count as usize);
        self.is_out[base..base + count].fill(out);
    }

    fn is_all_out(&self, range: IdRange) -> bool {
        let (base, count) = (range.base as usize, range.count as usize);
        self.is_out.get(base..base + count).is_some_and(|ids| ids.iter().all(|&out| out))
    }
}

fn apply(op: &Op, arena: &mut RangeArena, model: &mut Model) {
    match op {
        Op::Claim(0) => assert_eq!(arena.claim(0), Ok(IdRange::default())),
        Op::Claim(count) => match (arena.claim(*count), model.first_fit(*count)) {
            (Ok(found), expected) => {
                assert_eq!(Some(found), expected);
                model.mark(found, true);
                model.ranges.push(found);
            }
            (Err(error), expected) => {
                assert_eq!(expected, None);
                assert_eq!(error.kind(), ErrorKind::DeviceArenaFull);
            }
        },
        Op::Release(pick) if !model.ranges.is_empty() => {
            let range = model.ranges.swap_remove(pick.index(model.ranges.len()));
            arena.release(range).expect("the range is out");
            model.mark(range, false);
        }
        Op::ReleaseAny(range) if !model.is_all_out(*range) => {
            let error = arena.release(*range).expect_err("some of the ids are free");
            assert!(matches!(error, Error::WrongState { .. } | Error::OutOfRange { .. }));
        }
        Op::Release(_) | Op::ReleaseAny(_) => {}
    }
}

fn run(capacity: u32, unit: u32, ops: &[Op]) {
    let mut arena = RangeArena::new("slots", capacity, unit).expect("legal numbers");
    let is_out = vec![false; arena.capacity() as usize];
    let mut model = Model { is_out, ranges: Vec::new(), unit: unit as usize };
    for op in ops {
        apply(op, &mut arena, &mut model);
        arena.check_integrity().expect("every step leaves a sound arena");
        let used = model.is_out.iter().filter(|&&out| out).count();
        assert_eq!(arena.num_used() as usize, used);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400, rng_seed: RngSeed::Fixed(2), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_arena_equals_first_fit_over_flags(ops in prop::collection::vec(op(), 1..80)) {
        run(200, 1, &ops);
    }

    #[test]
    fn an_arena_of_units_equals_first_fit_over_flags(ops in prop::collection::vec(op(), 1..80)) {
        run(210, 16, &ops);
    }
}
