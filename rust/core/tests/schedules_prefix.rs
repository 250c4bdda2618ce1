//! Interleavings of the directory's calls, explored by shuttle; see `schedules.rs` for how to run.

#[path = "support/prefix_pages.rs"]
mod prefix_pages;

use hisparse_core::prefix::{
    Elsewhere, Held, HostPages, LowerTier, LowerTiers, OwnerId, PrefixDirectory, PrefixLease,
    Published, TenantId,
};
use hisparse_core::sync::Arc;
use hisparse_core::tier::PageHeader;
use hisparse_core::{Error, ErrorKind};
use prefix_pages::{FOREVER, LEAF_FIRST, TIMEOUT_MS, directory, headers, identities};
use shuttle::scheduler::DfsScheduler;
use shuttle::{Config, Runner, thread};

const DEFAULT_SCHEDULES: usize = 2_000;
const ALL_SCHEDULES: usize = 100_000;
const NUM_PAGES: usize = 6;

/// A directory with three idle pages in a pool of six, and room for no more than five pages.
struct Host {
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
    pages: Vec<PageHeader>,
}

impl Host {
    fn new() -> Self {
        let directory = directory(6, 5, LEAF_FIRST);
        let tenant = directory.add_tenant(NUM_PAGES as u64).expect("a new tenant");
        let owner = directory.register(0).expect("a new owner");
        let pages = headers("a", 1, 3);
        let mut taken = directory.take(tenant, 3).expect("an empty pool");
        taken.publish(0, &pages).expect("new pages");
        drop(taken);
        Self { directory, tenant, owner, pages }
    }

    fn lease(&self) -> PrefixLease {
        let chain = identities(&self.pages);
        self.directory
            .match_prefix(&chain, self.tenant, self.owner, FOREVER)
            .expect("the owner lives")
    }
}

type Work = fn(&Host);

/// Runs `threads` to their ends in many orders, then checks that nothing is lost or held.
fn explore(threads: &'static [Work], num_schedules: usize) {
    let body = move || run(threads);
    shuttle::check_random(body, num_schedules / 2);
    shuttle::check_pct(body, num_schedules / 2, 3);
}

fn run(threads: &[Work]) {
    let host = Arc::new(Host::new());
    let spawn = |&work: &Work| {
        let host = Arc::clone(&host);
        thread::spawn(move || work(&host))
    };
    let running: Vec<_> = threads.iter().map(spawn).collect();
    for thread in running {
        thread.join().expect("no thread panics");
    }
    check_whole(&host);
}

fn check_whole(host: &Host) {
    host.directory.check_integrity().expect("sound after every thread");
    let stats = host.directory.stats().expect("nobody has panicked");
    assert_eq!((stats.leases, stats.pins, stats.demoting, stats.promoting), (0, 0, 0, 0));
    host.directory.evict(NUM_PAGES).expect("nobody has panicked");
    let all = host.directory.take(host.tenant, NUM_PAGES).expect("the whole pool is free");
    assert_eq!(all.len(), NUM_PAGES);
}

fn is_full(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::TierFull | ErrorKind::HostPoolFull)
}

/// What a lease has found in the host pool is there as long as it lasts.
fn lease_and_look(host: &Host) {
    let lease = host.lease();
    for _ in 0..2 {
        let now = lease.pages(0).expect("the lease lives");
        assert_eq!(now.len(), lease.found().len());
        for (before, now) in lease.found().iter().zip(&now) {
            assert!(before == now || !matches!(before, Held::Host(_)), "{before:?} became {now:?}");
        }
    }
}

fn share_and_drop(host: &Host) {
    let lease = host.lease();
    match lease.share(0) {
        Ok(shared) => {
            drop(lease);
            assert!(shared.len() <= 3);
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::WrongState),
    }
}

fn evict_all(host: &Host) {
    host.directory.evict(NUM_PAGES).expect("nobody has panicked");
}

fn take_most(host: &Host) {
    match host.directory.take(host.tenant, 5) {
        Ok(taken) => assert_eq!(taken.len(), 5),
        Err(error) => assert!(is_full(&error), "{error}"),
    }
}

/// Spills what is idle; every second page fails on the way.
fn spill(host: &Host) {
    let pressure = host.directory.demote(NUM_PAGES).expect("nobody has panicked");
    for (at, demotion) in pressure.demotions.into_iter().enumerate() {
        let page = demotion.page();
        let enqueued = demotion.enqueued();
        if at % 2 == 0 {
            let held = enqueued.completed(LowerTier::File).expect("a page in motion");
            assert!(matches!(held, Held::Lower(_)) || held == Held::Host(page));
        }
    }
}

/// Opens a sequence on the prefix, publishes its pages, and closes it.
fn open_and_close(host: &Host) {
    let chain = identities(&host.pages);
    let (tenant, owner) = (host.tenant, host.owner);
    match host.directory.match_and_take(&chain, 3, tenant, owner, FOREVER) {
        Ok((lease, mut taken)) => publish_rest(&host.pages[lease.found().len()..], &mut taken),
        Err(error) => assert!(is_full(&error), "{error}"),
    }
}

fn publish_rest(rest: &[PageHeader], taken: &mut HostPages) {
    let published = match taken.publish(0, rest) {
        Ok(published) => published,
        Err(error) => return assert!(is_full(&error), "the pages are this thread's: {error}"),
    };
    let numbers = taken.numbers();
    for (outcome, number) in published.into_iter().zip(numbers) {
        if let Published::Existing(page) = outcome {
            assert_eq!(page.page(), number);
        }
    }
}

fn promote_some(host: &Host) {
    let lease = host.lease();
    let num_pages = lease.found().len();
    match lease.promote(0..num_pages, 0) {
        Ok(begun) => {
            for (at, promotion) in begun.into_iter().enumerate() {
                let enqueued = promotion.enqueued();
                if at % 2 == 0 {
                    assert!(matches!(enqueued.completed(), Ok(Held::Host(_))));
                }
            }
        }
        Err(error) => assert!(is_full(&error), "{error}"),
    }
}

fn lose_below(host: &Host) {
    for page in &host.pages {
        host.directory.lost_below(&page.identity, LowerTier::File).expect("nobody has panicked");
    }
}

/// An owner that registers late, and lives: nobody may take its lease.
fn register_and_live(host: &Host) {
    let owner = host.directory.register(TIMEOUT_MS).expect("a new owner");
    let chain = identities(&host.pages);
    let lease = host.directory.match_prefix(&chain, host.tenant, owner, FOREVER).expect("it lives");
    host.directory.heartbeat(owner, TIMEOUT_MS + 1).expect("it lives");
    assert_eq!(lease.pages(TIMEOUT_MS + 1).expect("it lives").len(), lease.found().len());
    drop(lease);
    host.directory.unregister(owner).expect("it lives");
}

/// An owner that was silent since 0: its match succeeds, and is reaped, or is refused.
fn match_while_dying(host: &Host) {
    let chain = identities(&host.pages);
    match host.directory.match_prefix(&chain, host.tenant, host.owner, FOREVER) {
        Ok(lease) => match lease.pages(TIMEOUT_MS + 1) {
            Ok(pages) => assert_eq!(pages.len(), lease.found().len()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::StaleHandle),
        },
        Err(error) => assert_eq!(error.kind(), ErrorKind::StaleHandle),
    }
}

/// An owner that is back at the last moment: once it was heard, nobody may give it up.
fn come_back(host: &Host) {
    match host.directory.heartbeat(host.owner, TIMEOUT_MS + 1) {
        Ok(()) => {
            let lease = host.lease();
            assert!(lease.pages(TIMEOUT_MS + 1).is_ok(), "a live owner was given up");
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::StaleHandle),
    }
}

fn reap(host: &Host) {
    let reaped = host.directory.reap(TIMEOUT_MS + 1).expect("nobody has panicked");
    assert!(reaped.owners <= 1, "only one owner is silent");
}

/// A chain longer than the directory, which a store has: what was found stays found.
fn lease_elsewhere(host: &Host) {
    let pages = headers("a", 9, NUM_PAGES);
    let (chain, now_ms) = (identities(&pages), 0);
    let lease = host.directory.match_prefix(&chain, host.tenant, host.owner, FOREVER);
    let mut lease = lease.expect("the owner lives");
    for _ in 0..2 {
        let rest = &pages[lease.found().len()..];
        let found = Elsewhere { pages: rest, num_held: rest.len(), tier: LowerTier::Remote };
        lease.lengthen(found, now_ms).expect("the owner lives");
        let now = lease.pages(now_ms).expect("the owner lives");
        assert_eq!(now, lease.found(), "nobody moves them");
        assert!(now.iter().all(|held| *held != Held::Lower(LowerTiers::NONE)), "{now:?}");
    }
}

fn sweep(host: &Host) {
    host.directory.sweep(1).expect("nobody has panicked");
}

fn lease_and_drop(host: &Host) {
    drop(host.lease());
}

const EVICT_LEASE: &[Work] = &[lease_and_look, share_and_drop, evict_all, take_most];
const SPILL_CLOSE: &[Work] = &[spill, open_and_close, open_and_close, lease_and_look];
const PROMOTE_LOSE: &[Work] = &[spill, promote_some, promote_some, lose_below, open_and_close];
const FIND_ELSEWHERE: &[Work] =
    &[lease_elsewhere, lease_elsewhere, lease_and_look, open_and_close, evict_all];
const REAP_REGISTER: &[Work] =
    &[reap, reap, register_and_live, match_while_dying, come_back, sweep];

#[test]
fn an_eviction_never_takes_a_leased_page() {
    explore(EVICT_LEASE, DEFAULT_SCHEDULES);
}

#[test]
fn a_spill_races_with_the_close_of_a_sequence() {
    explore(SPILL_CLOSE, DEFAULT_SCHEDULES);
}

#[test]
fn a_promotion_races_with_a_tier_that_loses_the_page() {
    explore(PROMOTE_LOSE, DEFAULT_SCHEDULES);
}

#[test]
fn a_reaper_races_with_owners_that_register_and_die() {
    explore(REAP_REGISTER, DEFAULT_SCHEDULES);
}

/// Every order there is, not only many. References are counted under the lock and by no atomic, so
/// that the orders of their holders are all that there is to explore.
fn run_in_every_order(threads: &'static [Work]) -> usize {
    let every_order = DfsScheduler::new(None, false);
    Runner::new(every_order, Config::default()).run(move || run(threads))
}

#[test]
fn a_lease_and_a_sharer_count_references_in_every_order() {
    let num_orders = run_in_every_order(&[lease_and_drop, share_and_drop]);
    assert!(num_orders > 100, "{num_orders} orders");
}

#[test]
#[ignore = "half a minute"]
fn three_threads_count_references_in_every_order() {
    let num_orders = run_in_every_order(&[lease_and_drop, lease_and_drop, evict_all]);
    assert!(num_orders > 500_000, "{num_orders} orders");
}

#[test]
fn prompts_that_a_store_has_find_their_pages_while_others_want_the_entries() {
    explore(FIND_ELSEWHERE, DEFAULT_SCHEDULES);
}

#[test]
#[ignore = "the full size: minutes"]
fn all_races_in_full() {
    for threads in [EVICT_LEASE, SPILL_CLOSE, PROMOTE_LOSE, FIND_ELSEWHERE, REAP_REGISTER] {
        explore(threads, ALL_SCHEDULES);
    }
}
