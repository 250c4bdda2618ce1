//! The room that is kept for the manifest that gives a segment up, wherever the tests run: the disk
//! is full by failpoints. `file_tier_full_disk` fills a real one.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use file_pages::{Got, Scratch, far, get, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTier, FileTierOptions, Occasion, RecoveryMode,
};
use hisparse_core::tier::{PageTier, Stored};

const SEGMENTS: u64 = 8;
const RESERVE_BYTES: u64 = 8192;
const FULL: [i32; 2] = [libc::ENOSPC, libc::EDQUOT];

fn path_of(scratch: &Scratch, name: &str) -> PathBuf {
    scratch.path().join(name)
}

fn file_number(scratch: &Scratch, name: &str) -> u64 {
    fs::metadata(path_of(scratch, name)).expect("it is there").ino()
}

fn reserve_bytes(scratch: &Scratch) -> u64 {
    fs::metadata(path_of(scratch, "reserve")).map_or(0, |found| found.len())
}

fn open_strictly(scratch: &Scratch, failpoints: &Failpoints) -> FileTier {
    let (recovery, failpoints) = (RecoveryMode::Strict, failpoints.clone());
    let options = FileTierOptions { recovery, failpoints, ..scratch.options(SEGMENTS) };
    FileTier::open(options).expect("sound").0
}

/// A tier with one segment that nobody needs any more, and a page in another one.
fn with_empty_segment(scratch: &Scratch, failpoints: &Failpoints) -> FileTier {
    let tier = open_strictly(scratch, failpoints);
    let mut num_pages = 0;
    while scratch.segments().len() < 2 {
        assert_eq!(put(&tier, num_pages), Ok(Stored::New));
        num_pages += 1;
    }
    tier.flush(far()).expect("a sound disk");
    for page in 0..num_pages - 1 {
        assert_eq!(tier.remove(&identity(page), far()), Ok(true));
    }
    assert!(put(&tier, 100).is_ok());
    tier
}

fn assert_sound_without_first(scratch: &Scratch, tier: FileTier, first: &PathBuf) {
    assert!(!scratch.segments().contains(first));
    assert_eq!(reserve_bytes(scratch), RESERVE_BYTES, "kept again");
    tier.flush(far()).expect("a sound disk");
    drop(tier);
    let tier = open_strictly(scratch, &Failpoints::default());
    assert_eq!(get(&tier, 100), Ok(Got::Right));
}

#[test]
fn a_manifest_that_finds_no_room_takes_that_of_the_reserve_itself() {
    for errno in FULL {
        let (scratch, failpoints) = (Scratch::new("in_reserve"), Failpoints::default());
        let tier = with_empty_segment(&scratch, &failpoints);
        let (first, kept) = (scratch.segments()[0].clone(), file_number(&scratch, "reserve"));
        let full = FailAction::Errno(errno);
        failpoints.arm(Failpoint::BeforeManifestRename, full, Occasion::OnceAfter(0));
        assert_eq!(tier.collect(far()).expect("there is room").segments, 1);
        assert_eq!(file_number(&scratch, "manifest"), kept, "nobody could take it meanwhile");
        assert_sound_without_first(&scratch, tier, &first);
    }
}

/// As where the system writes nothing in its place, so that the reserve is no room by itself.
#[test]
fn a_manifest_that_finds_no_room_in_the_reserve_takes_what_that_gives_back() {
    for errno in FULL {
        let (scratch, failpoints) = (Scratch::new("for_reserve"), Failpoints::default());
        let tier = with_empty_segment(&scratch, &failpoints);
        let first = scratch.segments()[0].clone();
        for point in [Failpoint::BeforeManifestRename, Failpoint::AfterManifestRename] {
            failpoints.arm(point, FailAction::Errno(errno), Occasion::OnceAfter(0));
        }
        assert_eq!(tier.collect(far()).expect("there is room").segments, 1);
        assert_eq!(failpoints.acted(), [(FailAction::Errno(errno), 2)]);
        assert_sound_without_first(&scratch, tier, &first);
    }
}

#[test]
fn a_disk_that_fails_is_no_full_one_and_costs_no_reserve() {
    for errno in [libc::EIO, libc::EROFS] {
        let (scratch, failpoints) = (Scratch::new("failing"), Failpoints::default());
        let tier = with_empty_segment(&scratch, &failpoints);
        let (first, kept) = (scratch.segments()[0].clone(), file_number(&scratch, "reserve"));
        let failing = FailAction::Errno(errno);
        failpoints.arm(Failpoint::BeforeManifestRename, failing, Occasion::Always);
        let collected = tier.collect(far());
        assert!(
            matches!(collected, Err(Error::TierIo { call: "replace manifest", .. })),
            "{collected:?}"
        );
        assert_eq!((file_number(&scratch, "reserve"), reserve_bytes(&scratch)), (kept, 8192));
        failpoints.disarm();
        assert_eq!(tier.collect(far()).expect("a sound disk").segments, 1);
        assert_sound_without_first(&scratch, tier, &first);
    }
}

/// A kill leaves a reserve that is missing, short or half a manifest; an earlier version left none.
#[test]
fn whatever_is_left_of_a_reserve_is_whole_again_after_the_start() {
    let (scratch, failpoints) = (Scratch::new("left"), Failpoints::default());
    drop(with_empty_segment(&scratch, &failpoints));
    let (reserve, manifest) = (path_of(&scratch, "reserve"), path_of(&scratch, "manifest"));
    let left: [&dyn Fn(); 5] = [
        &|| fs::remove_file(&reserve).expect("it is there"),
        &|| drop(fs::File::create(&reserve).expect("there is space")),
        &|| fs::write(&reserve, [0; 4096]).expect("there is space"),
        &|| fs::write(&reserve, fs::read(&manifest).expect("it is there")).expect("space"),
        &|| fs::write(&reserve, &fs::read(&manifest).expect("it is there")[..50]).expect("space"),
    ];
    for leave in left {
        leave();
        let tier = open_strictly(&scratch, &failpoints);
        assert_eq!(reserve_bytes(&scratch), RESERVE_BYTES);
        assert_eq!(get(&tier, 100), Ok(Got::Right));
    }
}

#[test]
fn a_start_that_is_refused_makes_no_reserve() {
    let scratch = Scratch::new("refused");
    drop(with_empty_segment(&scratch, &Failpoints::default()));
    fs::remove_file(path_of(&scratch, "reserve")).expect("it is there");
    let strict = FileTierOptions { recovery: RecoveryMode::Strict, ..scratch.options(SEGMENTS) };
    let foreign = FileTierOptions { digest: [9; 32], ..strict.clone() };
    assert!(matches!(FileTier::open(foreign), Err(Error::TierForeign { .. })));
    fs::write(path_of(&scratch, "manifest"), b"no manifest").expect("there is space");
    assert!(matches!(FileTier::open(strict), Err(Error::TierDamaged { .. })));
    assert_eq!(reserve_bytes(&scratch), 0);
}
