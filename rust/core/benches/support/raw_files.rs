//! The peer that does nothing but move bytes: plain `pwrite` and `pread` of pages by threads, to and
//! from files as long as the tier's segments.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use hisparse_core::{Error, Result};

/// Pages that lie one after the other in files.
pub(crate) struct RawFiles {
    files: Vec<File>,
    page_bytes: u64,
    pages_a_file: u64,
}

impl RawFiles {
    /// New and empty files with room for `num_pages`, as the tier makes its segments.
    pub(crate) fn create(
        directory: &Path,
        page_bytes: u64,
        num_pages: u64,
        file_bytes: u64,
    ) -> Result<Self> {
        let pages_a_file = file_bytes / page_bytes;
        let make = |number| {
            let path = directory.join(format!("raw-{number}"));
            File::options().write(true).create_new(true).open(path).map_err(refused)
        };
        fs::create_dir_all(directory).map_err(refused)?;
        let files = (0..num_pages.div_ceil(pages_a_file)).map(make).collect::<Result<_>>()?;
        Ok(Self { files, page_bytes, pages_a_file })
    }

    /// Writes every page, then syncs every file: what a flush of the tier does, and no more.
    pub(crate) fn write_all(&self, page: &[u8], num_pages: u64, num_threads: u64) -> Result<()> {
        in_turn(num_pages, num_threads, 0, |number, _| {
            let at = number % self.pages_a_file * self.page_bytes;
            self.file_of(number).write_all_at(page, at).map_err(refused)
        })?;
        self.files.iter().try_for_each(|file| file.sync_data().map_err(refused))
    }

    fn file_of(&self, number: u64) -> &File {
        &self.files[usize::try_from(number / self.pages_a_file).expect("few files")]
    }
}

/// Reads every file of a directory in stretches of a page; how many bytes.
pub(crate) fn read_all(directory: &Path, page_bytes: u64, num_threads: u64) -> Result<u64> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .map_err(refused)?
        .map(|entry| entry.map(|entry| entry.path()).map_err(refused))
        .collect::<Result<_>>()?;
    paths.sort();
    let (mut stretches, mut files) = (Vec::new(), Vec::new());
    for path in paths {
        let file = File::open(path).map_err(refused)?;
        let num_bytes = file.metadata().map_err(refused)?.len();
        stretches.extend((0..num_bytes / page_bytes).map(|page| (files.len(), page * page_bytes)));
        files.push(file);
    }
    let length = usize::try_from(page_bytes).expect("small");
    in_turn(stretches.len() as u64, num_threads, length, |number, into| {
        let (file, at) = stretches[usize::try_from(number).expect("of a length")];
        files[file].read_exact_at(into, at).map_err(refused)
    })?;
    Ok(stretches.len() as u64 * page_bytes)
}

/// Calls for each number once, from several threads that take the next one each, with memory of
/// their own.
pub(crate) fn in_turn(
    num_calls: u64,
    num_threads: u64,
    length: usize,
    call: impl Fn(u64, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicU64::new(0);
    let run = || {
        let mut memory = vec![0xee; length];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= num_calls {
                return Ok(());
            }
            call(number, &mut memory)?;
        }
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..num_threads).map(|_| scope.spawn(run)).collect();
        callers.into_iter().try_for_each(|caller| caller.join().expect("no panic"))
    })
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
pub(crate) fn refused(error: impl ToString) -> Error {
    Error::TierIo { tier: "benchmark", call: "run", text: error.to_string() }
}
