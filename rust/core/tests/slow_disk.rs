//! A disk of which one call in ten is slow and one in a thousand is very slow: case 11 of the tests
//! of tiers, with its 200 ms and 2 s cut to a tenth. Only the breaker's clock is the test's own.

#[path = "support/file_pages.rs"]
mod file_pages;
#[path = "support/hierarchy_rig.rs"]
mod hierarchy_rig;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use file_pages::{Scratch, bytes_of, far, header, identity};
use hierarchy_rig::{LIMITS, Rig, file};
use hisparse_core::Error;
use hisparse_core::hierarchy::HierarchyLimits;
use hisparse_core::tier::file::FileTier;
use hisparse_core::tier::{
    BreakerLimits, BreakerState, Clock, Deadline, FaultPlan, FaultTier, GuardLimits, GuardedTier,
    PageTier,
};

const SLOW: Duration = Duration::from_millis(20);
const VERY_SLOW: Duration = Duration::from_millis(200);
const NUM_PAGES: u64 = 8;
/// Too little for a call that is slow.
const HURRIED: Duration = Duration::from_millis(10);
/// Slow and very slow calls of a million.
const MIX: [u32; 2] = [100_000, 1_000];
/// For the machine; what is wrong here lasts for ever.
const SLACK: Duration = Duration::from_secs(5);

type Mixed = FaultTier<FaultTier<FileTier>>;

/// Files of which so many calls out of a million are slow, and so many very slow.
fn mixed(files: FileTier, seed: u64, [slow, very_slow]: [u32; 2]) -> Mixed {
    let plan = |seed, slow, delay| FaultPlan { seed, slow, delay, ..FaultPlan::default() };
    let inner = FaultTier::new(files, plan(seed, very_slow, VERY_SLOW)).expect("a legal rate");
    FaultTier::new(inner, plan(seed + 1, slow, SLOW)).expect("a legal rate")
}

/// A guarded file tier with pages 0 to 7, and a clock for its breaker that stands still.
struct Disk {
    tier: GuardedTier<Mixed>,
    now: Arc<Mutex<Instant>>,
    _scratch: Scratch,
}

/// What some calls came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    right: u64,
    late: u64,
    refused: u64,
}

impl Disk {
    fn new(name: &str, seed: u64, rates: [u32; 2]) -> Self {
        let scratch = Scratch::new(name);
        let (files, _) = scratch.open(8);
        for page in 0..NUM_PAGES {
            files.put(&header(page), &bytes_of(page), far()).expect("there is room");
        }
        let mixed = mixed(files, seed, rates);
        let now = Arc::new(Mutex::new(Instant::now()));
        let told = Arc::clone(&now);
        let clock: Clock = Arc::new(move || *told.lock().expect("no holder panics"));
        let limits = GuardLimits { breaker: BreakerLimits::default(), ..GuardLimits::default() };
        let tier = GuardedTier::with_clock("disk", Arc::new(mixed), limits, clock);
        Self { tier: tier.expect("legal limits"), now, _scratch: scratch }
    }

    fn advance(&self, time: Duration) {
        *self.now.lock().expect("no holder panics") += time;
    }

    fn state(&self) -> BreakerState {
        self.tier.state().expect("no panic")
    }

    /// One get by a deadline, which it has to keep whatever comes of it.
    fn get(&self, number: u64, limit: Duration, tally: &mut Tally) {
        let page = number % NUM_PAGES;
        let (right, begin) = (bytes_of(page), Instant::now());
        let mut into = vec![0xee; right.len()];
        let found = self.tier.get(&identity(page), &mut into, Deadline::after(limit));
        assert!(begin.elapsed() < limit + SLACK, "{:?}", begin.elapsed());
        match found {
            Ok(true) if into == right => tally.right += 1,
            Err(Error::DeadlinePassed { .. }) => tally.late += 1,
            Err(Error::TierDown { .. }) => tally.refused += 1,
            other => panic!("page {page}: {other:?}"),
        }
    }

    /// Calls that were slow, and very slow.
    fn injected(&self) -> [u64; 2] {
        let mixed = self.tier.inner();
        [mixed.injected().slow, mixed.inner().injected().slow]
    }
}

#[test]
fn calls_that_have_time_for_a_slow_disk_are_answered_and_right() {
    let (disk, mut tally) = (Disk::new("mix", 1, MIX), Tally::default());
    (0..1500).for_each(|number| disk.get(number, SLACK, &mut tally));
    let [slow, very_slow] = disk.injected();
    assert!((100..200).contains(&slow) && very_slow > 0, "{slow} {very_slow}");
    assert_eq!(tally, Tally { right: 1500, ..Tally::default() });
    assert_eq!(disk.state(), BreakerState::Closed);
}

#[test]
fn the_fifth_late_call_within_ten_seconds_opens_the_breaker() {
    let (disk, mut tally) = (Disk::new("opens", 5, MIX), Tally::default());
    let numbers = (0..1000).take_while(|_| disk.state() == BreakerState::Closed);
    numbers.for_each(|number| disk.get(number, HURRIED, &mut tally));
    assert_eq!((disk.state(), tally.late, tally.refused), (BreakerState::Open, 5, 0));
    assert!(tally.right > 0, "most calls are not slow: {tally:?}");
    (0..100).for_each(|number| disk.get(number, HURRIED, &mut tally));
    assert_eq!((tally.late, tally.refused), (5, 100), "the disk is spared");
}

#[test]
fn late_calls_that_lie_further_apart_do_not() {
    let (disk, mut tally) = (Disk::new("apart", 7, MIX), Tally::default());
    for number in (0..).take_while(|number| *number < 100 || disk.injected()[0] < 12) {
        let late_before = tally.late;
        disk.get(number, HURRIED, &mut tally);
        disk.advance(Duration::from_millis(2600) * u32::from(tally.late > late_before));
        assert_eq!(disk.state(), BreakerState::Closed);
    }
    assert!(tally.late >= 5 && tally.refused == 0, "{tally:?}");
}

#[test]
fn a_breaker_that_is_open_tries_once_a_second_until_a_call_is_in_time() {
    let (disk, mut tally) = (Disk::new("probes", 9, [1_000_000, 1_000]), Tally::default());
    (0..10).for_each(|number| disk.get(number, HURRIED, &mut tally));
    assert_eq!(tally, Tally { late: 5, refused: 5, right: 0 });
    for second in 1..=5 {
        disk.advance(Duration::from_millis(999));
        disk.get(0, HURRIED, &mut tally);
        disk.advance(Duration::from_millis(1));
        (0..9).for_each(|number| disk.get(number, HURRIED, &mut tally));
        assert_eq!(tally, Tally { late: 5 + second, refused: 5 + 9 * second, right: 0 });
    }
    disk.advance(Duration::from_secs(1));
    disk.get(0, SLACK, &mut tally);
    assert_eq!((disk.state(), tally.right), (BreakerState::Closed, 1));
}

/// The host pool's pages are there while the disk is not, and the disk's once it has had time.
#[test]
fn loads_from_a_slow_disk_keep_their_deadline_and_hits_in_the_host_pool_do_not_wait() {
    let rig = Rig::new(32);
    let scratch = Scratch::new("loads");
    let (files, _) = scratch.open(64);
    let breaker = BreakerLimits { failures: 1000, ..BreakerLimits::default() };
    let limits = HierarchyLimits { breaker, ..LIMITS };
    let hierarchy = rig.limited(vec![file(Arc::new(mixed(files, 11, MIX)))], limits);
    let below = rig.publish(1, 24);
    hierarchy.make_room(32, far()).expect("the disk has time");
    let resident = rig.publish(2, 8);
    let hits = rig.lease(&resident);
    for _ in 0..20 {
        let lease = rig.lease(&below);
        let begin = Instant::now();
        let loaded = hierarchy.load(&lease, 0..24, 0, Deadline::after(HURRIED));
        assert!(begin.elapsed() < HURRIED + SLACK, "{:?}", begin.elapsed());
        let pages = loaded.expect("late pages are no error").pages;
        assert!(rig.check_bytes(&lease, &below) >= pages);
        assert_eq!(rig.check_bytes(&hits, &resident), 8);
        drop(lease);
        hierarchy.make_room(24, far()).expect("the disk has time");
    }
    let lease = rig.lease(&below);
    assert_eq!(hierarchy.load(&lease, 0..24, 0, far()).expect("the disk has time").pages, 24);
    assert_eq!(rig.check_bytes(&lease, &below), 24);
    drop((lease, hits));
    rig.check_rest();
}
