//! Tiers that fail, hang, lie or are full: deadlines hold, nothing leaks, no byte is wrong.

#[path = "support/file_pages.rs"]
mod file_pages;
#[path = "support/hierarchy_rig.rs"]
mod hierarchy_rig;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use file_pages::Scratch;
use hierarchy_rig::{LIMITS, Rig, far, file, remote, state, within};
use hisparse_core::hierarchy::{Condition, Hierarchy, HierarchyLimits};
use hisparse_core::prefix::{HostShelf, LowerTier, PrefixTable, Shelf};
use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTier, FileTierOptions, Occasion,
};
use hisparse_core::tier::{
    BreakerLimits, Deadline, DrawBy, FaultPlan, FaultTier, MemoryTier, PageHeader, PageIdentity,
    PageTier, Stored, TierUsage, VerifiedTier,
};
use hisparse_core::{Error, ErrorKind, PageAllocator, Result, TenantId};
use prefix_pages::{LEAF_FIRST, headers, table};

/// A pool that is full at the call numbered `fails_in`, counted down; 0 = never.
#[derive(Debug)]
struct FailingShelf {
    inner: HostShelf,
    full: PageAllocator,
    fails_in: Arc<AtomicUsize>,
}

impl Shelf for FailingShelf {
    fn parts(&mut self) -> (&mut PageAllocator, &mut PrefixTable) {
        let (pool, table) = self.inner.parts();
        let left = self.fails_in.load(Ordering::Relaxed);
        self.fails_in.store(left.saturating_sub(1), Ordering::Relaxed);
        (if left == 1 { &mut self.full } else { pool }, table)
    }
}

/// A tier of which the call numbered `fails_in` fails, counted down; 0 = never.
struct FailingTier {
    inner: MemoryTier,
    fails_in: Arc<AtomicUsize>,
}

impl PageTier for FailingTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        self.inner.put(page, bytes, deadline)
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        let count_down = |left: usize| Some(left.saturating_sub(1));
        let left = self.fails_in.fetch_update(Ordering::Relaxed, Ordering::Relaxed, count_down);
        if left == Ok(1) {
            into.fill(0xbd);
            return Err(Error::TierIo { tier: "failing", call: "get", text: "asked to".into() });
        }
        self.inner.get(identity, into, deadline)
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.inner.holds(identity, deadline)
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.inner.remove(identity, deadline)
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.inner.flush(deadline)
    }

    fn usage(&self) -> TierUsage {
        self.inner.usage()
    }

    fn keeps_deadlines(&self) -> bool {
        true
    }
}

/// Case 5: every n-th call under the pool's lock finds it full while 64 pages come up.
#[test]
fn no_pin_leaks_when_the_host_pool_is_full_at_any_point_of_a_load() {
    let fails_in = Arc::new(AtomicUsize::new(0));
    let mut full = PageAllocator::new(64).unwrap();
    full.allocate(TenantId::DEFAULT, 64).unwrap();
    full.add_tenant(64).unwrap();
    let inner = HostShelf::new(PageAllocator::new(64).unwrap(), table(128, LEAF_FIRST));
    let rig = Rig::over(64, FailingShelf { inner, full, fails_in: Arc::clone(&fails_in) });
    let hierarchy = rig.limited(vec![file(Arc::new(MemoryTier::new(1 << 24)))], ALONE);
    let pages = rig.publish(1, 64);
    hierarchy.make_room(64, far()).unwrap();
    let mut num_refused = 0;
    for nth in 1..=200 {
        let lease = rig.lease(&pages);
        // the calls of a load that take pages: its 64 completions come between them
        fails_in.store(nth, Ordering::Relaxed);
        let loaded = hierarchy.load(&lease, 0..64, 0, far());
        fails_in.store(0, Ordering::Relaxed);
        num_refused += usize::from(loaded.is_err());
        rig.check_bytes(&lease, &pages);
        drop(lease);
        let stats = rig.directory.stats().unwrap();
        assert_eq!((stats.pins, stats.promoting, stats.pages), (0, 0, 64), "n = {nth}");
        let lease = rig.lease(&pages);
        assert_eq!(hierarchy.load(&lease, 0..64, 0, far()).unwrap().pages, 64, "n = {nth}");
        assert_eq!(rig.check_bytes(&lease, &pages), 64);
        drop(lease);
        rig.check_rest();
        hierarchy.make_room(64, far()).unwrap();
    }
    assert!(num_refused > 0, "no allocation was hit");
}

/// Case 5: the n-th get fails while 64 pages come up.
#[test]
fn no_pin_leaks_when_any_get_of_a_load_fails() {
    let fails_in = Arc::new(AtomicUsize::new(0));
    let inner = MemoryTier::new(1 << 24);
    let rig = Rig::new(64);
    let tier = FailingTier { inner, fails_in: Arc::clone(&fails_in) };
    let hierarchy = rig.limited(vec![file(Arc::new(tier))], ALONE);
    let pages = rig.publish(1, 64);
    hierarchy.make_room(64, far()).unwrap();
    for nth in 1..=200 {
        fails_in.store(nth, Ordering::Relaxed);
        let lease = rig.lease(&pages);
        let loaded = hierarchy.load(&lease, 0..64, 0, far()).unwrap();
        let expected = if nth <= 64 { (nth - 1, 1) } else { (64, 0) };
        assert_eq!((loaded.pages, loaded.failed), expected, "n = {nth}");
        assert_eq!(rig.check_bytes(&lease, &pages), loaded.pages);
        drop(lease);
        fails_in.store(0, Ordering::Relaxed);
        let stats = rig.directory.stats().unwrap();
        assert_eq!((stats.pins, stats.promoting, stats.pages), (0, 0, 64), "n = {nth}");
        let lease = rig.lease(&pages);
        assert_eq!(hierarchy.load(&lease, 0..64, 0, far()).unwrap().pages, 64, "n = {nth}");
        drop(lease);
        rig.check_rest();
        hierarchy.make_room(64, far()).unwrap();
    }
}

/// No thread but the caller's, and a breaker that does not open at one failure a round.
const ALONE: HierarchyLimits = HierarchyLimits {
    num_threads: 0,
    breaker: BreakerLimits { failures: 1000, ..LIMITS.breaker },
    ..LIMITS
};

fn failing_files(scratch: &Scratch, segments: u64) -> (Arc<FileTier>, Failpoints) {
    let failpoints = Failpoints::default();
    let options = FileTierOptions { failpoints: failpoints.clone(), ..scratch.options(segments) };
    (Arc::new(FileTier::open(options).expect("a new directory").0), failpoints)
}

/// Waits for the breaker to try again, until `done` says that the tier serves.
fn wait_for(hierarchy: &Hierarchy, condition: Condition, mut touch: impl FnMut()) {
    let begin = Instant::now();
    while state(hierarchy, LowerTier::File).condition != condition {
        assert!(begin.elapsed() < Duration::from_secs(60), "never {condition:?}");
        std::thread::sleep(Duration::from_millis(5));
        touch();
    }
}

/// Case 10: a disk that is full or broken leaves the host pool serving, and comes back.
#[test]
fn a_broken_disk_degrades_to_the_host_pool_and_recovers() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let (rig, scratch) = (Rig::new(16), Scratch::new("broken"));
        let (files, failpoints) = failing_files(&scratch, 16);
        let hierarchy = rig.limited(vec![file(files.clone())], BRISK);
        let pages = rig.publish(1, 12);
        failpoints.arm(Failpoint::HalfWrite, FailAction::Errno(errno), Occasion::Always);
        for _ in 0..6 {
            let error = hierarchy.make_room(8, far()).unwrap_err();
            assert_eq!(error.to_string(), "host pool full: need 8 pages, 4 free of 16");
        }
        let condition = state(&hierarchy, LowerTier::File).condition;
        let expected = if errno == libc::EIO { Condition::Degraded } else { Condition::Full };
        assert_eq!(condition, expected);
        let lease = rig.lease(&pages);
        assert_eq!(rig.check_bytes(&lease, &pages), 12, "host hits are unaffected");
        assert_eq!(files.usage().pages, 0, "no partial page is visible");
        drop(lease);
        failpoints.disarm();
        wait_for(&hierarchy, Condition::Serving, || {
            let _ = hierarchy.make_room(8, far());
        });
        assert_eq!(hierarchy.make_room(16, far()), Ok(16));
        let lease = rig.lease(&pages);
        assert_eq!(hierarchy.load(&lease, 0..12, 0, far()).unwrap().pages, 12);
        assert_eq!(rig.check_bytes(&lease, &pages), 12);
        drop(lease);
        rig.check_rest();
    }
}

const BRISK: HierarchyLimits = HierarchyLimits {
    breaker: BreakerLimits {
        failures: 3,
        window: Duration::from_secs(60),
        probe_every: Duration::from_millis(20),
    },
    ..LIMITS
};

/// Case 10: while the disk is full or broken, pages go to the remote tier at once.
#[test]
fn a_broken_disk_is_passed_over_for_the_remote_tier() {
    let (rig, scratch) = (Rig::new(16), Scratch::new("passed-over"));
    let (files, failpoints) = failing_files(&scratch, 16);
    let shared = Arc::new(MemoryTier::new(1 << 24));
    let hierarchy = rig.limited(vec![file(files), remote(shared.clone())], BRISK);
    failpoints.arm(Failpoint::BeforeWrite, FailAction::Errno(libc::EIO), Occasion::Always);
    let pages = rig.publish(1, 16);
    assert_eq!(hierarchy.make_room(16, far()), Ok(16));
    assert_eq!(shared.usage().pages, 16);
    let lease = rig.lease(&pages);
    assert_eq!(hierarchy.load(&lease, 0..16, 0, far()).unwrap().pages, 16);
    assert_eq!(rig.check_bytes(&lease, &pages), 16);
}

/// Case 10 with one write in twenty failing: every page is somewhere, whole.
#[test]
fn with_one_call_in_twenty_failing_no_page_is_lost_or_wrong() {
    let (rig, scratch) = (Rig::new(32), Scratch::new("rate"));
    let (files, failpoints) = failing_files(&scratch, 64);
    let limits = HierarchyLimits { breaker: ALONE.breaker, ..LIMITS };
    let hierarchy = rig.limited(vec![file(files)], limits);
    for (seed, point) in (0..).zip([Failpoint::BeforeWrite, Failpoint::HalfWrite]) {
        let chance = Occasion::Chance { one_in: 20, seed };
        failpoints.arm(point, FailAction::Errno(libc::EIO), chance);
    }
    let mut all = Vec::new();
    for seed in 1..=12 {
        all.push(rig.publish(seed, 16));
        // a round in which every page fails frees nothing, and says so
        (0..10).find(|_| hierarchy.make_room(32, far()).is_ok()).expect("one in twenty fails");
    }
    failpoints.disarm();
    for pages in &all {
        let lease = rig.lease(pages);
        assert_eq!(hierarchy.load(&lease, 0..16, 0, far()).unwrap().pages, 16);
        assert_eq!(rig.check_bytes(&lease, pages), 16);
        drop(lease);
        hierarchy.make_room(32, far()).unwrap();
    }
    assert!(state(&hierarchy, LowerTier::File).counts.failed > 0);
    rig.check_rest();
}

/// Case 11: a slow disk holds nobody beyond the deadline, is spared, and tried again.
#[test]
fn a_slow_disk_keeps_deadlines_opens_the_breaker_and_comes_back() {
    let (rig, scratch) = (Rig::new(32), Scratch::new("slow"));
    let (files, failpoints) = failing_files(&scratch, 16);
    let hierarchy = rig.limited(vec![file(files)], BRISK);
    let below = rig.publish(1, 8);
    hierarchy.make_room(32, far()).unwrap();
    let resident = rig.publish(2, 8);
    let slow = FailAction::Sleep(Duration::from_millis(1500));
    failpoints.arm(Failpoint::BeforeRead, slow, Occasion::Always);
    for _ in 0..4 {
        let lease = rig.lease(&below);
        let begin = Instant::now();
        let loaded = hierarchy.load(&lease, 0..8, 0, within(50)).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
        assert_eq!(loaded.pages, 0);
        let hits = rig.lease(&resident);
        assert_eq!(rig.check_bytes(&hits, &resident), 8);
    }
    assert_eq!(state(&hierarchy, LowerTier::File).condition, Condition::Degraded);
    assert_eq!(rig.directory.stats().unwrap().pins, 0);
    failpoints.disarm();
    let try_again = || {
        let lease = rig.lease(&below);
        let _ = hierarchy.load(&lease, 0..8, 0, far());
    };
    wait_for(&hierarchy, Condition::Serving, try_again);
    let lease = rig.lease(&below);
    assert_eq!(hierarchy.load(&lease, 0..8, 0, far()).unwrap().pages, 8);
    assert_eq!(rig.check_bytes(&lease, &below), 8);
    drop(lease);
    rig.check_rest();
}

/// Case 11: a tier that hangs without a deadline of its own is guarded by threads.
#[test]
fn a_tier_that_hangs_is_left_at_the_deadline_and_close_does_not_wait_for_it() {
    let rig = Rig::new(8);
    let plan = FaultPlan { slow: 1_000_000, delay: Duration::from_secs(2), ..FaultPlan::default() };
    let hanging = FaultTier::new(MemoryTier::new(1 << 24), plan).unwrap();
    let hierarchy = rig.limited(vec![remote(Arc::new(hanging))], BRISK);
    let pages = rig.publish(1, 8);
    let begin = Instant::now();
    let error = hierarchy.make_room(8, within(100)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlinePassed);
    drop(hierarchy);
    assert!(begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
    let lease = rig.lease(&pages);
    assert_eq!(rig.check_bytes(&lease, &pages), 8, "the pages stay");
    drop(lease);
    rig.check_rest();
}

/// Case 13: a remote store that says that it has a page, and gives nothing or rubbish.
#[test]
fn a_remote_tier_that_lies_costs_pages_but_never_a_wrong_byte() {
    let plan = FaultPlan {
        seed: 7,
        draw_by: DrawBy::Call,
        vanished: 100_000,
        hollow: 100_000,
        short: 20_000,
        corrupt_read: 50_000,
        corrupt_stored: 50_000,
        ..FaultPlan::default()
    };
    let rig = Rig::new(32);
    let liar = VerifiedTier::new(FaultTier::new(MemoryTier::new(1 << 24), plan).unwrap());
    let limits = HierarchyLimits { breaker: ALONE.breaker, ..LIMITS };
    let hierarchy = rig.limited(vec![remote(Arc::new(liar))], limits);
    let (mut num_loaded, mut num_missed, mut num_failed) = (0, 0, 0);
    for round in 0..60 {
        let seed = 1 + round % 5;
        let lease = rig.lease(&headers("a", seed, 16));
        let num_known = lease.found().len();
        let loaded = hierarchy.load(&lease, 0..num_known, 0, far()).unwrap();
        let pages = headers("a", seed, num_known);
        assert!(rig.check_bytes(&lease, &pages) >= loaded.pages);
        num_loaded += loaded.promoted;
        num_missed += loaded.missed;
        num_failed += loaded.failed;
        drop(lease);
        rig.publish(seed, 16); // what was lost is computed again
        hierarchy.make_room(32, far()).unwrap();
    }
    assert!(num_loaded > 100 && num_missed > 50 && num_failed > 0, "{num_loaded} {num_missed}");
    let counts = state(&hierarchy, LowerTier::Remote).counts;
    assert_eq!((counts.missed, counts.promoted), (num_missed as u64, num_loaded as u64));
    rig.check_rest();
}

#[test]
fn a_drain_that_has_no_time_for_every_page_makes_those_durable_that_it_moved() {
    let (rig, scratch) = (Rig::new(1000), Scratch::new("drain"));
    let (files, failpoints) = failing_files(&scratch, 256);
    let hierarchy = rig.limited(vec![file(files.clone())], LIMITS);
    rig.publish(1, 1000);
    let slow = FailAction::Sleep(Duration::from_millis(5));
    failpoints.arm(Failpoint::BeforeWrite, slow, Occasion::Always);
    let drained = hierarchy.drain(within(1000)).expect("time is left for the flush");
    assert!(drained.moved > 0 && drained.left > 0, "{drained:?}");
    assert!(files.num_syncs() > 0);
}

#[test]
fn one_load_that_runs_out_of_time_does_not_make_a_sound_disk_degraded() {
    let (rig, scratch) = (Rig::new(128), Scratch::new("late"));
    let (files, failpoints) = failing_files(&scratch, 64);
    let limits = HierarchyLimits { num_threads: 8, ..BRISK };
    let hierarchy = rig.limited(vec![file(files)], limits);
    let pages = rig.publish(1, 128);
    hierarchy.make_room(128, far()).unwrap();
    let slow = FailAction::Sleep(Duration::from_millis(200));
    failpoints.arm(Failpoint::BeforeRead, slow, Occasion::Always);
    let lease = rig.lease(&pages);
    let loaded = hierarchy.load(&lease, 0..128, 0, within(100)).unwrap();
    assert!(loaded.failed > 3, "as many calls as there are threads: {loaded:?}");
    assert_eq!(state(&hierarchy, LowerTier::File).condition, Condition::Serving);
    for _ in 0..3 {
        hierarchy.load(&lease, 0..128, 0, within(20)).unwrap();
    }
    assert_eq!(state(&hierarchy, LowerTier::File).condition, Condition::Degraded);
}
