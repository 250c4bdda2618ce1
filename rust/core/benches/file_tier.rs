//! `cargo bench -p hisparse-core --bench file_tier [-- DIRECTORY]`: one JSON line a case.
//!
//! Spilling and restoring 1 GiB beside `dd` with blocks of the same size, in turn, both durable at
//! the end and both read with cold page caches; then opening a directory of 10 GiB.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hisparse_core::tier::file::{FileTier, FileTierOptions};
use hisparse_core::tier::{Deadline, IDENTITY_BYTES, PageHeader, PageIdentity, PageTier};
use hisparse_core::{Error, Result};
use rustix::fs::{Advice, fadvise};

const TOTAL_BYTES: u64 = 1 << 30;
const ROUNDS: usize = 5;
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

/// Seconds of the two halves of one round.
#[derive(Debug, Clone, Copy)]
struct Times {
    spill: f64,
    restore: f64,
}

type Half = fn(&Times) -> f64;

/// Rounds that take turns, for the disk is not the same from minute to minute.
fn compare(directory: &Path, page_bytes: u64) -> Result<()> {
    let num_pages = TOTAL_BYTES / page_bytes;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(time_tier(&directory.join("bench-tier"), page_bytes, num_pages)?);
        theirs.push(time_dd(&directory.join("bench-dd"), page_bytes, num_pages)?);
    }
    let gigabytes = number(num_pages * page_bytes) / 1e9;
    let rates = |times: &[Times], half: Half| -> Vec<f64> {
        times.iter().map(|round| gigabytes / half(round)).collect()
    };
    let halves: [(&str, Half); 2] =
        [("spill", |times| times.spill), ("restore", |times| times.restore)];
    for (case, half) in halves {
        let (ours, dd) = (rates(&ours, half), rates(&theirs, half));
        report(&format!(
            r#""case": "{case}", "page_bytes": {page_bytes}, "gb_per_s": {ours:.3?}, "dd_gb_per_s": {dd:.3?}"#
        ));
    }
    Ok(())
}

fn time_tier(directory: &Path, page_bytes: u64, num_pages: u64) -> Result<Times> {
    let _ = fs::remove_dir_all(directory);
    let (tier, _) = FileTier::open(FileTierOptions::new(directory, 4 << 30, [1; 32]))?;
    let length = usize::try_from(page_bytes).expect("small");
    let page = vec![0x5a; length];
    let begin = Instant::now();
    put_all(&tier, num_pages, &page)?;
    tier.flush(far())?;
    let spill = begin.elapsed().as_secs_f64();
    drop(tier);
    make_all_cold(directory)?;
    let (tier, _) = FileTier::open(FileTierOptions::new(directory, 4 << 30, [1; 32]))?;
    let begin = Instant::now();
    in_turn(num_pages, length, |number, into| {
        let found = tier.get(&identity(number), into, far())?;
        assert!(found && into[length - 1] == 0x5a, "page {number}");
        Ok(())
    })?;
    let restore = begin.elapsed().as_secs_f64();
    drop(tier);
    fs::remove_dir_all(directory).map_err(refused)?;
    Ok(Times { spill, restore })
}

/// Puts pages, small ones about a megabyte a call.
fn put_all(tier: &FileTier, num_pages: u64, page: &[u8]) -> Result<()> {
    let pages_a_call = (CALL_BYTES / page.len() as u64).max(1);
    in_turn(num_pages.div_ceil(pages_a_call), 0, |call, _| {
        let first = call * pages_a_call;
        let numbers = first..num_pages.min(first + pages_a_call);
        let batch: Vec<_> = numbers.map(|number| (header(number), page)).collect();
        tier.put_many(&batch, far())?.into_iter().try_for_each(|stored| stored.map(|_| ()))
    })
}

/// Calls for each number once, from several threads that take the next one each, with memory of
/// their own.
fn in_turn(
    num_pages: u64,
    length: usize,
    call: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let run = || {
        let mut memory = vec![0xee; length];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= num_pages {
                return Ok(());
            }
            call(number, &mut memory)?;
        }
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(run)).collect();
        callers.into_iter().try_for_each(|caller| caller.join().expect("no panic"))
    })
}

fn time_dd(file: &Path, block_bytes: u64, num_blocks: u64) -> Result<Times> {
    let _ = fs::remove_file(file);
    let of_file = format!("of={}", file.display());
    let count = format!("count={num_blocks}");
    let spill = dd(block_bytes, &["if=/dev/zero", &of_file, &count, "conv=fdatasync"])?;
    make_cold(&File::open(file).map_err(refused)?);
    let restore = dd(block_bytes, &[&format!("if={}", file.display()), "of=/dev/null"])?;
    fs::remove_file(file).map_err(refused)?;
    Ok(Times { spill, restore })
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
    let page = vec![0x5a; usize::try_from(page_bytes).expect("small")];
    put_all(&tier, num_pages, &page)?;
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

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn refused(error: impl ToString) -> Error {
    Error::TierIo { tier: "benchmark", call: "run", text: error.to_string() }
}

#[allow(clippy::cast_precision_loss, reason = "a rate needs three digits")]
fn number(count: u64) -> f64 {
    count as f64
}

fn report(fields: &str) {
    let _ = writeln!(std::io::stdout(), "{{{fields}}}");
}
