//! What the file tier promises while the disk is slow, full or failing.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use file_pages::{Got, Scratch, bytes_of, far, get, header, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTier, FileTierOptions, Occasion, RecoveryMode,
};
use hisparse_core::tier::{Deadline, PageTier, Stored};

fn assert_all(tier: &FileTier, pages: impl Iterator<Item = u64>, expected: Got) {
    for page in pages {
        assert_eq!(get(tier, page), Ok(expected), "page {page}");
    }
}

fn put_all(tier: &FileTier, pages: impl Iterator<Item = u64>) {
    for page in pages {
        assert_eq!(put(tier, page), Ok(Stored::New), "page {page}");
    }
}

fn with_failpoints(scratch: &Scratch, segments: u64) -> (FileTier, Failpoints) {
    let failpoints = Failpoints::default();
    let options = FileTierOptions { failpoints: failpoints.clone(), ..scratch.options(segments) };
    (FileTier::open(options).expect("a new directory").0, failpoints)
}

#[test]
fn flushes_that_wait_together_share_their_syncs() {
    let scratch = Scratch::new("group");
    let (tier, failpoints) = with_failpoints(&scratch, 4);
    failpoints.arm(
        Failpoint::BeforeSync,
        FailAction::Sleep(Duration::from_millis(100)),
        Occasion::Always,
    );
    let begin = Barrier::new(8);
    thread::scope(|scope| {
        for page in 0..8 {
            let (tier, begin) = (&tier, &begin);
            scope.spawn(move || {
                assert_eq!(put(tier, page), Ok(Stored::New));
                begin.wait();
                tier.flush(far()).expect("a sound disk");
            });
        }
    });
    assert!(tier.num_syncs() <= 2, "{} syncs", tier.num_syncs());
}

#[test]
fn a_slow_disk_is_waited_for_no_longer_than_the_deadline() {
    let scratch = Scratch::new("slow");
    let (tier, failpoints) = with_failpoints(&scratch, 4);
    put_all(&tier, 0..1);
    let slow = FailAction::Sleep(Duration::from_millis(400));
    for point in [Failpoint::BeforeWrite, Failpoint::BeforeRead, Failpoint::BeforeSync] {
        failpoints.arm(point, slow, Occasion::Always);
    }
    let limit = Duration::from_millis(50);
    let soon = || Deadline::after(limit);
    let calls: [&dyn Fn() -> Option<Error>; 5] = [
        &|| tier.get(&identity(0), &mut bytes_of(0), soon()).err(),
        &|| tier.put(&header(1), &bytes_of(1), soon()).err(),
        &|| tier.remove(&identity(0), soon()).err(),
        &|| tier.flush(soon()).err(),
        &|| tier.put(&header(2), &bytes_of(2), soon()).err(), // both threads are busy
    ];
    for call in calls {
        let begin = Instant::now();
        assert!(matches!(call(), Some(Error::DeadlinePassed { .. })));
        assert!(begin.elapsed() < limit + Duration::from_millis(250), "{:?}", begin.elapsed());
    }
    failpoints.disarm();
    tier.flush(far()).expect("the disk is fast again"); // after what was queued
    assert_all(&tier, 1..3, Got::Miss);
    put_all(&tier, 1..3);
    drop(tier);
    assert_all(&scratch.open(4).0, 1..3, Got::Right);
}

#[test]
fn a_full_queue_keeps_to_the_deadline_too() {
    let scratch = Scratch::new("queue");
    let failpoints = Failpoints::default();
    let options = FileTierOptions {
        failpoints: failpoints.clone(),
        io_threads: 1,
        queue: 1,
        ..scratch.options(4)
    };
    let (tier, _) = FileTier::open(options).expect("a new directory");
    let slow = FailAction::Sleep(Duration::from_millis(300));
    failpoints.arm(Failpoint::BeforeWrite, slow, Occasion::Always);
    let tier = Arc::new(tier);
    thread::scope(|scope| {
        for page in 0..6 {
            let tier = Arc::clone(&tier);
            scope.spawn(move || {
                let begin = Instant::now();
                let soon = Deadline::after(Duration::from_millis(50));
                let outcome = tier.put(&header(page), &bytes_of(page), soon);
                assert_eq!(outcome, Err(Error::DeadlinePassed { call: "put" }));
                assert!(begin.elapsed() < Duration::from_millis(250), "{:?}", begin.elapsed());
            });
        }
    });
}

#[test]
fn a_failed_write_shows_nothing_and_later_calls_work() {
    let scratch = Scratch::new("eio");
    let (tier, failpoints) = with_failpoints(&scratch, 8);
    put_all(&tier, 0..4);
    let points = [Failpoint::BeforeWrite, Failpoint::HalfWrite, Failpoint::AfterWrite];
    for (number, point) in (4..).zip(points) {
        failpoints.arm(point, FailAction::Errno(libc::EIO), Occasion::Always);
        assert!(matches!(put(&tier, number), Err(Error::TierIo { call: "pwrite", .. })));
        failpoints.arm(point, FailAction::Errno(libc::ENOSPC), Occasion::Always);
        assert!(matches!(put(&tier, number), Err(Error::TierFull { free: 0, .. })));
        assert_eq!(get(&tier, number), Ok(Got::Miss));
        failpoints.disarm();
    }
    let acted = failpoints.acted();
    assert_eq!(acted[0], (FailAction::Errno(libc::EIO), 3));
    let (action, count) = acted[1];
    assert_eq!(action, FailAction::Errno(libc::ENOSPC));
    assert!(count >= 3, "{count}"); // a full tier makes room and tries again
    put_all(&tier, 4..20);
    assert_eq!((tier.usage().failures, tier.usage().pages), (6, 20));
    drop(tier);
    let strict = FileTierOptions { recovery: RecoveryMode::Strict, ..scratch.options(8) };
    let (tier, found) = FileTier::open(strict).expect("a failed write is no damage");
    assert_eq!((found.pages, found.skipped), (20, 0));
    assert_all(&tier, 0..20, Got::Right);
}

/// After a rename whose directory could not be synced, the manifest that lists it may be in force.
#[test]
fn a_segment_that_may_be_listed_is_never_emptied_again() {
    let scratch = Scratch::new("listed");
    let (tier, failpoints) = with_failpoints(&scratch, 8);
    let once = Occasion::OnceAfter(0);
    failpoints.arm(Failpoint::AfterManifestRename, FailAction::Errno(libc::EIO), once);
    assert!(matches!(put(&tier, 0), Err(Error::TierIo { call: "replace manifest", .. })));
    failpoints.arm(Failpoint::BeforeWrite, FailAction::Errno(libc::EIO), once);
    assert!(matches!(put(&tier, 0), Err(Error::TierIo { call: "pwrite", .. })));
    drop(tier); // as a kill would
    let strict = FileTierOptions { recovery: RecoveryMode::Strict, ..scratch.options(8) };
    let (tier, found) = FileTier::open(strict).expect("no failed call is damage");
    assert_eq!((found.segments, found.skipped), (1, 0));
    put_all(&tier, 0..20);
}

#[test]
fn pages_whose_sync_failed_are_written_again_before_they_are_acknowledged() {
    let scratch = Scratch::new("fsync");
    let (tier, failpoints) = with_failpoints(&scratch, 8);
    put_all(&tier, 0..3);
    let first = scratch.segments();
    failpoints.arm(Failpoint::BeforeSync, FailAction::Errno(libc::EIO), Occasion::OnceAfter(0));
    assert!(matches!(tier.flush(far()), Err(Error::TierIo { call: "fdatasync", .. })));
    assert_all(&tier, 0..3, Got::Right);
    tier.flush(far()).expect("written again");
    assert!(scratch.segments().iter().all(|path| !first.contains(path)));
    assert_all(&tier, 0..3, Got::Right);
}

#[test]
fn with_one_call_in_twenty_failing_every_acknowledged_page_stays() {
    let scratch = Scratch::new("rate");
    let (tier, failpoints) = with_failpoints(&scratch, 256);
    let points = [
        Failpoint::BeforeWrite,
        Failpoint::HalfWrite,
        Failpoint::BeforeSync,
        Failpoint::BeforeManifestRename,
        Failpoint::AfterManifestRename,
        Failpoint::InUnlink,
        Failpoint::BeforeRead,
    ];
    for (seed, point) in (0..).zip(points) {
        let chance = Occasion::Chance { one_in: 20, seed };
        failpoints.arm(point, FailAction::Errno(libc::EIO), chance);
    }
    let (mut durable, mut waiting) = (Vec::new(), Vec::new());
    for page in 0..400 {
        if put(&tier, page).is_ok() {
            waiting.push(page);
        }
        if page % 3 == 0 && tier.flush(far()).is_ok() {
            durable.append(&mut waiting);
        }
        if page % 7 == 0 {
            let removed = tier.remove(&identity(page), far());
            durable.retain(|&other| other != page || removed.is_err());
            waiting.retain(|&other| other != page);
        }
        if page % 50 == 0 {
            let _ = tier.collect(far()); // may fail, and must lose nothing
        }
    }
    assert!(durable.len() > 200 && tier.usage().failures > 10, "{:?}", tier.usage());
    failpoints.disarm();
    assert_all(&tier, durable.iter().copied(), Got::Right);
    drop(tier);
    let (tier, found) = scratch.open(256);
    assert_eq!(found.skipped, 0);
    assert_all(&tier, durable.iter().copied(), Got::Right);
}

#[test]
fn a_full_tier_whose_syncs_failed_is_durable_once_the_disk_is_well() {
    for failures in 1..6 {
        let scratch = Scratch::new("full_fsync");
        let (tier, failpoints) = with_failpoints(&scratch, 5);
        let pages = (0..100).take_while(|&page| put(&tier, page).is_ok()).count() as u64;
        failpoints.arm(Failpoint::BeforeSync, FailAction::Errno(libc::EIO), Occasion::Always);
        for _ in 0..failures {
            assert!(tier.flush(far()).is_err());
        }
        failpoints.disarm();
        for _ in 0..4 {
            let _ = tier.flush(far()); // each may get on by a segment
        }
        assert_eq!(tier.flush(far()), Ok(()), "after {failures} failures with {pages} pages");
        drop(tier);
        assert_all(&scratch.open(5).0, 0..pages, Got::Right);
    }
}

#[test]
fn no_flush_of_a_disk_that_fails_for_long_passes_for_a_success() {
    let scratch = Scratch::new("long_fsync");
    let (tier, failpoints) = with_failpoints(&scratch, 256);
    put_all(&tier, 0..1);
    failpoints.arm(Failpoint::BeforeSync, FailAction::Errno(libc::EIO), Occasion::Always);
    for flush in 0..200 {
        assert!(tier.flush(far()).is_err(), "flush {flush}");
    }
}

#[test]
fn a_directory_that_was_removed_and_made_again_is_its_new_owners() {
    let scratch = Scratch::new("removed");
    let (old, _) = scratch.open(8);
    put_all(&old, 0..1);
    std::fs::remove_dir_all(scratch.path()).expect("it is there");
    let (new, _) = scratch.open(8);
    put_all(&new, 100..110);
    assert_eq!(new.flush(far()), Ok(()));
    let outcomes: Vec<_> = (1..40).map(|page| put(&old, page)).collect();
    let last = outcomes.last().expect("there are some");
    assert!(matches!(last, Err(Error::TierIo { .. })), "{last:?}");
    drop((old, new));
    let (tier, found) = scratch.open(8);
    assert_eq!((found.pages, found.skipped), (10, 0));
    assert_all(&tier, 100..110, Got::Right);
}
