//! Interleavings of pages that go down, come up and are lost, explored by shuttle; see
//! `schedules.rs` for how to run. A hierarchy without threads does its work in its callers'.

#[path = "support/hierarchy_rig.rs"]
mod hierarchy_rig;
#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use hierarchy_rig::{LIMITS, Rig, far, file, remote};
use hisparse_core::ErrorKind;
use hisparse_core::hierarchy::{Hierarchy, HierarchyLimits};
use hisparse_core::prefix::LowerTier;
use hisparse_core::sync::Arc;
use hisparse_core::tier::ChangeKind::{Put, Remove};
use hisparse_core::tier::{Changes, Deadline, MemoryTier, PageHeader, PageTier};
use prefix_pages::{headers, identities};
use shuttle::thread;

const DEFAULT_SCHEDULES: usize = 500;
const ALL_SCHEDULES: usize = 100_000;
/// Measuring makes 100 calls of each tier.
const FEWER: usize = 5;
const NUM_PAGES: usize = 4;
const LIMIT: std::time::Duration = std::time::Duration::from_secs(600);

const ALONE: HierarchyLimits = HierarchyLimits { num_threads: 0, batch_pages: 2, ..LIMITS };

/// A pool of six pages: three of a prefix lie in files, two of them in the pool, too.
struct Site {
    hierarchy: Hierarchy,
    rig: Rig,
    files: std::sync::Arc<MemoryTier>,
    pages: Vec<PageHeader>,
}

impl Site {
    fn new() -> Self {
        let rig = Rig::new(6);
        let files = std::sync::Arc::new(MemoryTier::new(5 * rig.layout.page_bytes() as u64));
        let shared = std::sync::Arc::new(MemoryTier::new(1 << 20));
        let hierarchy = rig.limited(vec![file(files.clone()), remote(shared)], ALONE);
        let pages = rig.publish(1, NUM_PAGES);
        hierarchy.make_room(6, far()).expect("tiers with room");
        let lease = rig.lease(&pages);
        hierarchy.load(&lease, 0..2, 0, far()).expect("a pool with room");
        drop(lease);
        Self { hierarchy, rig, files, pages }
    }
}

type Work = fn(&Site);

/// Runs `threads` to their ends in many orders, then checks that nothing is lost or held.
fn explore(threads: &'static [Work], num_schedules: usize) {
    let body = move || {
        let site = Arc::new(Site::new());
        let spawn = |&work: &Work| {
            let site = Arc::clone(&site);
            thread::spawn(move || work(&site))
        };
        let running: Vec<_> = threads.iter().map(spawn).collect();
        for thread in running {
            thread.join().expect("no thread panics");
        }
        site.rig.check_rest();
    };
    shuttle::check_random(body, num_schedules / 2);
    shuttle::check_pct(body, num_schedules / 2, 3);
}

fn may_be_refused<T>(outcome: hisparse_core::Result<T>) -> Option<T> {
    let legal = [ErrorKind::HostPoolFull, ErrorKind::TierFull, ErrorKind::WrongState];
    outcome.map_err(|error| assert!(legal.contains(&error.kind()), "{error}")).ok()
}

/// What is loaded has its bytes, and keeps them as long as the lease lasts.
fn load_and_look(site: &Site) {
    let lease = site.rig.lease(&site.pages);
    let num_found = lease.found().len();
    if let Some(loaded) = may_be_refused(site.hierarchy.load(&lease, 0..num_found, 0, far())) {
        assert!(site.rig.check_bytes(&lease, &site.pages) >= loaded.pages);
    }
    site.rig.check_bytes(&lease, &site.pages);
}

/// As long as nobody loses or forgets a page, every load brings all of them.
fn load_all(site: &Site) {
    let lease = site.rig.lease(&site.pages);
    assert_eq!(lease.found().len(), NUM_PAGES);
    let loaded = site.hierarchy.load(&lease, 0..NUM_PAGES, 0, far()).expect("a pool with room");
    assert_eq!((loaded.pages, loaded.missed), (NUM_PAGES, 0));
    assert_eq!(site.rig.check_bytes(&lease, &site.pages), NUM_PAGES);
}

fn make_room(site: &Site) {
    may_be_refused(site.hierarchy.make_room(6, far()));
}

fn publish_others(site: &Site) {
    may_be_refused(site.rig.try_publish(&headers("a", 2, 2)));
}

fn publish_again(site: &Site) {
    may_be_refused(site.rig.try_publish(&site.pages));
}

fn lose(site: &Site) {
    for identity in identities(&site.pages[1..]) {
        site.files.remove(&identity, far()).expect("nobody has panicked");
        site.rig.directory.lost_below(&identity, LowerTier::File).expect("nobody has panicked");
    }
}

fn evict(site: &Site) {
    site.rig.directory.evict(6).expect("nobody has panicked");
}

fn close(site: &Site) {
    site.hierarchy.close();
    let refused = site.hierarchy.make_room(1, Deadline::after(std::time::Duration::ZERO));
    assert_eq!(refused.expect_err("it is closed").kind(), ErrorKind::WrongState);
}

const DEMOTE_LEASE: &[Work] = &[make_room, make_room, load_all, load_all];
const SPILL_PUBLISH: &[Work] =
    &[make_room, publish_others, publish_again, load_and_look, make_room];
const LOSE_LOAD: &[Work] = &[lose, load_and_look, load_and_look, make_room, publish_again];
const MEASURE_LOAD: &[Work] = &[measure, measure, make_room, load_all, drain];
const CLOSE_LOAD: &[Work] = &[close, load_and_look, make_room, evict];

#[test]
fn every_load_brings_all_pages_while_others_make_room() {
    explore(DEMOTE_LEASE, DEFAULT_SCHEDULES);
}

#[test]
fn pages_are_published_while_the_same_and_others_go_down() {
    explore(SPILL_PUBLISH, DEFAULT_SCHEDULES);
}

#[test]
fn a_load_races_with_a_tier_that_loses_its_pages() {
    explore(LOSE_LOAD, DEFAULT_SCHEDULES);
}

#[test]
fn a_load_races_with_the_end_of_the_hierarchy() {
    explore(CLOSE_LOAD, DEFAULT_SCHEDULES);
}

fn measure(site: &Site) {
    may_be_refused(site.hierarchy.measure_missing(LIMIT));
}

fn drain(site: &Site) {
    may_be_refused(site.hierarchy.drain(far()));
}

/// Tiers without pages are measured while they are drained and closed: no page of that stays.
fn measure_and_drain() {
    let rig = Rig::new(2);
    let tiers = [(); 2].map(|()| std::sync::Arc::new(MemoryTier::new(1 << 20)));
    let below = vec![file(tiers[0].clone()), remote(tiers[1].clone())];
    let hierarchy = Arc::new(rig.limited(below, ALONE));
    let calls: [fn(&Hierarchy); 4] = [
        |hierarchy| assert!(may_be_refused(hierarchy.measure_missing(LIMIT)) < Some(3)),
        |hierarchy| {
            let table = may_be_refused(hierarchy.measure(LIMIT));
            assert!(table.is_none_or(|table| table.speeds.len() < 3));
        },
        |hierarchy| assert!(may_be_refused(hierarchy.drain(far())).is_none_or(|end| end.left == 0)),
        Hierarchy::close,
    ];
    let spawn = |call: fn(&Hierarchy)| {
        let hierarchy = Arc::clone(&hierarchy);
        thread::spawn(move || call(&hierarchy))
    };
    for thread in calls.map(spawn) {
        thread.join().expect("no thread panics");
    }
    assert_eq!(tiers.map(|tier| tier.usage().pages), [0, 0]);
}

fn explore_measuring(num_schedules: usize) {
    shuttle::check_random(measure_and_drain, num_schedules / 2);
    shuttle::check_pct(measure_and_drain, num_schedules / 2, 3);
}

/// Callers that leave their removals of one page, and put it: whoever puts last has put it.
fn leave_removals_and_put() {
    let page = headers("a", 1, 1)[0];
    let tier = std::sync::Arc::new(MemoryTier::new(1 << 10));
    let changes = std::sync::Arc::new(Changes::default());
    let leave_and_put = || {
        let (tier, changes) = (tier.clone(), changes.clone());
        thread::spawn(move || {
            let removal = changes.begin(Remove, &page.identity, far()).expect("they end");
            let removed_from = tier.clone();
            let left = thread::spawn(move || {
                removed_from.remove(&page.identity, far()).expect("nobody has panicked");
                drop(removal);
            });
            let _put = changes.begin(Put, &page.identity, far()).expect("they end");
            tier.put(&page, &[1; 9], far()).expect("there is room");
            left
        })
    };
    let callers: Vec<_> = (0..3).map(|_| leave_and_put()).collect();
    for caller in callers {
        caller.join().expect("no thread panics").join().expect("no thread panics");
    }
    assert_eq!(tier.holds(&page.identity, far()), Ok(true));
}

#[test]
fn every_load_brings_all_pages_while_tiers_are_measured_and_drained() {
    explore(MEASURE_LOAD, DEFAULT_SCHEDULES / FEWER);
}

#[test]
fn no_page_of_a_measurement_stays_where_it_races_with_drains_and_the_end() {
    explore_measuring(DEFAULT_SCHEDULES / FEWER);
}

#[test]
fn a_page_that_was_put_after_removals_that_are_late_is_there() {
    shuttle::check_random(leave_removals_and_put, 2 * DEFAULT_SCHEDULES);
    shuttle::check_pct(leave_removals_and_put, 2 * DEFAULT_SCHEDULES, 3);
}

#[test]
#[ignore = "the full size: minutes"]
fn all_races_of_the_hierarchy_in_full() {
    for threads in [DEMOTE_LEASE, SPILL_PUBLISH, LOSE_LOAD, CLOSE_LOAD] {
        explore(threads, ALL_SCHEDULES);
    }
    explore(MEASURE_LOAD, ALL_SCHEDULES / FEWER);
    explore_measuring(ALL_SCHEDULES / FEWER);
}
