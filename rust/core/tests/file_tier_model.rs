//! The file tier against a map of pages, through removals, collections and openings.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::collections::HashSet;

use file_pages::{Got, Scratch, far, get, header, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::file::{FileTier, FileTierOptions, RecoveryMode};
use hisparse_core::tier::{PageTier, Stored};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const NUM_PAGES: u64 = 40;

#[derive(Debug, Clone)]
enum Op {
    Put(u64),
    Get(u64),
    Remove(u64),
    Flush,
    Collect,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..NUM_PAGES).prop_map(Op::Put),
        6 => (0..NUM_PAGES).prop_map(Op::Get),
        10 => (0..NUM_PAGES).prop_map(Op::Remove),
        1 => Just(Op::Flush),
        2 => Just(Op::Collect),
        2 => Just(Op::Reopen),
    ]
}

/// A tier, and the pages that it must have.
struct Pair {
    options: FileTierOptions,
    tier: Option<FileTier>,
    held: HashSet<u64>,
}

impl Pair {
    fn new(options: FileTierOptions) -> Self {
        let mut pair = Self { options, tier: None, held: HashSet::new() };
        pair.reopen();
        pair
    }

    fn tier(&self) -> &FileTier {
        self.tier.as_ref().expect("it is open between two steps")
    }

    /// A close leaves nothing that a strict recovery would call damage.
    fn reopen(&mut self) {
        self.tier = None;
        let (tier, found) = FileTier::open(self.options.clone()).expect("no damage");
        assert_eq!((found.pages, found.skipped), (self.held.len() as u64, 0));
        self.tier = Some(tier);
    }

    fn put(&mut self, page: u64) {
        match put(self.tier(), page) {
            Ok(stored) => {
                let is_new = self.held.insert(page);
                assert_eq!(stored, if is_new { Stored::New } else { Stored::Already });
            }
            Err(Error::TierFull { need, free, .. }) => {
                assert!(need > free && !self.held.contains(&page));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Put(page) => self.put(page),
            Op::Get(page) => self.check(page),
            Op::Remove(page) => {
                let removed = self.tier().remove(&identity(page), far());
                assert_eq!(removed, Ok(self.held.remove(&page)));
            }
            Op::Flush => assert_eq!(self.tier().flush(far()), Ok(())),
            Op::Collect => assert!(self.tier().collect(far()).is_ok()),
            Op::Reopen => self.reopen(),
        }
        let usage = self.tier().usage();
        assert_eq!((usage.pages, usage.corrupt), (self.held.len() as u64, 0));
    }

    fn check(&self, page: u64) {
        let expected = if self.held.contains(&page) { Got::Right } else { Got::Miss };
        assert_eq!(get(self.tier(), page), Ok(expected));
        let holds = self.tier().holds(&identity(page), far());
        assert_eq!(holds, Ok(self.held.contains(&page)));
    }

    fn check_all(&self) {
        (0..NUM_PAGES).for_each(|page| self.check(page));
        let mut pages = self.tier().pages();
        pages.sort_by_key(|page| page.identity);
        let mut expected: Vec<_> = self.held.iter().map(|&page| header(page)).collect();
        expected.sort_by_key(|page| page.identity);
        assert_eq!(pages, expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40, rng_seed: RngSeed::Fixed(11), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_tier_equals_a_map(
        segments in prop_oneof![Just(3_u64), Just(5), Just(64)],
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let scratch = Scratch::new("model");
        let recovery = RecoveryMode::Strict;
        let mut pair = Pair::new(FileTierOptions { recovery, ..scratch.options(segments) });
        for op in &ops {
            pair.apply(op);
        }
        pair.check_all();
        pair.reopen();
        pair.check_all();
    }
}
