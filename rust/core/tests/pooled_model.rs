//! Pooled-key metadata against queues of tokens, folded one by one.

use std::collections::VecDeque;

use hisparse_core::{ClosedBlocks, Error, PooledKeys};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const BLOCK_TOKENS: u32 = 64;
const NUM_ANCHORS: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    Grow(u32),
    Advance { anchor: usize, num_tokens: u32 },
    Truncate(prop::sample::Index),
    SwitchToFork(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1..200_u32).prop_map(Op::Grow),
        6 => (0..NUM_ANCHORS, 1..150_u32)
            .prop_map(|(anchor, num_tokens)| Op::Advance { anchor, num_tokens }),
        2 => any::<prop::sample::Index>().prop_map(Op::Truncate),
        1 => any::<prop::sample::Index>().prop_map(Op::SwitchToFork),
    ]
}

/// Closed blocks, and the tokens of the open one.
#[derive(Debug, Clone, Default)]
struct Anchor {
    closed: Vec<VecDeque<u32>>,
    open: VecDeque<u32>,
}

impl Anchor {
    fn folded(&self) -> u32 {
        self.closed.iter().chain([&self.open]).map(|block| count(block.len())).sum()
    }

    fn fold(&mut self) {
        self.open.push_back(self.folded());
        if self.open.len() == BLOCK_TOKENS as usize {
            self.closed.push(std::mem::take(&mut self.open));
        }
    }

    fn unfold(&mut self) {
        if self.open.is_empty() {
            self.open = self.closed.pop().expect("a token is folded");
        }
        self.open.pop_back();
    }

    fn truncate(&mut self, length: u32) {
        while self.folded() > length {
            self.unfold();
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).expect("a short sequence")
}

fn advance(keys: &mut PooledKeys, anchors: &mut [Anchor], length: u32, op: (usize, u32)) {
    let (anchor, num_tokens) = op;
    let model = &mut anchors[anchor];
    let found = keys.advance(anchor, num_tokens, length);
    if model.folded() + num_tokens > length {
        assert!(matches!(found, Err(Error::OutOfRange { .. })));
        return;
    }
    let first_block = count(model.closed.len());
    (0..num_tokens).for_each(|_| model.fold());
    let num_blocks = count(model.closed.len()) - first_block;
    let open_tokens = count(model.open.len());
    assert_eq!(found, Ok(ClosedBlocks { first_block, num_blocks, open_tokens }));
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300, rng_seed: RngSeed::Fixed(4), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_metadata_equals_folding_token_by_token(ops in prop::collection::vec(op(), 1..60)) {
        let mut keys = PooledKeys::new(NUM_ANCHORS, BLOCK_TOKENS).expect("legal");
        let mut anchors = vec![Anchor::default(); NUM_ANCHORS];
        let mut length = 0;
        for op in &ops {
            match op {
                Op::Grow(num_tokens) => length += num_tokens,
                Op::Advance { anchor, num_tokens } => {
                    advance(&mut keys, &mut anchors, length, (*anchor, *num_tokens));
                }
                Op::Truncate(cut) | Op::SwitchToFork(cut) => {
                    length = count(cut.index(length as usize + 1));
                    match op {
                        Op::Truncate(_) => keys.truncate(length),
                        _ => keys = keys.fork(length),
                    }
                    for anchor in &mut anchors {
 anchor.truncate(length);
 }
                }
            }
            keys.check_integrity(length).expect("every step leaves sound metadata");
            for (i, anchor) in anchors.iter().enumerate() {
                let expected = (count(anchor.closed.len()), count(anchor.open.len()));
                prop_assert_eq!(keys.state(i), Ok(expected));
            }
        }
    }
}
