//! `cargo bench -p hisparse-core --bench file_tier [-- DIRECTORY]`: one JSON line a case.
//!
//! Spilling and restoring 1 GiB beside two peers, in turn: plain `pwrite` and `pread` of the same
//! sizes by as many threads, the reads from the tier's own files; and `dd` with blocks of the same
//! size, one at a time. What is written is durable at the end, what is read is cold. Then opening a
//! directory of 10 GiB.

#[path = "support/raw_files.rs"]
mod raw_files;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hisparse_core::Result;
use hisparse_core::tier::file::{FileTier, FileTierOptions};
use hisparse_core::tier::{Deadline, IDENTITY_BYTES, PageHeader, PageIdentity, PageTier};
use raw_files::{RawFiles, in_turn, read_all, refused};
use rustix::fs::{Advice, fadvise};

const TOTAL_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 8; // even: what was read before may lie in a cache that we cannot empty
const SEGMENT_BYTES: u64 = 128 << 20;
/// Calls at a time: what a spill of a sequence's pages keeps going.
const CALLERS: u64 = 4;
/// Bytes that a call puts, if its pages are not longer.
const CALL_BYTES: u64 = 1 << 20;
const INDEX_BYTES: u64 = 10 << 30;

fn main() -> Result<()> {
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let directory = given.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    for page_bytes in [48 << 10, 1 << 20, (61 * 41) << 10] {
        compare(&directory, page_bytes)?;
    }
    recover(&directory.join("bench-recovery"), 48 << 10)
}

/// Bytes a second of the two halves of one round.
#[derive(Debug, Clone, Copy)]
struct Rates {
    spill: f64,
    restore: f64,
}

type Half = fn(&Rates) -> f64;

/// Rounds that take turns, for the disk is not the same from minute to minute; who begins changes.
fn compare(directory: &Path, page_bytes: u64) -> Result<()> {
    let (mut ours, mut raw, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (tier, plain) = time_both(directory, page_bytes, round % 2 == 1)?;
        ours.push(tier);
        raw.push(plain);
        theirs.push(time_dd(&directory.join("bench-dd"), page_bytes)?);
    }
    let rates = |rounds: &[Rates], half: Half| -> Vec<f64> {
        rounds.iter().map(|round| half(round) / 1e9).collect()
    };
    let halves: [(&str, Half); 2] =
        [("spill", |rates| rates.spill), ("restore", |rates| rates.restore)];
    for (case, half) in halves {
        let (ours, raw, dd) = (rates(&ours, half), rates(&raw, half), rates(&theirs, half));
        report(&format!(
            r#""case": "{case}", "page_bytes": {page_bytes}, "gb_per_s": {ours:.3?}, "plain_gb_per_s": {raw:.3?}, "dd_gb_per_s": {dd:.3?}"#
        ));
    }
    Ok(())
}

/// The tier and its plain peer; both read what the tier has written.
fn time_both(directory: &Path, page_bytes: u64, plain_first: bool) -> Result<(Rates, Rates)> {
    let (tiers, plains) = (directory.join("bench-tier"), directory.join("bench-raw"));
    let early = plain_first.then(|| write_plain(&plains, page_bytes)).transpose()?;
    let spill = spill(&tiers, page_bytes)?;
    let plain_spill = early.map_or_else(|| write_plain(&plains, page_bytes), Ok)?;
    let early = plain_first.then(|| read_plain(&tiers, page_bytes)).transpose()?;
    let restore = restore(&tiers, page_bytes)?;
    let plain_restore = early.map_or_else(|| read_plain(&tiers, page_bytes), Ok)?;
    fs::remove_dir_all(tiers).map_err(refused)?;
    let plain = Rates { spill: plain_spill, restore: plain_restore };
    Ok((Rates { spill, restore }, plain))
}

fn spill(directory: &Path, page_bytes: u64) -> Result<f64> {
    let _ = fs::remove_dir_all(directory);
    let tier = open(directory)?;
    let page = page_of(page_bytes);
    let num_pages = TOTAL_BYTES / page_bytes;
    rate(num_pages * page_bytes, || {
        put_all(&tier, num_pages, &page)?;
        tier.flush(far())
    })
}

fn restore(directory: &Path, page_bytes: u64) -> Result<f64> {
    let length = page_of(page_bytes).len();
    let num_pages = TOTAL_BYTES / page_bytes;
    make_all_cold(directory)?;
    let tier = open(directory)?;
    rate(num_pages * page_bytes, || {
        in_turn(num_pages, CALLERS, length, |number, into| {
            let found = tier.get(&identity(number), into, far())?;
            assert!(found && into[length - 1] == 0x5a, "page {number}");
            Ok(())
        })
    })
}

fn write_plain(directory: &Path, page_bytes: u64) -> Result<f64> {
    let _ = fs::remove_dir_all(directory);
    let (page, num_pages) = (page_of(page_bytes), TOTAL_BYTES / page_bytes);
    let files = RawFiles::create(directory, page_bytes, num_pages, SEGMENT_BYTES)?;
    let written = rate(num_pages * page_bytes, || files.write_all(&page, num_pages, CALLERS));
    fs::remove_dir_all(directory).map_err(refused)?;
    written
}

fn read_plain(directory: &Path, page_bytes: u64) -> Result<f64> {
    make_all_cold(directory)?;
    let begin = Instant::now();
    let num_bytes = read_all(directory, page_bytes, CALLERS)?;
    Ok(number(num_bytes) / begin.elapsed().as_secs_f64())
}

/// Bytes a second of a call that moves so many.
fn rate(num_bytes: u64, call: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    call()?;
    Ok(number(num_bytes) / begin.elapsed().as_secs_f64())
}

fn open(directory: &Path) -> Result<FileTier> {
    let options = FileTierOptions {
        segment_bytes: SEGMENT_BYTES,
        ..FileTierOptions::new(directory, 4 << 30, [1; 32])
    };
    Ok(FileTier::open(options)?.0)
}

fn page_of(page_bytes: u64) -> Vec<u8> {
    vec![0x5a; usize::try_from(page_bytes).expect("small")]
}

/// Puts pages, small ones about a megabyte a call.
fn put_all(tier: &FileTier, num_pages: u64, page: &[u8]) -> Result<()> {
    let pages_a_call = (CALL_BYTES / page.len() as u64).max(1);
    in_turn(num_pages.div_ceil(pages_a_call), CALLERS, 0, |call, _| {
        let first = call * pages_a_call;
        let numbers = first..num_pages.min(first + pages_a_call);
        let batch: Vec<_> = numbers.map(|number| (header(number), page)).collect();
        tier.put_many(&batch, far())?.into_iter().try_for_each(|stored| stored.map(|_| ()))
    })
}

fn time_dd(file: &Path, block_bytes: u64) -> Result<Rates> {
    let _ = fs::remove_file(file);
    let num_blocks = TOTAL_BYTES / block_bytes;
    let rate_of = |seconds: f64| number(num_blocks * block_bytes) / seconds;
    let of_file = format!("of={}", file.display());
    let count = format!("count={num_blocks}");
    let spill = dd(block_bytes, &["if=/dev/zero", &of_file, &count, "conv=fdatasync"])?;
    make_cold(&File::open(file).map_err(refused)?);
    let restore = dd(block_bytes, &[&format!("if={}", file.display()), "of=/dev/null"])?;
    fs::remove_file(file).map_err(refused)?;
    Ok(Rates { spill: rate_of(spill), restore: rate_of(restore) })
}

fn dd(block_bytes: u64, operands: &[&str]) -> Result<f64> {
    let begin = Instant::now();
    let block = format!("bs={block_bytes}");
    let status = Command::new("dd").arg(block).args(operands).stderr(Stdio::null()).status();
    let seconds = begin.elapsed().as_secs_f64();
    if status.map_err(refused)?.success() { Ok(seconds) } else { Err(refused("dd failed")) }
}

fn make_all_cold(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(refused)? {
        let path = entry.map_err(refused)?.path();
        make_cold(&File::open(path).map_err(refused)?);
    }
    Ok(())
}

/// Drops a durable file's pages from the page cache.
fn make_cold(file: &File) {
    let _ = file.sync_all();
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

/// Opens 10 GiB of pages, with cold page caches: recovery reads the footers.
fn recover(directory: &Path, page_bytes: u64) -> Result<()> {
    let _ = fs::remove_dir_all(directory);
    let num_pages = INDEX_BYTES / page_bytes;
    let options = || FileTierOptions::new(directory, 2 * INDEX_BYTES, [1; 32]);
    let (tier, _) = FileTier::open(options())?;
    put_all(&tier, num_pages, &page_of(page_bytes))?;
    tier.flush(far())?;
    drop(tier);
    make_all_cold(directory)?;
    let (tier, found) = FileTier::open(options())?;
    assert_eq!((found.pages, found.skipped), (num_pages, 0));
    report(&format!(
        r#""case": "recovery", "page_bytes": {page_bytes}, "pages": {}, "segments": {}, "scanned": {}, "seconds": {:.4}"#,
        found.pages,
        found.segments,
        found.scanned,
        number(found.micros) / 1e6
    ));
    drop(tier);
    fs::remove_dir_all(directory).map_err(refused)
}

fn identity(number: u64) -> PageIdentity {
    let mut bytes = [0; IDENTITY_BYTES];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    PageIdentity::from_bytes(bytes)
}

fn header(number: u64) -> PageHeader {
    PageHeader { identity: identity(number), parent: identity(number), num_tokens: 64 }
}

fn far() -> Deadline {
    Deadline::after(Duration::from_secs(600))
}

#[allow(clippy::cast_precision_loss, reason = "a rate needs three digits")]
fn number(count: u64) -> f64 {
    count as f64
}

fn report(fields: &str) {
    let _ = writeln!(std::io::stdout(), "{{{fields}}}");
}
