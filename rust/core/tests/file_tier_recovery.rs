//! What opening a directory finds after an end that nobody planned.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use file_pages::{Got, Scratch, far, get, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::file::{FileTier, FileTierOptions, Recovery, RecoveryMode};
use hisparse_core::tier::{PageTier, Stored};

const SEGMENTS: u64 = 32;
const NUM_PAGES: u64 = 40;
const MODES: [RecoveryMode; 2] = [RecoveryMode::Strict, RecoveryMode::Quiet];

/// A closed directory with pages 0 to 39, all flushed.
fn filled(name: &str) -> Scratch {
    let scratch = Scratch::new(name);
    let (tier, _) = scratch.open(SEGMENTS);
    (0..NUM_PAGES).for_each(|page| assert_eq!(put(&tier, page), Ok(Stored::New)));
    tier.flush(far()).expect("a sound disk");
    drop(tier);
    scratch
}

fn open(scratch: &Scratch, recovery: RecoveryMode) -> Result<(FileTier, Recovery), Error> {
    FileTier::open(FileTierOptions { recovery, ..scratch.options(SEGMENTS) })
}

fn count_right(tier: &FileTier) -> u64 {
    let got: Vec<_> = (0..NUM_PAGES).map(|page| get(tier, page)).collect();
    assert!(!got.contains(&Ok(Got::Wrong)), "{got:?}");
    got.iter().filter(|got| **got == Ok(Got::Right)).count() as u64
}

fn len(path: &Path) -> u64 {
    path.metadata().expect("it exists").len()
}

fn shorten(path: &Path, num_bytes: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("it exists");
    file.set_len(len(path) - num_bytes).expect("it can be shorter");
}

/// The directory with pages 40 to 42 in its newest segment, which no sync has reached, and where
/// the record of the first of them begins.
fn filled_and_killed(name: &str) -> (Scratch, PathBuf, u64) {
    let scratch = filled(name);
    let (tier, _) = scratch.open(SEGMENTS);
    let newest = scratch.segments().pop().expect("there are segments");
    let at = len(&newest);
    (NUM_PAGES..NUM_PAGES + 3).for_each(|page| assert_eq!(put(&tier, page), Ok(Stored::New)));
    assert_eq!(scratch.segments().pop(), Some(newest.clone()), "there was room");
    (scratch, newest, at)
}

fn write_at(path: &Path, bytes: &[u8], at: u64) {
    let file = OpenOptions::new().write(true).open(path).expect("it exists");
    file.write_all_at(bytes, at).expect("it can be written");
}

#[test]
fn a_torn_end_is_dropped_and_written_over_in_both_modes() {
    for mode in MODES {
        let (scratch, newest, _) = filled_and_killed("torn");
        shorten(&newest, 4096 + 100);
        let (tier, found) = open(&scratch, mode).expect("a torn end is no damage");
        assert_eq!((found.pages, found.torn, found.skipped), (NUM_PAGES + 2, 1, 0));
        assert_eq!((count_right(&tier), get(&tier, NUM_PAGES + 2)), (NUM_PAGES, Ok(Got::Miss)));
        assert_eq!(put(&tier, NUM_PAGES + 2), Ok(Stored::New));
        drop(tier);
        let (tier, found) = open(&scratch, mode).expect("nothing is torn any more");
        assert_eq!((found.pages, found.torn), (NUM_PAGES + 3, 0));
        assert_eq!(get(&tier, NUM_PAGES + 2), Ok(Got::Right));
    }
}

/// Of two threads that write to one segment, a kill may stop the one whose record is before.
#[test]
fn a_torn_record_before_a_whole_one_is_no_damage_and_neither_is_it_after_more_syncs() {
    let torn: [&[u8]; 3] = [&[0; 4096], &[0; 8192], b"torn"]; // head, whole record, magic
    for (mode, bytes) in MODES.into_iter().flat_map(|mode| torn.map(|bytes| (mode, bytes))) {
        let (scratch, newest, at) = filled_and_killed("writers");
        write_at(&newest, bytes, at);
        for _ in 0..2 {
            let (tier, found) = open(&scratch, mode).expect("what a kill leaves is no damage");
            assert_eq!((found.pages, found.torn, found.skipped), (NUM_PAGES + 2, 1, 0));
            assert_eq!(get(&tier, NUM_PAGES), Ok(Got::Miss));
            assert_eq!(get(&tier, NUM_PAGES + 1), Ok(Got::Right));
            tier.flush(far()).expect("a sound disk");
        }
    }
}

type Spoil = dyn Fn(&Path, u64);

#[test]
fn damage_of_what_was_flushed_is_none_that_a_kill_leaves() {
    let spoil: [&Spoil; 4] = [
        &|newest, at| write_at(newest, &[0x42; 8], at - 4096), // of the last page
        &|newest, at| write_at(newest, &vec![0; usize::try_from(at - 4096).expect("small")], 4096),
        &|newest, at| shorten(newest, len(newest) - at + 4096),
        &|newest, _| write_at(newest, &[0x42], 64), // the note of what was synced
    ];
    for spoil in spoil {
        let (scratch, newest, at) = filled_and_killed("rot");
        spoil(&newest, at);
        let refused = open(&scratch, RecoveryMode::Strict).err();
        assert!(matches!(refused, Some(Error::TierDamaged { .. })), "{refused:?}");
        let (tier, found) = open(&scratch, RecoveryMode::Quiet).expect("quiet goes on");
        assert!(found.skipped > 0, "{found:?}");
        assert!(count_right(&tier) + found.skipped >= NUM_PAGES, "{found:?}");
    }
}

#[test]
fn a_torn_footer_costs_a_scan_and_no_page() {
    let scratch = filled("footer");
    shorten(&scratch.segments()[0], 1);
    let refused = open(&scratch, RecoveryMode::Strict).err();
    assert!(matches!(refused, Some(Error::TierDamaged { .. })), "{refused:?}");
    let (tier, found) = open(&scratch, RecoveryMode::Quiet).expect("quiet goes on");
    assert_eq!((found.pages, found.scanned, found.skipped), (NUM_PAGES, 2, 1));
    assert_eq!(count_right(&tier), NUM_PAGES);
    tier.flush(far()).expect("a sound disk");
    drop(tier);
    let (_, found) = open(&scratch, RecoveryMode::Strict).expect("the footer is there again");
    assert_eq!((found.pages, found.scanned), (NUM_PAGES, 1));
}

#[test]
fn a_lost_manifest_is_made_again_from_the_segments() {
    let scratch = filled("manifest");
    fs::remove_file(scratch.path().join("manifest")).expect("it exists");
    let refused = open(&scratch, RecoveryMode::Strict).err();
    assert!(matches!(refused, Some(Error::TierDamaged { .. })), "{refused:?}");
    let other = FileTierOptions { digest: [1; 32], ..scratch.options(SEGMENTS) };
    let foreign = FileTier::open(other).err();
    assert!(matches!(foreign, Some(Error::TierForeign { .. })), "{foreign:?}");
    let (tier, found) = open(&scratch, RecoveryMode::Quiet).expect("quiet goes on");
    assert_eq!((found.pages, found.skipped), (NUM_PAGES, 1));
    assert_eq!(count_right(&tier), NUM_PAGES);
    drop(tier);
    assert!(open(&scratch, RecoveryMode::Strict).is_ok());
}

#[test]
fn a_manifest_of_another_version_is_refused_in_both_modes() {
    let scratch = filled("version");
    let path = scratch.path().join("manifest");
    let mut bytes = fs::read(&path).expect("it exists");
    bytes[8] = 7;
    let body = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, bytes).expect("there is space");
    for mode in MODES {
        let refused = open(&scratch, mode).err();
        assert!(matches!(refused, Some(Error::WrongState { found: 7, needed: 1, .. })));
    }
}

#[test]
fn a_segment_that_no_manifest_lists_is_removed() {
    let scratch = filled("orphan");
    let orphan = scratch.path().join("segment-00000099");
    fs::copy(&scratch.segments()[0], &orphan).expect("there is space");
    let (tier, found) = open(&scratch, RecoveryMode::Strict).expect("an orphan is no damage");
    assert_eq!((found.pages, count_right(&tier)), (NUM_PAGES, NUM_PAGES));
    assert!(!orphan.exists());
}

#[test]
fn numbers_of_segments_go_on_from_the_manifest_and_end_in_an_error() {
    let last = |scratch: &Scratch| scratch.path().join("segment-ffffffff");
    let scratch = filled("last_orphan");
    fs::write(last(&scratch), b"not ours").expect("there is space");
    let (tier, _) = open(&scratch, RecoveryMode::Strict).expect("an orphan is no damage");
    (NUM_PAGES..2 * NUM_PAGES).for_each(|page| assert_eq!(put(&tier, page), Ok(Stored::New)));
    assert_eq!(count_right(&tier), NUM_PAGES);
    drop(tier);

    fs::write(last(&scratch), b"not ours").expect("there is space");
    fs::remove_file(scratch.path().join("manifest")).expect("it exists");
    let (tier, _) = open(&scratch, RecoveryMode::Quiet).expect("what is sound is there");
    let put: Vec<_> = (2 * NUM_PAGES..4 * NUM_PAGES).map(|page| put(&tier, page)).collect();
    assert!(matches!(put.last(), Some(Err(Error::TierIo { .. }))), "{put:?}");
    assert_eq!(count_right(&tier), NUM_PAGES);
}

#[test]
fn a_damaged_page_is_counted_once_quarantined_and_leaves_with_its_segment() {
    let scratch = filled("quarantine");
    let (tier, _) = open(&scratch, RecoveryMode::Strict).expect("no damage");
    let damaged = scratch.segments().remove(0);
    write_at(&damaged, &[0xff; 16], 4096 + 192); // the first page
    assert_eq!(get(&tier, 0), Ok(Got::Miss));
    assert_eq!(get(&tier, 0), Ok(Got::Miss));
    assert_eq!(tier.holds(&identity(0), far()), Ok(false));
    assert_eq!((tier.usage().corrupt, count_right(&tier)), (1, NUM_PAGES - 1));
    assert!(tier.collect(far()).expect("a sound disk").segments >= 1);
    assert!(!damaged.exists(), "its sound pages have moved");
    assert_eq!(count_right(&tier), NUM_PAGES - 1);
}
