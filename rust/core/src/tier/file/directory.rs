//! The tier's directory: one process at a time, the names of its files, and durable renames.
//!
//! Files are named from the open directory on, never by its path: where somebody has removed it and
//! another process made a new one, this one's calls fail, and the other's files are left alone.

use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};

use super::collect::usize_of;
use super::error::io_error;
use super::failpoint::{Failpoint, Failpoints};
use super::page_header::BLOCK_LEN;

const MANIFEST: &str = "manifest";
/// Where a manifest is written.
pub(super) const NEXT_MANIFEST: &str = "manifest.next";
/// Room for the manifest that gives a segment up: a full disk has none. Nobody else can take it.
pub(super) const RESERVE: &str = "reserve";
const OWNER_ONLY: Mode = Mode::RUSR.union(Mode::WUSR);

/// The directory, locked while this lives.
#[derive(Debug)]
pub(super) struct Directory {
    itself: File,
    _lock: File,
}

impl Directory {
    /// Makes the directory where there is none, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            make_durably(path).map_err(io_error("mkdir"))?;
        }
        let itself = File::open(path).map_err(io_error("open"))?;
        let lock = open_or_make(&itself, "lock").map_err(io_error("open"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { itself, _lock: lock }),
            Err(Errno::WOULDBLOCK) => {
                let what = "processes that hold the file tier's directory";
                Err(Error::WrongState { what, found: 1, needed: 0 })
            }
            Err(error) => Err(io_error("flock")(error.into())),
        }
    }

    /// The manifest's bytes; None if there is none.
    pub(super) fn read_manifest(&self) -> Result<Option<Vec<u8>>> {
        let Some(mut manifest) = self.open_file(MANIFEST, OFlags::RDONLY)? else { return Ok(None) };
        let mut bytes = Vec::new();
        manifest.read_to_end(&mut bytes).map_err(io_error("read"))?;
        Ok(Some(bytes))
    }

    /// Puts a manifest in force, once it is written to the file `name`; after an error either may be.
    pub(super) fn replace_manifest(
        &self,
        name: &str,
        bytes: &[u8],
        failpoints: &Failpoints,
    ) -> io::Result<()> {
        let file = open_or_make(&self.itself, name)?; // its blocks are used again
        file.write_all_at(bytes, 0)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_data()?;
        failpoints.pass(Failpoint::BeforeManifestRename)?;
        renameat(&self.itself, name, &self.itself, MANIFEST)?;
        failpoints.pass(Failpoint::AfterManifestRename)?;
        self.itself.sync_all()
    }

    /// Keeps room for a manifest of so many bytes, and for one that is a little longer; after an
    /// error as much of it as there was.
    pub(super) fn keep_reserve(&self, manifest_bytes: usize) -> io::Result<()> {
        let needed = manifest_bytes.next_multiple_of(BLOCK_LEN) + BLOCK_LEN;
        let file = open_or_make(&self.itself, RESERVE)?;
        let found = file.metadata()?.len();
        let missing = (needed as u64).saturating_sub(found);
        file.write_all_at(&vec![0; usize_of(missing)], found)
    }

    /// Gives the disk what was kept.
    pub(super) fn give_reserve(&self) -> io::Result<()> {
        self.unlink(RESERVE)
    }

    /// The segments that there are files of.
    pub(super) fn segments(&self) -> Result<Vec<u32>> {
        let mut segments = Vec::new();
        let refused = |error: Errno| io_error("readdir")(error.into());
        for entry in Dir::read_from(&self.itself).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            segments.extend(entry.file_name().to_str().ok().and_then(segment_of));
        }
        segments.sort_unstable();
        Ok(segments)
    }

    /// The file of a segment that holds nothing; there is one where making it has failed before.
    pub(super) fn create_segment(&self, segment: u32) -> io::Result<File> {
        // never emptied: the manifest that failed then may be in force, and its head is the same
        open_or_make(&self.itself, &segment_name(segment))
    }

    /// None if there is no such file.
    pub(super) fn open_segment(&self, segment: u32) -> Result<Option<File>> {
        self.open_file(&segment_name(segment), OFlags::RDWR)
    }

    pub(super) fn unlink_segment(&self, segment: u32) -> io::Result<()> {
        self.unlink(&segment_name(segment))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.itself, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn open_file(&self, name: &str, access: OFlags) -> Result<Option<File>> {
        match openat(&self.itself, name, access | OFlags::CLOEXEC, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io_error("open")(error.into())),
        }
    }
}

/// Makes a directory whose name outlives a power loss.
fn make_durably(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    let parent = path.canonicalize()?;
    parent.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

pub(super) fn segment_name(segment: u32) -> String {
    format!("segment-{segment:08x}")
}

fn segment_of(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_prefix("segment-")?, 16).ok()?;
    (segment_name(number) == name).then_some(number)
}

/// Opens a file, which is made where it is missing and keeps what it has.
fn open_or_make(directory: &File, name: &str) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    Ok(openat(directory, name, flags, OWNER_ONLY)?.into())
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    /// What it has stays its own: on a full disk others would take what was given back meanwhile.
    #[test]
    fn a_reserve_that_grows_keeps_the_room_that_it_has() {
        let path = std::env::temp_dir().join(format!("hisparse-grows-{}", std::process::id()));
        let directory = Directory::open(&path).unwrap();
        let reserve = path.join(RESERVE);
        directory.keep_reserve(100).unwrap();
        std::fs::write(&reserve, [7; 2 * BLOCK_LEN]).unwrap();
        for (manifest_bytes, num_bytes) in [(4096, 8192), (4097, 12_288), (60, 12_288)] {
            directory.keep_reserve(manifest_bytes).unwrap();
            let found = std::fs::read(&reserve).unwrap();
            assert_eq!((found.len(), &found[..8192]), (num_bytes, &[7; 8192][..]));
        }
        std::fs::remove_dir_all(path).unwrap();
    }
}
