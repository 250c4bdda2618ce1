//! How a file tier is opened, and what opening found.

use std::path::PathBuf;

use crate::error::{Error, Result, check_range};

use super::failpoint::Failpoints;
use super::footer::footer_bytes;
use super::page_header::{BLOCK_BYTES, HEADER_BYTES};
use super::segment::FIRST_RECORD;

const MIN_SEGMENT_BYTES: u64 = 64 << 10;
const MAX_SEGMENT_BYTES: u64 = 4 << 30;
/// One to append to, one that is being emptied, one to empty it into.
const MIN_SEGMENTS: u64 = 3;
const MAX_THREADS: usize = 64;
const MAX_QUEUE: usize = 1 << 16;

/// What opening does about damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecoveryMode {
    /// Counts it and goes on: a damaged page is a miss.
    #[default]
    Quiet,
    /// Fails with the first damage found: where something else lies than a footer, a manifest or
    /// a sync once made durable. What a crash leaves is none, be it a record that was never
    /// finished before one that was, and neither is a broken record that no sync is known to have
    /// reached.
    Strict,
}

/// How to open a [`FileTier`](super::FileTier).
#[derive(Debug, Clone)]
pub struct FileTierOptions {
    /// Where the files lie; made where it is missing.
    pub directory: PathBuf,
    /// Bytes that all segments may take; they count whole, and one is kept for collection. The
    /// manifest, the next one and the reserve take some KiB beside them.
    pub capacity_bytes: u64,
    /// Bytes of a segment's file at most.
    pub segment_bytes: u64,
    /// Digest of the model and layout of the pages; a directory holds pages of one only.
    pub digest: [u8; 32],
    /// What opening does about damage.
    pub recovery: RecoveryMode,
    /// Threads that read and write.
    pub io_threads: usize,
    /// Calls that may wait for a thread.
    pub queue: usize,
    /// Where to fail, for tests.
    pub failpoints: Failpoints,
}

impl FileTierOptions {
    /// Segments of 128 MiB, a quiet recovery, four threads and 64 waiting calls.
    pub fn new(directory: impl Into<PathBuf>, capacity_bytes: u64, digest: [u8; 32]) -> Self {
        Self {
            directory: directory.into(),
            capacity_bytes,
            segment_bytes: 128 << 20,
            digest,
            recovery: RecoveryMode::Quiet,
            io_threads: 4,
            queue: 64,
            failpoints: Failpoints::default(),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let segment = self.segment_bytes;
        check_range("segment_bytes", segment, MIN_SEGMENT_BYTES, MAX_SEGMENT_BYTES)?;
        if !segment.is_multiple_of(BLOCK_BYTES) {
            let what = "segment_bytes";
            return Err(Error::NotAMultiple { what, found: segment, unit: BLOCK_BYTES });
        }
        check_range("capacity_bytes", self.capacity_bytes, MIN_SEGMENTS * segment, u64::MAX)?;
        check_range("io_threads", self.io_threads, 1, MAX_THREADS)?;
        check_range("queue", self.queue, 1, MAX_QUEUE)
    }

    /// Segments that the capacity has room for.
    pub(super) fn max_segments(&self) -> u64 {
        self.capacity_bytes / self.segment_bytes
    }

    /// Bytes of the longest page that a segment holds.
    pub(super) fn max_page_bytes(&self) -> u64 {
        self.segment_bytes - FIRST_RECORD - footer_bytes(1) - HEADER_BYTES as u64
    }
}

/// What opening found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Pages that are there again.
    pub pages: u64,
    /// Segments that hold them, or hold nothing any more.
    pub segments: u64,
    /// Segments without a sound footer, whose records were read one by one.
    pub scanned: u64,
    /// Damaged pages, footers and heads that were passed over.
    pub skipped: u64,
    /// Segments with writes that no sync is known to have reached, and that had not ended or did not
    /// last; they were dropped.
    pub torn: u64,
    /// Time that it took.
    pub micros: u64,
}
