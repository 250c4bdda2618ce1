//! The tier's directory: one process at a time, the names of its files, and durable renames.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::{Error, Result};

use super::error::io_error;
use super::failpoint::{Failpoint, Failpoints};

const MANIFEST: &str = "manifest";
const NEXT_MANIFEST: &str = "manifest.next";
const OWNER_ONLY: u32 = 0o600;

/// The directory, locked while this lives.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
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
        let lock = new_file(&path.join("lock"), false).map_err(io_error("open"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), itself, _lock: lock }),
            Err(Errno::WOULDBLOCK) => {
                let what = "processes that hold the file tier's directory";
                Err(Error::WrongState { what, found: 1, needed: 0 })
            }
            Err(error) => Err(io_error("flock")(error.into())),
        }
    }

    /// The manifest's bytes; None if there is none.
    pub(super) fn read_manifest(&self) -> Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(MANIFEST)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read")(error)),
        }
    }

    /// Puts a manifest in force; after an error either may be.
    pub(super) fn replace_manifest(&self, bytes: &[u8], failpoints: &Failpoints) -> io::Result<()> {
        let next = self.path.join(NEXT_MANIFEST);
        let mut file = new_file(&next, true)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        failpoints.pass(Failpoint::BeforeManifestRename)?;
        fs::rename(&next, self.path.join(MANIFEST))?;
        failpoints.pass(Failpoint::AfterManifestRename)?;
        self.itself.sync_all()
    }

    /// The segments that there are files of.
    pub(super) fn segments(&self) -> Result<Vec<u32>> {
        let mut segments = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error("readdir"))? {
            let name = entry.map_err(io_error("readdir"))?.file_name();
            segments.extend(name.to_str().and_then(segment_of));
        }
        segments.sort_unstable();
        Ok(segments)
    }

    pub(super) fn create_segment(&self, segment: u32) -> io::Result<File> {
        new_file(&self.path.join(segment_name(segment)), true)
    }

    /// None if there is no such file.
    pub(super) fn open_segment(&self, segment: u32) -> Result<Option<File>> {
        let path = self.path.join(segment_name(segment));
        match OpenOptions::new().read(true).write(true).open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("open")(error)),
        }
    }

    pub(super) fn unlink_segment(&self, segment: u32) -> io::Result<()> {
        match fs::remove_file(self.path.join(segment_name(segment))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
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

fn new_file(path: &Path, truncate: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(truncate).mode(OWNER_ONLY);
    options.open(path)
}
