//! Killing a process that writes: every page that it was told is durable is there afterwards.
//!
//! The oracle is this process: the child says by a pipe which pages were flushed. A kill leaves
//! the page cache alone, so this shows the order of writes within files and directories, not what
//! a disk does when its power goes.
//! `cargo test --release --test file_tier_kill -- --ignored --nocapture` kills 300 times.

#[path = "support/file_pages.rs"]
mod file_pages;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use file_pages::{Got, Scratch, far, get, identity, put};
use hisparse_core::tier::PageTier;
use hisparse_core::tier::file::{
    FailAction, Failpoint, Failpoints, FileTier, FileTierOptions, Occasion, RecoveryMode,
};

/// Segments: more than the pages of one directory take.
const SEGMENTS: u64 = 4096;
const LANES: u64 = 2;
/// Kills of one directory before the next gets a new one.
const KILLS_A_DIRECTORY: u64 = 10;
const POINTS: [Failpoint; 8] = [
    Failpoint::BeforeWrite,
    Failpoint::HalfWrite,
    Failpoint::AfterWrite,
    Failpoint::BeforeSync,
    Failpoint::AfterSync,
    Failpoint::BeforeManifestRename,
    Failpoint::AfterManifestRename,
    Failpoint::InUnlink,
];

/// Every other page of a lane is removed some time after it was put.
fn may_be_removed(page: u64) -> bool {
    (page / LANES).is_multiple_of(2)
}

/// What the child does until it dies: put, flush, say so, remove, collect.
fn append(tier: &FileTier, first: u64, lane: u64) {
    let mut batch = Vec::new();
    for page in (first + lane..).step_by(2) {
        put(tier, page).expect("there is space");
        batch.push(page);
        if batch.len() == 3 {
            tier.flush(far()).expect("a sound disk");
            for page in batch.drain(..) {
                writeln!(std::io::stdout(), "durable {page}").expect("the parent listens");
            }
        }
        let removed = page.checked_sub(20 * LANES).filter(|&old| old >= first);
        if let Some(old) = removed.filter(|&old| may_be_removed(old)) {
            tier.remove(&identity(old), far()).expect("a sound disk");
        }
        if (page / LANES).is_multiple_of(16) {
            tier.collect(far()).expect("a sound disk");
        }
    }
}

/// The child: this same test, started again with a directory to write to.
#[test]
fn child_appends_until_it_is_killed() {
    let Some(directory) = std::env::var_os("HISPARSE_KILL_DIRECTORY") else { return };
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let failpoints = Failpoints::default();
    if let Some(point) = number("HISPARSE_KILL_POINT") {
        let after = number("HISPARSE_KILL_AFTER").expect("given with the point");
        let point = POINTS[usize::try_from(point).expect("small")];
        failpoints.arm(point, FailAction::Abort, Occasion::OnceAfter(after));
    }
    let first = number("HISPARSE_KILL_FIRST").expect("given with the directory");
    let scratch = Scratch::at(directory);
    let options = FileTierOptions { failpoints, ..scratch.options(SEGMENTS) };
    let (tier, _) = FileTier::open(options).expect("no kill makes a directory unusable");
    thread::scope(|scope| {
        for lane in 0..LANES {
            let tier = &tier;
            scope.spawn(move || append(tier, first, lane));
        }
    });
}

/// How a child is to die.
#[derive(Debug, Clone, Copy)]
enum Death {
    Killed { millis: u64 },
    Aborted { point: usize, after: u64 },
}

impl Death {
    /// The first of every three by failpoint, in turn; the rest at any time.
    fn draw(number: u64) -> Self {
        let random = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let point = usize::try_from(number / 3 % 8).expect("below 8");
        // an unlink takes a collection, a manifest a new segment, a sync three pages
        let after = random % [60, 60, 60, 20, 20, 8, 8, 4][point];
        match number % 3 {
            0 => Self::Aborted { point, after },
            _ => Self::Killed { millis: random % 500 },
        }
    }
}

fn start(scratch: &Scratch, first: u64, death: Death) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("it runs"));
    command.args(["--exact", "child_appends_until_it_is_killed", "--nocapture"]);
    command.env("HISPARSE_KILL_DIRECTORY", scratch.path());
    command.env("HISPARSE_KILL_FIRST", first.to_string());
    if let Death::Aborted { point, after } = death {
        command.env("HISPARSE_KILL_POINT", point.to_string());
        command.env("HISPARSE_KILL_AFTER", after.to_string());
    }
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts")
}

/// Runs a child to its death; the pages that it said are durable.
fn run_to_death(scratch: &Scratch, first: u64, death: Death) -> Vec<u64> {
    let mut child = start(scratch, first, death);
    let mut pipe = child.stdout.take().expect("piped");
    let reader = thread::spawn(move || {
        let mut said = Vec::new();
        pipe.read_to_end(&mut said).map(|_| said)
    });
    if let Death::Killed { millis } = death {
        thread::sleep(Duration::from_millis(millis));
        child.kill().expect("it is ours");
    }
    let status = child.wait().expect("it is ours");
    assert!(!status.success() && status.code().is_none(), "{death:?}: a signal: {status}");
    let said = reader.join().expect("no panic").expect("a pipe");
    let whole = said.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let lines = whole.filter_map(|line| str::from_utf8(line).ok());
    lines.filter_map(|line| line.trim().strip_prefix("durable ")?.parse().ok()).collect()
}

#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    acknowledged: u64,
    lost: u64,
    wrong: u64,
    max_recovery_us: u64,
}

impl Tally {
    fn check(&mut self, scratch: &Scratch, durable: &BTreeSet<u64>) {
        let strict =
            FileTierOptions { recovery: RecoveryMode::Strict, ..scratch.options(SEGMENTS) };
        let (tier, found) = FileTier::open(strict).expect("no kill leaves damage");
        self.max_recovery_us = self.max_recovery_us.max(found.micros);
        let end = durable.last().map_or(0, |last| last + 100);
        for page in 0..end {
            let got = get(&tier, page).expect("a sound disk");
            let must_be_there = durable.contains(&page) && !may_be_removed(page);
            self.wrong += u64::from(got == Got::Wrong);
            self.lost += u64::from(got == Got::Miss && must_be_there);
        }
    }
}

fn kill(num_kills: u64, first_number: u64) -> Tally {
    let mut tally = Tally::default();
    for directory in 0..num_kills.div_ceil(KILLS_A_DIRECTORY) {
        let scratch = Scratch::new("kill");
        let mut durable = BTreeSet::new();
        let left = num_kills - directory * KILLS_A_DIRECTORY;
        for _ in 0..left.min(KILLS_A_DIRECTORY) {
            let first = durable.last().map_or(0, |last: &u64| (last + 2) / 2 * 2);
            let said = run_to_death(&scratch, first, Death::draw(first_number + tally.kills));
            tally.acknowledged += said.len() as u64;
            durable.extend(said);
            tally.kills += 1;
            tally.check(&scratch, &durable);
        }
    }
    tally
}

#[test]
fn no_kill_of_24_loses_an_acknowledged_page() {
    let tally = kill(24, 0);
    assert_eq!((tally.kills, tally.lost, tally.wrong), (24, 0, 0), "{tally:?}");
    assert!(tally.acknowledged > 100, "{tally:?}");
}

#[test]
#[ignore = "a few minutes"]
fn no_kill_of_300_loses_an_acknowledged_page() {
    let Tally { kills, acknowledged, lost, wrong, max_recovery_us } = kill(300, 24);
    let line = format!(
        r#"{{"case": "kills", "kills": {kills}, "pages_acknowledged": {acknowledged}, "pages_lost_acknowledged": {lost}, "wrong_bytes": {wrong}, "max_recovery_us": {max_recovery_us}}}"#
    );
    writeln!(std::io::stdout(), "{line}").expect("stdout is open");
    assert_eq!((kills, lost, wrong), (300, 0, 0));
}
