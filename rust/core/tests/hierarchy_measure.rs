//! Tiers are measured at the start or once they work, and no page of that stays in them.

#[path = "support/file_pages.rs"]
mod file_pages;
#[path = "support/hierarchy_rig.rs"]
mod hierarchy_rig;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;
#[path = "support/switched_tier.rs"]
mod switched_tier;

use std::sync::Arc;
use std::time::{Duration, Instant};

use file_pages::Scratch;
use hierarchy_rig::{LIMITS, Rig, far, file, remote, state};
use hisparse_core::ErrorKind;
use hisparse_core::hierarchy::{Condition, Hierarchy, HierarchyLimits};
use hisparse_core::prefix::LowerTier;
use hisparse_core::tier::{BreakerLimits, MemoryTier, PageHeader, PageTier};
use prefix_pages::headers;
use switched_tier::SwitchedTier;

/// No tier that works takes as long.
const LIMIT: Duration = Duration::from_secs(60);

fn wait_until(is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "it does not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn has_speed(hierarchy: &Hierarchy, tier: LowerTier) -> bool {
    hierarchy.load_table().expect("nobody has panicked").0.speed(tier).is_some()
}

/// A hierarchy over files that work and a store that is down, measured as at a start.
fn half_down(rig: &Rig) -> (Hierarchy, Arc<SwitchedTier>) {
    let store = Arc::new(SwitchedTier::default());
    store.is_down.set(true);
    let files = Arc::new(MemoryTier::new(1 << 20));
    let hierarchy = rig.hierarchy(vec![file(files), remote(store.clone())]);
    let table = hierarchy.measure(LIMIT).expect("it is open");
    hierarchy.adopt(table, 1).expect("the first");
    assert!(has_speed(&hierarchy, LowerTier::File) && !has_speed(&hierarchy, LowerTier::Remote));
    (hierarchy, store)
}

#[test]
fn a_tier_that_was_down_at_the_start_is_loaded_from_once_it_works() {
    let rig = Rig::new(4);
    let (hierarchy, store) = half_down(&rig);
    let is_worth = || hierarchy.worth_loading(LowerTier::Remote, 1, 1e-6).unwrap();
    assert_eq!(hierarchy.measure_missing(LIMIT), Ok(1));
    assert!(!is_worth());
    let before = hierarchy.load_table().unwrap();
    assert_eq!(before.1, 1, "nothing was found");
    store.is_down.set(false);
    wait_until(|| hierarchy.measure_missing(LIMIT) == Ok(0)); // once its breaker lets it be tried
    assert!(is_worth());
    let after = hierarchy.load_table().unwrap();
    assert_eq!(after.1, 2);
    assert_eq!(after.0.speed(LowerTier::File), before.0.speed(LowerTier::File));
    assert_eq!((hierarchy.measure_missing(LIMIT), store.num_pages()), (Ok(0), 0));
    assert_eq!(hierarchy.load_table().unwrap().1, 2, "there is nothing to find any more");
}

#[test]
fn a_tier_that_hangs_takes_no_time_from_the_next() {
    let rig = Rig::new(4);
    let slow = Arc::new(SwitchedTier::default());
    slow.is_slow.set(true);
    let hierarchy = rig.hierarchy(vec![file(slow), remote(Arc::new(MemoryTier::new(1 << 20)))]);
    let table = hierarchy.measure(Duration::from_secs(1)).unwrap();
    assert_eq!(table.speed(LowerTier::File), None);
    assert!(table.speed(LowerTier::Remote).is_some());
}

#[test]
fn the_thread_measures_what_is_missing_and_notices_that_a_tier_works_again() {
    let rig = Rig::new(4);
    let (hierarchy, store) = half_down(&rig);
    let is = |condition| state(&hierarchy, LowerTier::Remote).condition == condition;
    hierarchy.start_measuring(Some(LIMIT)).unwrap();
    hierarchy.start_measuring(Some(LIMIT)).unwrap();
    wait_until(|| is(Condition::Degraded));
    store.is_down.set(false);
    wait_until(|| is(Condition::Serving) && has_speed(&hierarchy, LowerTier::Remote));
    store.is_down.set(true);
    wait_until(|| {
        let _ = hierarchy.flush(far()); // it counts calls that fail
        is(Condition::Degraded)
    });
    store.is_down.set(false);
    wait_until(|| is(Condition::Serving));
    hierarchy.close();
    assert_eq!(store.num_pages(), 0);
    assert_eq!(hierarchy.start_measuring(None).unwrap_err().kind(), ErrorKind::WrongState);
    assert_eq!(hierarchy.measure_missing(LIMIT).unwrap_err().kind(), ErrorKind::WrongState);
}

#[test]
fn a_tier_that_knows_that_it_is_down_is_degraded_before_any_call_fails() {
    let rig = Rig::new(4);
    let store = Arc::new(SwitchedTier::default());
    let hierarchy = rig.hierarchy(vec![remote(store.clone())]);
    let condition = || state(&hierarchy, LowerTier::Remote).condition;
    assert_eq!(condition(), Condition::Serving);
    store.says_down.set(true);
    assert_eq!(condition(), Condition::Degraded);
    hierarchy.start_measuring(None).unwrap();
    wait_until(|| store.num_puts() > 0); // it is asked, though no breaker is open
    assert_eq!(hierarchy.load_table().unwrap().1, 0, "nobody wants figures");
}

#[test]
fn pages_that_a_tier_did_not_let_go_of_go_with_a_drain_or_at_the_end() {
    let rig = Rig::new(4);
    let breaker = BreakerLimits { failures: 1000, ..LIMITS.breaker };
    let patient = HierarchyLimits { breaker, ..LIMITS };
    for is_drained in [true, false] {
        let store = Arc::new(SwitchedTier::default());
        store.keeps_pages.set(true);
        let hierarchy = rig.limited(vec![remote(store.clone())], patient);
        for _ in 0..2 {
            hierarchy.measure(LIMIT).unwrap();
            assert_eq!(store.num_pages(), 16, "the same each time");
        }
        store.keeps_pages.set(false);
        if is_drained {
            hierarchy.drain(far()).unwrap();
            assert_eq!(store.num_pages(), 0);
        }
        hierarchy.start_measuring(None).unwrap();
        hierarchy.close();
        assert_eq!(store.num_pages(), 0);
    }
}

#[test]
fn a_restart_removes_what_a_kill_amid_a_measurement_has_left() {
    let rig = Rig::new(4);
    let store = Arc::new(SwitchedTier::default());
    store.keeps_pages.set(true);
    rig.hierarchy(vec![file(store.clone())]).measure(LIMIT).unwrap();
    store.keeps_pages.set(false);
    let recovered = rig.hierarchy(vec![file(store.clone())]).recover(far()).unwrap();
    assert_eq!((recovered.pages, recovered.removed, store.num_pages()), (0, 16, 0));
}

#[test]
fn measuring_leaves_nothing_behind_and_names_the_tiers_that_answer() {
    let (rig, scratch) = (Rig::new(4), Scratch::new("measure"));
    let (files, tiny) = (Arc::new(scratch.open(8).0), Arc::new(MemoryTier::new(10)));
    let hierarchy = rig.hierarchy(vec![file(files.clone()), remote(tiny.clone())]);
    let table = hierarchy.measure(LIMIT).unwrap();
    assert!(table.speed(LowerTier::File).is_some_and(|speed| speed.bytes_per_s > 0));
    assert_eq!(table.speed(LowerTier::Remote), None, "it has no room for a page");
    assert_eq!((files.usage().pages, tiny.usage().pages), (0, 0));
    assert_eq!(state(&hierarchy, LowerTier::File).condition, Condition::Serving);
    hierarchy.adopt(table, 1).unwrap();
    rig.check_rest();
}

#[test]
fn a_full_tier_is_measured_by_the_pages_that_it_has() {
    let (rig, scratch) = (Rig::new(40), Scratch::new("measure_full"));
    let tiny = MemoryTier::new(3 * rig.layout.page_bytes() as u64);
    let files = Arc::new(scratch.open(3).0);
    let hierarchy = rig.hierarchy(vec![file(files.clone()), remote(Arc::new(tiny))]);
    let is_taken =
        |page: &PageHeader| files.put(page, &rig.bytes_of(&page.identity), far()).is_ok();
    let num_pages = headers("a", 1, 500).iter().take_while(|page| is_taken(page)).count();
    let table = hierarchy.measure(LIMIT).unwrap();
    assert!(table.speed(LowerTier::File).is_some_and(|speed| speed.bytes_per_s > 0));
    assert!(table.speed(LowerTier::Remote).is_some(), "three pages are enough to measure it");
    assert_eq!(files.usage().pages, num_pages as u64);
}
