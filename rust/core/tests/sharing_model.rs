//! Sequences that share prompts, rest and come back, against plain lists of values: whatever moves
//! between the host pool and a lower tier, the values under every page table are those written.

#[path = "support/sharing_run.rs"]
mod sharing_run;
mod support;

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use sharing_run::{NUM_PROMPTS, Run};

#[derive(Debug, Clone)]
enum Op {
    Open { prompt: usize, tokens: u32, max_new: u32 },
    Append { pick: Index, num_tokens: u32, are_told: bool },
    Truncate { pick: Index, num_tokens: u32 },
    Fork { pick: Index, length: Index, max_new: u32 },
    Close { pick: Index },
    Preempt { pick: Index },
    Resume { pick: Index },
    Evict { count: usize },
    Demote { count: usize, completed: usize },
    LeaveBelow { count: usize },
    LoseBelow { pick: Index },
}

fn op() -> impl Strategy<Value = Op> {
    let pick = any::<Index>;
    prop_oneof![
        5 => (0..NUM_PROMPTS, 1..500_u32, 0..200_u32)
            .prop_map(|(prompt, tokens, max_new)| Op::Open { prompt, tokens, max_new }),
        9 => (pick(), 1..260_u32, prop::bool::weighted(0.9))
            .prop_map(|(pick, num_tokens, are_told)| Op::Append { pick, num_tokens, are_told }),
        2 => (pick(), 1..90_u32).prop_map(|(pick, num_tokens)| Op::Truncate { pick, num_tokens }),
        2 => (pick(), pick(), 1..150_u32)
            .prop_map(|(pick, length, max_new)| Op::Fork { pick, length, max_new }),
        3 => pick().prop_map(|pick| Op::Close { pick }),
        4 => pick().prop_map(|pick| Op::Preempt { pick }),
        4 => pick().prop_map(|pick| Op::Resume { pick }),
        1 => (1..5_usize).prop_map(|count| Op::Evict { count }),
        4 => (1..9_usize, 0..9_usize)
            .prop_map(|(count, completed)| Op::Demote { count, completed }),
        1 => (1..4_usize).prop_map(|count| Op::LeaveBelow { count }),
        1 => pick().prop_map(|pick| Op::LoseBelow { pick }),
    ]
}

fn apply(run: &mut Run, op: &Op) {
    let active = run.pick_active();
    match *op {
        Op::Open { prompt, tokens, max_new } => run.open(prompt, tokens, max_new),
        Op::Evict { count } => run.evict(count),
        Op::Demote { count, completed } => run.demote(count, completed),
        Op::LeaveBelow { count } => run.leave_below(count),
        Op::LoseBelow { pick } => run.lose_below(pick),
        Op::Resume { pick } => run.resume(pick),
        Op::Close { pick } => run.close(pick),
        _ if active.is_empty() => {}
        Op::Append { pick, num_tokens, are_told } => {
            run.append(*pick.get(&active), num_tokens, are_told);
        }
        Op::Truncate { pick, num_tokens } => run.truncate(*pick.get(&active), num_tokens),
        Op::Fork { pick, length, max_new } => run.fork(*pick.get(&active), length, max_new),
        Op::Preempt { pick } => run.preempt(*pick.get(&active)),
    }
}

fn lives() -> u32 {
    std::env::var("LIVES").ok().and_then(|lives| lives.parse().ok()).unwrap_or(2000)
}

fn check(ops: &[Op]) {
    let mut run = Run::new();
    for op in ops {
        apply(&mut run, op);
        run.check_same();
    }
    run.finish();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 80, rng_seed: RngSeed::Fixed(6), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn sequences_read_what_they_wrote_wherever_it_was(ops in prop::collection::vec(op(), 1..90)) {
        check(&ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: lives(), rng_seed: RngSeed::Fixed(7), failure_persistence: None, ..Default::default()
    })]

    /// Case 2, at a tenth of its size unless `LIVES=20000` asks for all of it.
    #[test]
    #[ignore = "long lives: minutes"]
    fn sequences_read_what_they_wrote_in_full(ops in prop::collection::vec(op(), 1..400)) {
        check(&ops);
    }
}
