//! Case 10: a disk that is truly full, of the tier's own files or of others', and has space again.
//!
//! The disk is a small tmpfs that only a child of this test sees, in a namespace of its own.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use file_pages::{Got, Scratch, far, get, identity, put};
use hisparse_core::Error;
use hisparse_core::tier::file::{FileTier, FileTierOptions, RecoveryMode};
use hisparse_core::tier::{PageTier, Stored};

/// More segments than the disk has room for.
const SEGMENTS: u64 = 4096;
const MOUNTED: &str = "HISPARSE_FULL_DISK";
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
        writeln!(std::io::stdout(), "no namespaces with mounts here: left out").expect("open");
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
    let theirs = scratch.path().with_file_name("theirs");
    let mut file = fs::File::create(&theirs).expect("there is space");
    while file.write(&[1; 4096]).is_ok() {}
    drop(file);
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
