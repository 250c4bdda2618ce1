//! Copies in a tier that nobody wants any more: they go, in time, and never take a page with them.

#[path = "support/file_pages.rs"]
mod file_pages;
#[path = "support/hierarchy_rig.rs"]
mod hierarchy_rig;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use file_pages::Scratch;
use hierarchy_rig::{LIMITS, Rig, far, file, remote, state, within};
use hisparse_core::hierarchy::HierarchyLimits;
use hisparse_core::prefix::{HostShelf, LowerTier};
use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTier, FileTierOptions, Occasion,
};
use hisparse_core::tier::{
    BreakerLimits, Deadline, MemoryTier, PageHeader, PageIdentity, PageTier, Stored, TierUsage,
};
use hisparse_core::{Error, PageAllocator, Result};
use prefix_pages::{LEAF_FIRST, headers, table};

/// A tier that does not let go of a page while it is stuck.
struct StickyTier {
    inner: MemoryTier,
    is_stuck: AtomicBool,
}

impl StickyTier {
    fn new(capacity_bytes: u64) -> Arc<Self> {
        let inner = MemoryTier::new(capacity_bytes);
        Arc::new(Self { inner, is_stuck: AtomicBool::new(false) })
    }

    fn stick(&self, is_stuck: bool) {
        self.is_stuck.store(is_stuck, Ordering::Relaxed);
    }

    fn num_pages(&self) -> u64 {
        self.inner.usage().pages
    }
}

impl PageTier for StickyTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        self.inner.put(page, bytes, deadline)
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        self.inner.get(identity, into, deadline)
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.inner.holds(identity, deadline)
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        if self.is_stuck.load(Ordering::Relaxed) {
            return Err(Error::TierIo { tier: "sticky", call: "remove", text: "stuck".into() });
        }
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

/// A pool of 16 pages whose directory knows 24.
fn forgetful() -> Rig {
    let pool = PageAllocator::new(16).expect("a legal size");
    Rig::over(16, HostShelf::new(pool, table(24, LEAF_FIRST)))
}

const PATIENT: HierarchyLimits =
    HierarchyLimits { breaker: BreakerLimits { failures: 1000, ..LIMITS.breaker }, ..LIMITS };

#[test]
fn what_the_directory_forgets_goes_from_the_file_tier() {
    let (rig, tier) = (forgetful(), StickyTier::new(1 << 24));
    let hierarchy = rig.limited(vec![file(tier.clone())], PATIENT);
    for seed in 1..=10 {
        rig.publish(seed, 16);
        hierarchy.make_room(16, far()).unwrap();
        assert!(tier.num_pages() <= 24, "{} pages", tier.num_pages());
    }
    rig.check_rest();
}

#[test]
fn a_drain_with_nothing_to_move_removes_what_nobody_wants() {
    let (rig, tier) = (forgetful(), StickyTier::new(1 << 24));
    let hierarchy = rig.limited(vec![file(tier.clone())], PATIENT);
    rig.publish(1, 16);
    hierarchy.make_room(16, far()).unwrap();
    tier.stick(true);
    rig.publish(2, 16);
    hierarchy.make_room(16, far()).unwrap();
    assert_eq!(tier.num_pages(), 32, "8 are not wanted any more, and stay");
    tier.stick(false);
    assert_eq!(hierarchy.drain(far()).unwrap().moved, 0);
    assert_eq!(tier.num_pages(), 24);
    rig.check_rest();
}

#[test]
fn a_copy_that_stays_is_removed_later_but_not_once_its_page_was_put_again() {
    let (rig, tier) = (forgetful(), StickyTier::new(1 << 24));
    let hierarchy = rig.limited(vec![file(tier.clone())], PATIENT);
    let first = rig.publish(1, 16);
    hierarchy.make_room(16, far()).unwrap();
    tier.stick(true);
    rig.publish(2, 16);
    hierarchy.make_room(16, far()).unwrap();
    assert_eq!(tier.num_pages(), 32, "8 are not wanted any more, and stay");
    // the page is computed again, goes down again, and its old copy is the page
    rig.publish(1, 16);
    hierarchy.make_room(16, far()).unwrap();
    tier.stick(false);
    rig.publish(3, 2);
    hierarchy.make_room(16, far()).unwrap();
    assert!(tier.num_pages() <= 24, "{} pages", tier.num_pages());
    let lease = rig.lease(&first);
    let num_known = lease.found().len();
    assert!(num_known > 8, "{num_known} pages are known");
    let loaded = hierarchy.load(&lease, 0..num_known, 0, far()).unwrap();
    assert_eq!((loaded.pages, loaded.missed), (num_known, 0));
    assert_eq!(rig.check_bytes(&lease, &first), num_known);
    drop(lease);
    rig.check_rest();
}

#[test]
fn a_page_that_a_full_tier_does_not_let_go_of_is_removed_later() {
    let rig = Rig::new(16);
    let tier = StickyTier::new(20 * rig.layout.page_bytes() as u64);
    let hierarchy = rig.limited(vec![file(tier.clone())], PATIENT);
    rig.publish(1, 16);
    hierarchy.make_room(16, far()).unwrap();
    tier.stick(true);
    rig.publish(2, 16);
    assert!(hierarchy.make_room(16, far()).is_err(), "no room below");
    assert_eq!(tier.num_pages(), 20);
    let left = state(&hierarchy, LowerTier::File).counts.left;
    assert!(left > 0, "given up, though they are there");
    tier.stick(false);
    assert_eq!(hierarchy.make_room(16, far()), Ok(16));
    let known = rig.directory.stats().unwrap().pages;
    assert_eq!(tier.num_pages(), known, "no page takes room that nobody knows");
    rig.check_rest();
}

#[test]
fn other_bytes_under_a_pages_name_are_replaced() {
    let rig = Rig::new(4);
    let tiers = [StickyTier::new(1 << 24), StickyTier::new(1 << 24)];
    let hierarchy = rig.hierarchy(vec![file(tiers[0].clone()), remote(tiers[1].clone())]);
    let pages = headers("a", 1, 4);
    for page in &pages {
        tiers[0].put(page, &vec![7; rig.layout.page_bytes()], far()).unwrap();
    }
    rig.try_publish(&pages).unwrap();
    assert_eq!(hierarchy.make_room(4, far()), Ok(4));
    let lease = rig.lease(&pages);
    assert_eq!(hierarchy.load(&lease, 0..4, 0, far()).unwrap().pages, 4);
    assert_eq!(rig.check_bytes(&lease, &pages), 4);
    assert_eq!(state(&hierarchy, LowerTier::File).counts.promoted, 4);
}

#[test]
fn nobody_waits_beyond_the_deadline_for_a_thread_that_tidies() {
    let (rig, scratch) = (forgetful(), Scratch::new("tidy"));
    let failpoints = Failpoints::default();
    let options = FileTierOptions { failpoints: failpoints.clone(), ..scratch.options(16) };
    let files = Arc::new(FileTier::open(options).unwrap().0);
    let hierarchy = rig.limited(vec![file(files)], PATIENT);
    rig.publish(1, 16);
    hierarchy.make_room(16, far()).unwrap();
    // 8 of the first are forgotten, and two threads find a leaf to move
    rig.publish(2, 8);
    rig.publish(3, 8);
    let slow = FailAction::Sleep(Duration::from_millis(400));
    failpoints.arm(Failpoint::BeforeWrite, slow, Occasion::Always);
    thread::scope(|scope| {
        let tidy = scope.spawn(|| hierarchy.make_room(4, far()));
        thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        let late = hierarchy.make_room(16, within(100));
        assert!(begin.elapsed() < Duration::from_millis(800), "{:?}", begin.elapsed());
        assert!(matches!(late, Err(Error::DeadlinePassed { .. })), "{late:?}");
        failpoints.disarm();
        assert!(tidy.join().unwrap().is_ok());
    });
    assert_eq!(hierarchy.make_room(16, far()), Ok(16));
    rig.check_rest();
}
