//! The directory against a map of pages, which follows its decisions as another rank would.

#[path = "support/prefix_expect.rs"]
mod prefix_expect;
#[path = "support/prefix_moves.rs"]
mod prefix_moves;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;
#[path = "support/prefix_run.rs"]
mod prefix_run;
#[path = "support/prefix_times.rs"]
mod prefix_times;

use hisparse_core::eviction::Lru;
use hisparse_core::prefix::LowerTier;
use prefix_pages::LEAF_FIRST;
use prefix_run::{Order, Run};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngSeed, TestRunner};

#[derive(Debug, Clone)]
enum Op {
    Register,
    Prefill { chain: usize, num_pages: usize, owner: usize, ttl_ms: u64 },
    Match { chain: usize, owner: usize, ttl_ms: u64 },
    Publish { pick: Index },
    DropHolding { pick: Index },
    Share { pick: Index },
    EndLease { pick: Index, by_drop: bool },
    UseEnded { pick: usize },
    Evict { count: usize },
    Demote { count: usize },
    StepDown { pick: Index, tier: Option<LowerTier> },
    Promote { pick: Index, first: usize, end: usize },
    StepUp { pick: Index, completes: bool },
    Found { chain: usize, at: usize, tier: LowerTier },
    Lost { chain: usize, at: usize, tier: LowerTier },
    Advance { by_ms: u64, beats: usize },
}

fn op() -> impl Strategy<Value = Op> {
    let pick = any::<Index>;
    let (chain, at, owner, ttl) = (0..5_usize, 0..6_usize, 0..4_usize, 1..200_000_u64);
    let tier = || prop_oneof![Just(LowerTier::File), Just(LowerTier::Remote)];
    prop_oneof![
        1 => Just(Op::Register),
        6 => (chain.clone(), 1..7_usize, owner.clone(), ttl.clone()).prop_map(
            |(chain, num_pages, owner, ttl_ms)| Op::Prefill { chain, num_pages, owner, ttl_ms }
        ),
        2 => (chain.clone(), owner, ttl)
            .prop_map(|(chain, owner, ttl_ms)| Op::Match { chain, owner, ttl_ms }),
        6 => pick().prop_map(|pick| Op::Publish { pick }),
        4 => pick().prop_map(|pick| Op::DropHolding { pick }),
        1 => pick().prop_map(|pick| Op::Share { pick }),
        4 => (pick(), any::<bool>()).prop_map(|(pick, by_drop)| Op::EndLease { pick, by_drop }),
        1 => any::<usize>().prop_map(|pick| Op::UseEnded { pick }),
        1 => (0..4_usize).prop_map(|count| Op::Evict { count }),
        3 => (0..6_usize).prop_map(|count| Op::Demote { count }),
        5 => (pick(), prop::option::weighted(0.8, tier()))
            .prop_map(|(pick, tier)| Op::StepDown { pick, tier }),
        3 => (pick(), 0..3_usize, 0..7_usize)
            .prop_map(|(pick, first, end)| Op::Promote { pick, first, end }),
        3 => (pick(), any::<bool>()).prop_map(|(pick, completes)| Op::StepUp { pick, completes }),
        1 => (chain.clone(), at.clone(), tier())
            .prop_map(|(chain, at, tier)| Op::Found { chain, at, tier }),
        1 => (chain, at, tier()).prop_map(|(chain, at, tier)| Op::Lost { chain, at, tier }),
        1 => (0..70_000_u64, any::<usize>()).prop_map(|(by_ms, beats)| Op::Advance { by_ms, beats }),
    ]
}

fn apply(op: &Op, run: &mut Run) {
    let (holdings, leases) = (run.holdings.len(), run.leases.len());
    let (down, up) = (run.down.len(), run.up.len());
    match op {
        Op::Register => run.register(),
        Op::Prefill { chain, num_pages, owner, ttl_ms } => {
            run.prefill(*chain, *num_pages, *owner, *ttl_ms);
        }
        Op::Match { chain, owner, ttl_ms } => run.match_only(*chain, *owner, *ttl_ms),
        Op::Publish { pick } if holdings > 0 => run.publish(pick.index(holdings)),
        Op::DropHolding { pick } if holdings > 0 => run.drop_holding(pick.index(holdings)),
        Op::Share { pick } if leases > 0 => run.share(pick.index(leases)),
        Op::EndLease { pick, by_drop } if leases > 0 => {
            run.end_lease(pick.index(leases), *by_drop);
        }
        Op::UseEnded { pick } => run.use_ended(*pick),
        Op::Evict { count } => run.evict(*count),
        Op::Demote { count } => run.demote(*count),
        Op::StepDown { pick, tier } if down > 0 => run.step_down(pick.index(down), *tier),
        Op::Promote { pick, first, end } if leases > 0 => {
            run.promote(pick.index(leases), *first, *end);
        }
        Op::StepUp { pick, completes } if up > 0 => run.step_up(pick.index(up), *completes),
        Op::Found { chain, at, tier } => run.found_below(*chain, *at, *tier),
        Op::Lost { chain, at, tier } => run.lost_below(*chain, *at, *tier),
        Op::Advance { by_ms, beats } => run.advance(*by_ms, *beats),
        _ => {} // there is none to pick from
    }
}

/// Compares after every operation of `cases` sequences of up to `max_ops` operations.
fn compare(order: Order, cases: u32, max_ops: usize, seed: u64) {
    let rng_seed = RngSeed::Fixed(seed);
    let config =
        ProptestConfig { cases, rng_seed, failure_persistence: None, ..Default::default() };
    let sequences = prop::collection::vec(op(), 1..=max_ops);
    let outcome = TestRunner::new(config).run(&sequences, |ops| {
        let mut run = Run::new(order);
        run.register();
        for op in &ops {
            apply(op, &mut run);
            run.check_same();
        }
        run.finish();
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

const LRU: Order = Order { make: |keys| Ok(Box::new(Lru::new(keys)?)), takes_any_idle: true };
const LEAVES: Order = Order { make: LEAF_FIRST, takes_any_idle: false };

#[test]
fn the_directory_equals_a_map_of_pages() {
    compare(LRU, 150, 120, 7);
    compare(LEAVES, 150, 120, 8);
}

#[test]
#[ignore = "the full size: minutes"]
fn the_directory_equals_a_map_of_pages_in_full() {
    compare(LRU, 10_000, 400, 11);
    compare(LEAVES, 10_000, 400, 12);
}
