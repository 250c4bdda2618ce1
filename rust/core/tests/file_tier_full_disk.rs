//! Case 10: a disk that is truly full, of the tier's own files or of others', and has space again.
//!
//! The disk is a small tmpfs that only a child of this test sees, in a namespace of its own. Where
//! the system makes none, each test says so; `file_tier_reserve` needs none.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use file_pages::{DIGEST, Got, Scratch, far, get, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTier, FileTierOptions, Occasion, RecoveryMode,
};
use hisparse_core::tier::{PageHeader, PageTier, Stored};

/// More segments than the disk has room for.
const SEGMENTS: u64 = 4096;
const MOUNTED: &str = "HISPARSE_FULL_DISK";
const DEADLY: [Failpoint; 5] = [
    Failpoint::HalfWrite,
    Failpoint::AfterSync,
    Failpoint::BeforeManifestRename,
    Failpoint::AfterManifestRename,
    Failpoint::InUnlink,
];
const IN_NAMESPACE: [&str; 3] = ["--user", "--map-root-user", "--mount"];
const MOUNT_AND_RUN: &str = r#"mount -t tmpfs -o size=2m tmpfs "$1" && shift && exec "$@""#;

/// Runs one test of this file again, on a disk of 2 MiB; false where the system makes none.
fn on_small_disk(test: &str) -> bool {
    let unshared = |script: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(IN_NAMESPACE).args(["sh", "-c"]).args(script);
        command
    };
    let scratch = Scratch::new("full");
    fs::create_dir_all(scratch.path()).expect("there is space");
    let path = scratch.path().to_str().expect("named by us");
    let probe = unshared(&[MOUNT_AND_RUN, "sh", path, "true"]).output();
    if !probe.is_ok_and(|probe| probe.status.success()) {
        // not by println, which is shown of tests that fail
        writeln!(std::io::stdout(), "{test}: left out, no namespace with a mount").expect("open");
        return false;
    }
    let program = std::env::current_exe().expect("it runs");
    let program = program.to_str().expect("named by Cargo");
    let mut child = unshared(&[MOUNT_AND_RUN, "sh", path, program, "--exact", test]);
    let output = child.env(MOUNTED, path).output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
    true
}

/// The disk, in the child; None in the parent.
fn disk() -> Option<Scratch> {
    let path = std::env::var_os(MOUNTED)?;
    Some(Scratch::at(Path::new(&path).join("pages")))
}

fn open(scratch: &Scratch) -> FileTier {
    let recovery = RecoveryMode::Strict;
    FileTier::open(FileTierOptions { recovery, ..scratch.options(SEGMENTS) }).expect("sound").0
}

/// Puts a page, and takes the oldest ones out until there is room; how many went.
fn put_with_room(tier: &FileTier, page: u64, held: &mut VecDeque<u64>) -> usize {
    for num_gone in 0.. {
        match put(tier, page) {
            Ok(stored) => {
                assert_eq!(stored, Stored::New);
                held.push_back(page);
                return num_gone;
            }
            Err(Error::TierFull { .. }) => {
                let oldest = held.pop_front().expect("the tier is empty, and still full");
                assert_eq!(tier.remove(&identity(oldest), far()), Ok(true));
            }
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("pages come to an end")
}

/// The child's child: new pages for old ones on a full disk, until it dies.
#[test]
fn child_of_the_child_dies_on_the_full_disk() {
    let Some(directory) = std::env::var_os("HISPARSE_DIE_IN") else { return };
    let number = |name| std::env::var(name).expect("given").parse::<usize>().expect("a number");
    let failpoints = Failpoints::default();
    let tier = {
        let options = Scratch::at(directory).options(SEGMENTS);
        let (recovery, failpoints) = (RecoveryMode::Strict, failpoints.clone());
        FileTier::open(FileTierOptions { recovery, failpoints, ..options }).expect("sound").0
    };
    let after = Occasion::OnceAfter(number("HISPARSE_DIE_AFTER") as u64);
    failpoints.arm(DEADLY[number("HISPARSE_DIE_AT")], FailAction::Abort, after);
    let mut held: VecDeque<u64> = tier.pages().iter().map(page_of).collect();
    for page in held.back().map_or(0, |last| last + 1).. {
        put_with_room(&tier, page, &mut held);
        tier.flush(far()).expect("a sound disk");
    }
}

fn page_of(header: &PageHeader) -> u64 {
    (0..100_000).find(|&page| identity(page) == header.identity).expect("one of ours")
}

#[test]
fn a_kill_on_a_full_disk_leaves_it_sound_and_of_use() {
    let Some(scratch) = disk() else {
        on_small_disk("a_kill_on_a_full_disk_leaves_it_sound_and_of_use");
        return;
    };
    let (tier, mut held) = (open(&scratch), VecDeque::new());
    let num_gone: usize = (0..500).map(|page| put_with_room(&tier, page, &mut held)).sum();
    assert!(num_gone > 200, "the disk is full: {num_gone}");
    tier.flush(far()).expect("a sound disk");
    drop(tier);
    for (at, after) in (0..DEADLY.len()).flat_map(|at| (0..6).map(move |after| (at, after))) {
        let mut child = Command::new(std::env::current_exe().expect("it runs"));
        child.args(["--exact", "child_of_the_child_dies_on_the_full_disk"]);
        child.env("HISPARSE_DIE_IN", scratch.path());
        child.env("HISPARSE_DIE_AT", at.to_string()).env("HISPARSE_DIE_AFTER", after.to_string());
        let died = child.output().expect("it starts").status;
        assert!(!died.success() && died.code().is_none(), "by a signal: {died}");
        let tier = open(&scratch);
        let mut held: VecDeque<u64> = tier.pages().iter().map(page_of).collect();
        assert!(held.len() > 150, "{:?} after {after}: {} pages", DEADLY[at], held.len());
        assert_holds(&tier, &held);
        let next = held.back().expect("some") + 1;
        for page in next..next + 20 {
            put_with_room(&tier, page, &mut held);
        }
        assert_holds(&tier, &held);
    }
}

#[test]
fn a_full_disk_without_a_sound_manifest_is_opened_and_a_directory_anew_is_refused() {
    let Some(scratch) = disk() else {
        on_small_disk(
            "a_full_disk_without_a_sound_manifest_is_opened_and_a_directory_anew_is_refused",
        );
        return;
    };
    let (tier, mut held) = (open(&scratch), VecDeque::new());
    (0..60).for_each(|page| assert_eq!(put_with_room(&tier, page, &mut held), 0));
    tier.flush(far()).expect("a sound disk");
    drop(tier);
    fill(&scratch);
    let options = FileTierOptions::new(scratch.path().with_file_name("anew"), 1 << 30, DIGEST);
    let refused = FileTier::open(options).err();
    assert!(matches!(refused, Some(Error::TierFull { .. })), "{refused:?}");
    let manifest = scratch.path().join("manifest");
    let bytes = fs::read(&manifest).expect("it is there");
    for spoil in [&bytes[1..], &[]] {
        fs::write(&manifest, spoil).expect("it needs no more room");
        let (tier, found) = scratch.open(SEGMENTS);
        assert_eq!((found.pages, found.skipped), (60, 1));
        assert_holds(&tier, &held);
    }
    fs::remove_file(&manifest).expect("it is there");
    assert_holds(&scratch.open(SEGMENTS).0, &held);
    assert_holds(&open(&scratch), &held); // of the manifest that was written then
}

/// Others write until nothing is free.
fn fill(scratch: &Scratch) -> PathBuf {
    let theirs = scratch.path().with_file_name("theirs");
    let mut file = fs::File::create(&theirs).expect("there is space");
    while file.write(&[1; 4096]).is_ok() {}
    theirs
}

fn assert_holds(tier: &FileTier, held: &VecDeque<u64>) {
    for &page in held {
        assert_eq!(get(tier, page), Ok(Got::Right), "page {page}");
    }
}

#[test]
fn a_disk_full_of_its_own_pages_takes_new_ones_for_old() {
    let Some(scratch) = disk() else {
        on_small_disk("a_disk_full_of_its_own_pages_takes_new_ones_for_old");
        return;
    };
    let (mut held, mut num_gone, mut next) = (VecDeque::new(), 0, 0..);
    for _ in 0..3 {
        let tier = open(&scratch);
        for page in next.by_ref().take(500) {
            num_gone += put_with_room(&tier, page, &mut held);
        }
        assert!(held.len() > 150, "{} of what 2 MiB take", held.len());
        assert_holds(&tier, &held);
    }
    assert!(num_gone > 500, "the disk was full: {num_gone}");
    assert_holds(&open(&scratch), &held);
}

#[test]
fn a_disk_that_others_have_filled_is_used_again_once_they_let_go() {
    let Some(scratch) = disk() else {
        on_small_disk("a_disk_that_others_have_filled_is_used_again_once_they_let_go");
        return;
    };
    let tier = open(&scratch);
    let mut held = VecDeque::new();
    (0..60).for_each(|page| assert_eq!(put_with_room(&tier, page, &mut held), 0));
    let theirs = fill(&scratch);
    for page in 60..200 {
        put_with_room(&tier, page, &mut held);
    }
    assert!(held.len() > 20, "{}", held.len());
    assert_holds(&tier, &held);
    fs::remove_file(theirs).expect("it is there");
    (200..260).for_each(|page| assert_eq!(put_with_room(&tier, page, &mut held), 0));
    drop(tier);
    assert_holds(&open(&scratch), &held);
}
