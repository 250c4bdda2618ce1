//! Interleavings of the manager's calls, explored by shuttle.
//!
//! `cargo test -p hisparse-core --features shuttle --test schedules`; with that feature the locks
//! work inside of shuttle only, so no other test may be run with it.

mod support;

use std::ops::Range;

use hisparse_core::prefix::{Held, LowerTier};
use hisparse_core::sync::Arc;
use hisparse_core::{Error, ErrorKind, SequenceHandle};
use shuttle::thread;
use support::{DEVICE, Host, SHAPE};

const DEFAULT_SCHEDULES: usize = 1_200;
const ALL_SCHEDULES: usize = 100_000;
const FIRST_MARK: u64 = 1 << 32;
const OWN_MARK: u64 = 2 << 32;

type Work = fn(&Host, SequenceHandle);

/// Runs `threads` to their ends in many orders, then checks that nothing is lost or held.
fn explore(threads: &'static [Work], num_schedules: usize) {
    let body = move || {
        let host = Arc::new(Host::new());
        let shared = host.manager.open_sequence(130, 60, DEVICE).expect("an empty pool");
        host.manager.append(shared, 130).expect("admitted");
        mark_tokens(&host, shared, 0..130, FIRST_MARK);
        let spawn = |&work: &Work| {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                work(&host, shared);
                host.manager.check_integrity().expect("sound after every thread");
            })
        };
        let running: Vec<_> = threads.iter().map(spawn).collect();
        for thread in running {
            thread.join().expect("no thread panics");
        }
        if let Err(error) = host.manager.close(shared) {
            assert_eq!(error.kind(), ErrorKind::StaleHandle);
        }
        let stats = host.manager.stats().expect("nobody has panicked");
        assert_eq!(stats.host_pages_free, u64::from(SHAPE.num_pages), "pages leaked: {stats:?}");
        assert_eq!(stats.slots_used + stats.window_slots_used + stats.state_rows_used, 0);
        assert_eq!(stats.opened + stats.forked, stats.closed);
    };
    shuttle::check_random(body, num_schedules / 2);
    shuttle::check_pct(body, num_schedules / 2, 3);
}

/// Writes `mark + position` to every tenth row.
fn mark_tokens(host: &Host, sequence: SequenceHandle, positions: Range<u32>, mark: u64) {
    let pages = host.manager.host_pages(sequence).expect("the caller keeps it open");
    for position in positions.step_by(10) {
        host.write_token(&pages, position, mark + u64::from(position));
    }
}

fn check_tokens(host: &Host, sequence: SequenceHandle, positions: Range<u32>, mark: u64) {
    let pages = host.manager.host_pages(sequence).expect("the caller keeps it open");
    for position in positions.step_by(10) {
        assert_eq!(host.read_token(&pages, position), mark + u64::from(position));
    }
}

fn is_full(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::HostPoolFull | ErrorKind::DeviceArenaFull)
}

fn open_append_close(host: &Host, _shared: SequenceHandle) {
    let own = match host.manager.open_sequence(200, 100, DEVICE) {
        Ok(own) => own,
        Err(error) => return assert!(is_full(&error), "{error}"),
    };
    assert_eq!(host.manager.append(own, 200), Ok(0), "an admitted append never fails");
    mark_tokens(host, own, 0..200, OWN_MARK);
    assert_eq!(host.manager.append(own, 100), Ok(200), "an admitted append never fails");
    check_tokens(host, own, 0..200, OWN_MARK);
    host.manager.close(own).expect("only this thread knows it");
}

fn close_shared(host: &Host, shared: SequenceHandle) {
    if let Err(error) = host.manager.close(shared) {
        assert_eq!(error.kind(), ErrorKind::StaleHandle);
    }
}

fn append_shared(host: &Host, shared: SequenceHandle) {
    for _ in 0..2 {
        if let Err(error) = host.manager.append(shared, 1) {
            assert_eq!(error.kind(), ErrorKind::StaleHandle);
        }
    }
}

fn fork_shared(host: &Host, shared: SequenceHandle) {
    match host.manager.fork(shared, 100, 100, DEVICE) {
        Ok(fork) => {
            assert_eq!(host.manager.append(fork, 100), Ok(100), "an admitted append never fails");
            mark_tokens(host, fork, 100..200, OWN_MARK);
            check_tokens(host, fork, 0..100, FIRST_MARK);
            host.manager.close(fork).expect("only this thread knows it");
        }
        Err(Error::OutOfRange { found: 100, .. }) => {} // the parent has been rolled back already
        Err(error) => assert!(error.kind() == ErrorKind::StaleHandle || is_full(&error)),
    }
}

fn roll_shared_back(host: &Host, shared: SequenceHandle) {
    match host.manager.truncate(shared, 30) {
        Ok(()) => match host.manager.append(shared, 50) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::StaleHandle),
        },
        Err(error) => assert!(error.kind() == ErrorKind::StaleHandle || is_full(&error)),
    }
}

/// Writes new rows over a page that forks may share; nobody closes the sequence meanwhile.
fn rewrite_shared(host: &Host, shared: SequenceHandle) {
    match host.manager.truncate(shared, 30) {
        Ok(()) => {
            assert!(host.manager.append(shared, 50).is_ok_and(|start| start >= 30));
            mark_tokens(host, shared, 30..80, OWN_MARK);
            check_tokens(host, shared, 0..30, FIRST_MARK);
        }
        Err(error) => assert!(is_full(&error), "{error}"),
    }
}

fn lease_and_drop(host: &Host, _shared: SequenceHandle) {
    match host.manager.lease_pages(18) {
        Ok(lease) => assert_eq!(lease.pages().len(), 18),
        Err(error) => assert!(is_full(&error), "{error}"),
    }
}

/// Lets the shared sequence rest, and brings back what is still held of it.
fn rest_shared(host: &Host, shared: SequenceHandle) {
    let rested = host.manager.preempt(shared);
    let lease = match rested.and_then(|()| host.manager.lease_resting(shared)) {
        Ok(lease) => lease,
        Err(error) => return assert!(is_over(&error), "{error}"),
    };
    let pages = lease.pages(0).expect("leases of a call do not expire");
    let num_held = pages.iter().take_while(|page| matches!(page, Held::Host(_))).count();
    match host.manager.resume(shared, &lease, num_held, DEVICE) {
        Ok(length) => assert!(length as usize <= num_held * 64),
        Err(error) => assert!(is_over(&error) || is_full(&error), "{error}"),
    }
}

/// Another thread has closed the sequence, or lets it rest.
fn is_over(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::StaleHandle | ErrorKind::WrongState)
}

/// Pages go down, and the tier loses half of them.
fn demote_and_lose(host: &Host, _shared: SequenceHandle) {
    let directory = host.manager.directory();
    let pressure = directory.demote(4).expect("nobody has panicked");
    for (at, demotion) in pressure.demotions.into_iter().enumerate() {
        let identity = demotion.header().identity;
        let enqueued = demotion.enqueued();
        if at % 2 == 0 {
            enqueued.completed(LowerTier::File).expect("it moves");
            directory.lost_below(&identity, LowerTier::File).expect("nobody has panicked");
        }
    }
}

fn evict_all(host: &Host, _shared: SequenceHandle) {
    host.manager.directory().evict(99).expect("nobody has panicked");
}

const REST_DEMOTE: &[Work] = &[rest_shared, demote_and_lose, evict_all, close_shared];
const REST_TWICE: &[Work] = &[rest_shared, rest_shared, demote_and_lose];
const OPEN_LEASE: &[Work] = &[open_append_close, open_append_close, lease_and_drop, lease_and_drop];
const CLOSE_TWICE: &[Work] = &[close_shared, close_shared, append_shared, open_append_close];
const FORK_ROLL: &[Work] = &[fork_shared, fork_shared, close_shared, roll_shared_back];
const COPY_APPEND: &[Work] = &[fork_shared, rewrite_shared, append_shared, lease_and_drop];

#[test]
fn rest_races_with_demotion_eviction_and_the_end_of_the_sequence() {
    explore(REST_DEMOTE, DEFAULT_SCHEDULES);
    explore(REST_TWICE, DEFAULT_SCHEDULES);
}

#[test]
fn opens_and_leases_compete_for_pages_and_lose_none() {
    explore(OPEN_LEASE, DEFAULT_SCHEDULES);
}

#[test]
fn a_sequence_is_closed_once_whoever_comes_first() {
    explore(CLOSE_TWICE, DEFAULT_SCHEDULES);
}

#[test]
fn forks_survive_the_end_and_the_rollback_of_their_parent() {
    explore(FORK_ROLL, DEFAULT_SCHEDULES);
}

#[test]
fn copies_on_write_race_with_appends_and_leases() {
    explore(COPY_APPEND, DEFAULT_SCHEDULES);
}

#[test]
#[ignore = "the full size: minutes"]
fn all_races_of_the_manager_in_full() {
    for threads in [REST_DEMOTE, REST_TWICE, OPEN_LEASE, CLOSE_TWICE, FORK_ROLL, COPY_APPEND] {
        explore(threads, ALL_SCHEDULES);
    }
}

#[test]
fn appends_never_give_one_position_twice() {
    let body = || {
        let host = Arc::new(Host::new());
        let shared = host.manager.open_sequence(100, 0, DEVICE).expect("an empty pool");
        let append = |num_tokens| {
            let host = Arc::clone(&host);
            thread::spawn(move || {
                let start = host.manager.append(shared, num_tokens).expect("admitted");
                let pages = host.manager.host_pages(shared).expect("open");
                host.write_token(&pages, start + num_tokens - 1, u64::from(start));
                start..start + num_tokens
            })
        };
        let running = [30, 64, 6].map(append);
        let mut spans = running.map(|thread| thread.join().expect("no thread panics"));
        spans.sort_unstable_by_key(|span| span.start);
        let ends = spans.iter().map(|span| span.end);
        assert!(spans.iter().map(|span| span.start).eq([0].into_iter().chain(ends.take(2))));
    };
    shuttle::check_random(body, DEFAULT_SCHEDULES / 2);
}

#[test]
fn a_lease_may_be_dropped_while_the_manager_goes() {
    let body = || {
        let host = Host::new();
        let lease = host.manager.lease_pages(3).expect("an empty pool");
        let dropper = thread::spawn(move || drop(lease));
        drop(host);
        dropper.join().expect("dropping a lease never panics");
    };
    shuttle::check_random(body, DEFAULT_SCHEDULES / 2);
}
