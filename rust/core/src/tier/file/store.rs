//! What every io thread works on: the directory, the index, and appending a record.
//!
//! # Lock order
//! Collecting, syncing, the set of files, a segment's footer, the index. An answer before the
//! index. Nobody waits for the pool under a lock.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use crate::error::{Error, Result};
use crate::tier::PageIdentity;

use super::directory::{Directory, NEXT_MANIFEST, RESERVE};
use super::draft::{Draft, Purpose};
use super::error::{TIER, io_error, write_error};
use super::flush::Rounds;
use super::held::Held;
use super::index::{Index, Place, Slot};
use super::io::lock;
use super::manifest::{Listed, Manifest};
use super::options::FileTierOptions;
use super::page_header::{BLOCK_BYTES, Sound};
use super::segment::{FIRST_RECORD, Segment};
use super::spares::Spares;

/// What reading a page's record came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    Whole,
    /// The page was removed meanwhile.
    Removed,
    /// The record is not what was put.
    Damaged,
}

/// The set of files: whoever changes it holds this.
#[derive(Debug)]
pub(super) struct Files {
    /// Name and stamp of the next segment.
    next: (u32, u64),
    /// Segments out of the manifest whose file is still there.
    pub(super) condemned: Vec<u32>,
}

impl Files {
    pub(super) fn new(next: u32) -> Self {
        Self { next: (next, new_stamp()), condemned: Vec::new() }
    }
}

/// See the module.
pub(super) struct Store {
    pub(super) options: FileTierOptions,
    pub(super) directory: Directory,
    pub(super) index: Mutex<Index>,
    pub(super) files: Mutex<Files>,
    pub(super) collecting: Mutex<()>,
    pub(super) syncing: Mutex<()>,
    pub(super) rounds: Rounds,
    pub(super) spares: Spares,
    pub(super) num_syncs: AtomicU64,
}

impl Store {
    /// Writes a record whose page is in `record` already; nobody sees it until it is settled.
    pub(super) fn append(&self, draft: &Draft, record: &mut [u8]) -> Result<Slot> {
        let slot = self.reserve(draft)?;
        slot.header().seal(&self.options.digest, record);
        let written = slot.segment.write_record(record, slot.place.at(), &self.options.failpoints);
        let Err(error) = written else { return Ok(slot) };
        if !lock(&self.index).give_back(&slot) {
            self.bury(&slot.segment, &slot.place);
        }
        Err(write_error("pwrite", record.len() as u64, self.options.capacity_bytes)(error))
    }

    fn reserve(&self, draft: &Draft) -> Result<Slot> {
        loop {
            let segment_bytes = self.options.segment_bytes;
            let slot = lock(&self.index).reserve(draft, segment_bytes);
            if let Some(slot) = slot {
                return Ok(slot);
            }
            self.begin_segment(draft.record_bytes(), draft.purpose())?;
        }
    }

    /// Marks a record dead on the disk; if that fails, the page may be back after a restart.
    pub(super) fn bury(&self, segment: &Segment, place: &Place) {
        let buried = segment.bury(place.at(), place.ordinal, &self.options.failpoints);
        if buried.is_err() {
            lock(&self.index).counts.failures += 1;
        }
    }

    /// Reads the record of a page, and forgets the page if the record is damaged.
    pub(super) fn read_page(
        &self,
        identity: &PageIdentity,
        place: &Place,
        segment: &Segment,
        record: &mut [u8],
    ) -> Result<Reading> {
        let FileTierOptions { digest, failpoints, .. } = &self.options;
        let read = segment.read_record(record, place.at(), digest, failpoints);
        let (is_removed, header) = match read.map_err(io_error("pread"))? {
            Some(Sound::Page(header)) => (false, Some(header)),
            Some(Sound::Removed(header)) => (true, Some(header)),
            None => (false, None),
        };
        if !header.is_some_and(|header| place.names(identity, segment, &header)) {
            lock(&self.index).quarantine(identity, place);
            return Ok(Reading::Damaged);
        }
        Ok(if is_removed { Reading::Removed } else { Reading::Whole })
    }

    /// Opens another segment, unless the open one has room for `need` bytes after all.
    fn begin_segment(&self, need: u64, purpose: Purpose) -> Result<()> {
        let mut files = lock(&self.files);
        if self.needs_segment(&files, need, purpose)? {
            let (id, stamp) = files.next;
            let next = id.checked_add(1).ok_or_else(no_number)?;
            let segment = Arc::new(self.create_segment(&files)?);
            self.write_manifest(Some(Listed { segment: id, stamp, is_full: false }))?;
            files.next = (next, new_stamp());
            let mut index = lock(&self.index);
            index.segments.insert(id, Held::new(segment, FIRST_RECORD, Vec::new()));
            index.aim(purpose, id);
        }
        drop(files);
        self.close_segments();
        Ok(())
    }

    /// Whether a segment is needed; an error if it is, and there may be no more.
    fn needs_segment(&self, files: &Files, need: u64, purpose: Purpose) -> Result<bool> {
        let mut index = lock(&self.index);
        let segment_bytes = self.options.segment_bytes;
        let free = index.room(purpose, segment_bytes);
        let held = (index.segments.len() + files.condemned.len()) as u64;
        let limit = self.options.max_segments() - u64::from(purpose == Purpose::Put);
        let may_adopt = purpose == Purpose::Put && !index.is_collecting && held <= limit;
        if free < need && may_adopt && index.room(Purpose::Move, segment_bytes) >= need {
            index.open = index.moving.take(); // what a collection left over
            return Ok(false);
        }
        if free < need && held >= limit {
            let capacity = self.options.capacity_bytes;
            return Err(Error::TierFull { tier: TIER, need, free, capacity });
        }
        Ok(free < need)
    }

    fn create_segment(&self, files: &Files) -> Result<Segment> {
        let (id, stamp) = files.next;
        let refused = write_error("pwrite", BLOCK_BYTES, self.options.capacity_bytes);
        let file = self.directory.create_segment(id).map_err(&refused)?;
        let FileTierOptions { digest, failpoints, .. } = &self.options;
        Segment::create(file, id, stamp, digest, failpoints).map_err(refused)
    }

    /// Puts the segments held, and one more, in force; the caller holds the set of files.
    pub(super) fn write_manifest(&self, more: Option<Listed>) -> Result<()> {
        self.replace_manifest(more, NEXT_MANIFEST)
    }

    fn replace_manifest(&self, more: Option<Listed>, name: &str) -> Result<()> {
        let listed = |held: &Held| Listed {
            segment: held.segment.id,
            stamp: held.segment.stamp,
            is_full: held.is_full,
        };
        let held: Vec<Listed> = lock(&self.index).segments.values().map(listed).collect();
        let segments = held.into_iter().chain(more).collect();
        let bytes = Manifest { digest: self.options.digest, segments }.to_bytes();
        let replaced = self.directory.replace_manifest(name, &bytes, &self.options.failpoints);
        let (need, capacity) = (bytes.len() as u64, self.options.capacity_bytes);
        replaced.map_err(write_error("replace manifest", need, capacity))?;
        self.keep_reserve();
        Ok(())
    }

    /// As `write_manifest` of the segments held, on a full disk, too: in the room that was kept.
    pub(super) fn write_manifest_on_full_disk(&self) -> Result<()> {
        let mut written = self.write_manifest(None);
        if is_full(&written) {
            written = self.replace_manifest(None, RESERVE);
        }
        if is_full(&written) {
            // where the system writes nothing in its place, what was kept goes first
            self.directory.give_reserve().map_err(io_error("unlink"))?;
            written = self.write_manifest(None);
        }
        written
    }

    /// Keeps room on the disk for the manifest that gives a segment up, as far as there is any; the
    /// caller holds the set of files.
    pub(super) fn keep_reserve(&self) {
        let num_bytes = Manifest::num_bytes(lock(&self.index).segments.len());
        let _ = self.directory.keep_reserve(num_bytes); // tried again when a segment has gone
    }

    /// Writes the footers of segments that nobody appends to any more, as far as that succeeds.
    pub(super) fn close_segments(&self) {
        let index = lock(&self.index);
        let is_closing = |held: &&Held| {
            let is_open = index.is_open(held.segment.id);
            !is_open && held.writing.is_empty() && !held.is_unsynced && !held.entries.is_empty()
        };
        let held = index.segments.values().filter(is_closing);
        let closing: Vec<_> = held.map(|held| Arc::clone(&held.segment)).collect();
        drop(index);
        for segment in closing {
            self.close_segment(&segment);
        }
    }

    fn close_segment(&self, segment: &Segment) {
        let list = || {
            let index = lock(&self.index);
            let held = index.segments.get(&segment.id);
            held.map_or((FIRST_RECORD, Vec::new()), |held| (held.end, held.entries.clone()))
        };
        let closed = segment.close(list, &self.options.failpoints);
        let mut index = lock(&self.index);
        match closed {
            Ok(()) => {
                if let Some(held) = index.segments.get_mut(&segment.id) {
                    held.entries = Vec::new();
                }
            }
            Err(_) => index.counts.failures += 1, // opening reads its records instead
        }
    }
}

fn is_full(written: &Result<()>) -> bool {
    matches!(written, Err(Error::TierFull { .. }))
}

fn no_number() -> Error {
    Error::TierIo { tier: TIER, call: "open", text: "no number is left for a segment".into() }
}

/// A number that nobody can guess: what a tenant writes in its pages never passes for a record.
fn new_stamp() -> u64 {
    RandomState::new().build_hasher().finish()
}
