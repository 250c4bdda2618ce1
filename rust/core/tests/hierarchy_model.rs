//! Random lives of pages over three tiers, against what each page's bytes have to be.
//!
//! Bytes follow from a page's identity, so every copy that a lease finds can be checked at any time.
//! As long as nothing was made to fail, every page that was published must be there, too.

#[path = "support/file_pages.rs"]
mod file_pages;
#[path = "support/hierarchy_rig.rs"]
mod hierarchy_rig;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::sync::Arc;

use file_pages::Scratch;
use hierarchy_rig::{LIMITS, Rig, far, file, remote};
use hisparse_core::hierarchy::{Hierarchy, HierarchyLimits, LowerStore};
use hisparse_core::prefix::{LowerTier, PrefixLease};
use hisparse_core::tier::file::Occasion;
use hisparse_core::tier::file::{FailAction, Failpoint, Failpoints, FileTier, FileTierOptions};
use hisparse_core::tier::{
    BreakerLimits, FaultPlan, FaultTier, MemoryTier, PageHeader, PageTier, VerifiedTier,
};
use hisparse_core::{Error, ErrorKind};
use prefix_pages::headers;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

const NUM_SEQUENCES: u32 = 6;
const MAX_PAGES: usize = 12;
const POOL_PAGES: u32 = 24;

#[derive(Debug, Clone, Copy)]
enum Op {
    Publish { sequence: u32, num_pages: usize },
    Load { sequence: u32, first: usize, num_pages: usize },
    Pin { sequence: u32 },
    Unpin { pick: usize },
    MakeRoom { num_pages: usize },
    Drain,
    Restart,
    Evict { num_pages: usize },
    Lose { sequence: u32, page: usize, tier: LowerTier },
    BreakDisk { point: Failpoint, one_in: u32 },
    MendDisk,
}

/// What no page may be lost by.
fn harmless() -> impl Strategy<Value = Op> {
    let sequence = || 0..NUM_SEQUENCES;
    prop_oneof![
        6 => (sequence(), 1..=MAX_PAGES)
            .prop_map(|(sequence, num_pages)| Op::Publish { sequence, num_pages }),
        6 => (sequence(), 0..MAX_PAGES, 1..=MAX_PAGES)
            .prop_map(|(sequence, first, num_pages)| Op::Load { sequence, first, num_pages }),
        2 => sequence().prop_map(|sequence| Op::Pin { sequence }),
        2 => (0..4_usize).prop_map(|pick| Op::Unpin { pick }),
        4 => (1..=POOL_PAGES as usize).prop_map(|num_pages| Op::MakeRoom { num_pages }),
        1 => Just(Op::Drain),
        1 => Just(Op::Restart),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let tier = prop_oneof![Just(LowerTier::File), Just(LowerTier::Remote)];
    let points = vec![Failpoint::BeforeWrite, Failpoint::HalfWrite, Failpoint::BeforeRead];
    prop_oneof![
        20 => harmless(),
        1 => (1..6_usize).prop_map(|num_pages| Op::Evict { num_pages }),
        1 => (0..NUM_SEQUENCES, 0..MAX_PAGES, tier)
            .prop_map(|(sequence, page, tier)| Op::Lose { sequence, page, tier }),
        1 => (prop::sample::select(points), 1..4_u32)
            .prop_map(|(point, one_in)| Op::BreakDisk { point, one_in }),
        2 => Just(Op::MendDisk),
    ]
}

/// One host over files and a remote store; the files outlive its restarts.
struct Life {
    leases: Vec<(PrefixLease, Vec<PageHeader>)>, // before the directory that they belong to
    hierarchy: Option<Hierarchy>,
    rig: Rig,
    files: Option<Arc<FileTier>>,
    shared: Arc<dyn PageTier>,
    scratch: Scratch,
    failpoints: Failpoints,
    lengths: [usize; NUM_SEQUENCES as usize], // pages that were published and must be held
    is_strict: bool,
}

impl Life {
    /// `lies` make the remote store lie; without them it is sound.
    fn new(lies: Option<FaultPlan>) -> Self {
        let shared: Arc<dyn PageTier> = match lies {
            None => Arc::new(MemoryTier::new(1 << 24)),
            Some(plan) => {
                let liar = FaultTier::new(MemoryTier::new(1 << 24), plan).expect("legal rates");
                Arc::new(VerifiedTier::new(liar))
            }
        };
        let mut life = Self {
            leases: Vec::new(),
            hierarchy: None,
            rig: Rig::new(POOL_PAGES),
            files: None,
            shared,
            scratch: Scratch::new("hierarchy-model"),
            failpoints: Failpoints::default(),
            lengths: [0; NUM_SEQUENCES as usize],
            is_strict: lies.is_none(),
        };
        life.start();
        life
    }

    fn start(&mut self) {
        let failpoints = self.failpoints.clone();
        // room for about 40 pages: some go on to the remote store
        let options = FileTierOptions { failpoints, ..self.scratch.options(4) };
        let files = Arc::new(FileTier::open(options).expect("sound at rest").0);
        let below: Vec<LowerStore> = vec![file(files.clone()), remote(Arc::clone(&self.shared))];
        let breaker = BreakerLimits { failures: 1000, ..LIMITS.breaker };
        let limits = HierarchyLimits { breaker, num_threads: 1, batch_pages: 3, ..LIMITS };
        self.hierarchy = Some(self.rig.limited(below, limits));
        self.files = Some(files);
    }

    fn hierarchy(&self) -> &Hierarchy {
        self.hierarchy.as_ref().expect("it is started")
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Publish { sequence, num_pages } => self.publish(sequence, num_pages),
            Op::Load { sequence, first, num_pages } => self.load(sequence, first, num_pages),
            Op::Pin { sequence } => self.pin(sequence),
            Op::Unpin { pick } => {
                let pick = pick.min(self.leases.len().saturating_sub(1));
                self.leases.drain(pick..self.leases.len().min(pick + 1));
            }
            Op::MakeRoom { num_pages } => {
                let _ = self.hierarchy().make_room(num_pages, far()); // pins may be in the way
            }
            Op::Drain => {
                let _ = self.hierarchy().drain(far()); // the disk may be broken
            }
            Op::Restart => self.restart(),
            Op::Evict { num_pages } => {
                self.is_strict = false;
                self.rig.directory.evict(num_pages).expect("nobody has panicked");
            }
            Op::Lose { sequence, page, tier } => self.lose(sequence, page, tier),
            Op::BreakDisk { point, one_in } => {
                self.is_strict = false;
                let chance = Occasion::Chance { one_in, seed: u64::from(one_in) };
                self.failpoints.arm(point, FailAction::Errno(libc::EIO), chance);
            }
            Op::MendDisk => self.failpoints.disarm(),
        }
    }

    fn publish(&mut self, sequence: u32, num_pages: usize) {
        let pages = headers("a", sequence, num_pages);
        let has_room = self.hierarchy().make_room(num_pages, far()).is_ok();
        if !has_room && self.is_strict {
            return; // taking pages would give others up for good
        }
        if self.rig.try_publish(&pages).is_ok() {
            let length = &mut self.lengths[sequence as usize];
            *length = num_pages.max(*length);
        }
    }

    fn load(&mut self, sequence: u32, first: usize, num_pages: usize) {
        let pages = headers("a", sequence, self.lengths[sequence as usize]);
        let lease = self.rig.lease(&pages);
        self.check_found(&lease, sequence);
        let found = lease.found().len();
        let first = first.min(found);
        let range = first..(first + num_pages).min(found);
        let needed = range.len();
        match self.hierarchy().load(&lease, range, 0, far()) {
            Ok(loaded) if self.is_strict => assert_eq!(loaded.pages, needed, "{loaded:?}"),
            Ok(loaded) => assert!(loaded.pages <= needed),
            Err(error) => assert!(is_full(&error), "{error}"), // too much is pinned
        }
        self.rig.check_bytes(&lease, &pages);
    }

    fn pin(&mut self, sequence: u32) {
        let pages = headers("a", sequence, self.lengths[sequence as usize]);
        let lease = self.rig.lease(&pages);
        self.check_found(&lease, sequence);
        self.leases.push((lease, pages));
    }

    fn check_found(&self, lease: &PrefixLease, sequence: u32) {
        if self.is_strict {
            assert_eq!(lease.found().len(), self.lengths[sequence as usize], "pages are lost");
        }
    }

    /// A tier loses a page without a word.
    fn lose(&mut self, sequence: u32, page: usize, tier: LowerTier) {
        self.is_strict = false;
        let page = headers("a", sequence, page + 1)[page];
        let files = self.files.clone().expect("it is started");
        let tier: &dyn PageTier = if tier == LowerTier::File { &*files } else { &*self.shared };
        let _ = tier.remove(&page.identity, far());
    }

    /// The host's memory and the remote store go, the files stay.
    fn restart(&mut self) {
        self.leases.clear();
        self.failpoints.disarm();
        let drained = self.hierarchy().drain(far());
        assert!(drained.is_ok() || !self.is_strict, "{drained:?}");
        let remote_had = self.shared.usage().pages;
        self.hierarchy = None;
        self.files = None;
        self.rig.check_rest();
        self.rig = Rig::new(POOL_PAGES);
        self.start();
        self.hierarchy().recover(far()).expect("the directory has room");
        self.is_strict &= remote_had == 0; // nobody can list a remote store
    }

    fn check(&self) {
        self.rig.directory.check_integrity().expect("sound after every step");
        for (lease, pages) in &self.leases {
            self.rig.check_bytes(lease, pages);
        }
    }

    fn end(mut self) {
        self.leases.clear();
        self.rig.check_rest();
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::HostPoolFull | ErrorKind::TierFull)
}

fn live(ops: &[Op], lies: Option<FaultPlan>) {
    let mut life = Life::new(lies);
    for &op in ops {
        life.apply(op);
        life.check();
    }
    life.end();
}

const LIES: FaultPlan = FaultPlan {
    seed: 11,
    draw_by: hisparse_core::tier::DrawBy::Call,
    vanished: 50_000,
    hollow: 50_000,
    slow: 0,
    delay: std::time::Duration::ZERO,
    short: 50_000,
    corrupt_read: 50_000,
    corrupt_stored: 50_000,
    error: 50_000,
};

/// Lives of up to `max_ops` steps, in which the bytes and the sum of all pages are checked.
fn run(ops: impl Strategy<Value = Op>, lies: Option<FaultPlan>, cases: u32, max_ops: usize) {
    let rng_seed = RngSeed::Fixed(17);
    let config =
        ProptestConfig { cases, rng_seed, failure_persistence: None, ..Default::default() };
    let runs = prop::collection::vec(ops, 1..=max_ops);
    let outcome = TestRunner::new(config).run(&runs, |ops| {
        live(&ops, lies);
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

#[test]
fn no_page_is_lost_while_nothing_fails() {
    run(harmless(), None, 40, 80);
}

#[test]
fn whatever_fails_no_byte_is_wrong_and_nothing_leaks() {
    run(any_op(), None, 40, 80);
}

#[test]
fn over_a_remote_store_that_lies_no_byte_is_wrong_and_nothing_leaks() {
    run(any_op(), Some(LIES), 40, 80);
}

#[test]
#[ignore = "the full size: minutes"]
fn all_lives_in_full() {
    run(harmless(), None, 30, 400);
    run(any_op(), None, 30, 400);
    run(any_op(), Some(LIES), 30, 400);
}
