//! One segment's file: a head that names it, records, and a footer once it is full.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::codec::{FieldReader, FieldWriter};
use super::failpoint::{Failpoint, Failpoints};
use super::footer::{Entry, mark_offset, write_footer};
use super::io::lock;
use super::page_header::{
    BLOCK_BYTES, BLOCK_LEN, FORMAT_VERSION, MARK_AT, Mark, Sound, check_record,
};

const MAGIC: [u8; 8] = *b"hispSEGM";
const HEAD_FIELDS: usize = 56;
const HEAD_BYTES: usize = HEAD_FIELDS + 4;

/// Bytes after which the disk is given something to do.
const WRITEBACK_BYTES: u64 = 8 << 20;

/// Bytes that are read and written again at a time.
const REWRITE_BYTES: usize = 1 << 20;

/// Where the first record begins.
pub(super) const FIRST_RECORD: u64 = BLOCK_BYTES;

/// A segment's file; the file outlives its name for whoever still reads it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) id: u32,
    pub(super) stamp: u64,
    pub(super) file: File,
    /// Something was written since the last sync began.
    is_dirty: AtomicBool,
    /// Where the footer is; no mark is written while it is being written.
    footer: Mutex<Option<u64>>,
}

impl Segment {
    /// Writes and syncs the head of a new file.
    pub(super) fn create(
        file: File,
        id: u32,
        stamp: u64,
        digest: &[u8; 32],
        failpoints: &Failpoints,
    ) -> io::Result<Self> {
        let mut head = vec![0; BLOCK_LEN];
        let mut fields = FieldWriter::new(&mut head);
        fields.bytes(&MAGIC).u32(FORMAT_VERSION).u32(id).u64(stamp).bytes(digest);
        let crc = crc32fast::hash(&head[..HEAD_FIELDS]);
        head[HEAD_FIELDS..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        write(&file, &head, 0, failpoints)?;
        file.sync_data()?;
        Ok(Self::opened(file, id, stamp, None))
    }

    pub(super) fn opened(file: File, id: u32, stamp: u64, footer_at: Option<u64>) -> Self {
        let footer = Mutex::new(footer_at);
        Self { id, stamp, file, is_dirty: AtomicBool::new(false), footer }
    }

    /// What a file's head says; None unless it is a whole one of this version.
    pub(super) fn read_head(file: &File) -> io::Result<Option<Head>> {
        let mut head = [0; HEAD_BYTES];
        if file.metadata()?.len() < FIRST_RECORD {
            return Ok(None);
        }
        file.read_exact_at(&mut head, 0)?;
        Ok(Head::parse(&head))
    }

    pub(super) fn write_record(
        &self,
        record: &[u8],
        at: u64,
        failpoints: &Failpoints,
    ) -> io::Result<()> {
        let written = write(&self.file, record, at, failpoints);
        // after the write: a sync that began during it does not count for it
        self.is_dirty.store(true, Ordering::Release);
        begin_writeback(&self.file, at, record.len() as u64);
        written
    }

    /// Reads a record to `record`, and says what it is; None if it is not whole.
    pub(super) fn read_record(
        &self,
        record: &mut [u8],
        at: u64,
        digest: &[u8; 32],
        failpoints: &Failpoints,
    ) -> io::Result<Option<Sound>> {
        failpoints.pass(Failpoint::BeforeRead)?;
        match self.file.read_exact_at(record, at) {
            Ok(()) => Ok(check_record(digest, record)),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The system keeps no page of the file in memory that is on the disk. A hint.
    pub(super) fn forget_cached(&self) {
        let (from, to_end) = (0, 0);
        // SAFETY: the call reads no memory of ours, and the descriptor is open while `file` lives.
        unsafe {
            libc::posix_fadvise(self.file.as_raw_fd(), from, to_end, libc::POSIX_FADV_DONTNEED)
        };
    }

    /// Marks a record dead, where opening will look for its mark.
    pub(super) fn bury(&self, at: u64, ordinal: u32, failpoints: &Failpoints) -> io::Result<()> {
        let footer = lock(&self.footer);
        let mark_at = footer.map_or(at + MARK_AT, |footer| footer + mark_offset(ordinal));
        failpoints.pass(Failpoint::BeforeWrite)?;
        self.file.write_all_at(&Mark::Dead.to_bytes(), mark_at)?;
        self.is_dirty.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes the footer after the records, which `list` gives once no mark can be missed.
    pub(super) fn close(
        &self,
        list: impl FnOnce() -> (u64, Vec<Entry>),
        failpoints: &Failpoints,
    ) -> io::Result<()> {
        let mut footer = lock(&self.footer);
        if footer.is_some() {
            return Ok(());
        }
        let (at, entries) = list();
        self.file.set_len(at)?; // what a failed write left there must not follow the footer
        write(&self.file, &write_footer(self.id, self.stamp, at, &entries), at, failpoints)?;
        self.is_dirty.store(true, Ordering::Release);
        *footer = Some(at);
        Ok(())
    }

    /// Writes every byte of the file again, where it is: the next sync counts for all of them. Nobody
    /// may be writing a record.
    pub(super) fn write_again(&self, failpoints: &Failpoints) -> io::Result<()> {
        let footer = lock(&self.footer); // nor a mark
        let (mut stretch, end) = (vec![0; REWRITE_BYTES], self.file.metadata()?.len());
        for at in (0..end).step_by(REWRITE_BYTES) {
            let left = usize::try_from(end - at).unwrap_or(REWRITE_BYTES);
            let bytes = &mut stretch[..left.min(REWRITE_BYTES)];
            failpoints.pass(Failpoint::BeforeRead)?;
            self.file.read_exact_at(bytes, at)?;
            failpoints.pass(Failpoint::BeforeWrite)?;
            self.file.write_all_at(bytes, at)?;
        }
        self.is_dirty.store(true, Ordering::Release);
        drop(footer);
        Ok(())
    }

    /// Makes the next sync count: nobody knows whether the process before synced.
    pub(super) fn mark_dirty(&self) {
        self.is_dirty.store(true, Ordering::Release);
    }

    pub(super) fn has_footer(&self) -> bool {
        lock(&self.footer).is_some()
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.is_dirty.load(Ordering::Acquire)
    }

    /// Makes everything durable whose write has ended.
    pub(super) fn sync(&self, failpoints: &Failpoints) -> io::Result<()> {
        self.is_dirty.store(false, Ordering::Release);
        failpoints.pass(Failpoint::BeforeSync)?;
        self.file.sync_data()?;
        failpoints.pass(Failpoint::AfterSync)
    }
}

/// The first fields of a segment's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) segment: u32,
    pub(super) stamp: u64,
    pub(super) digest: [u8; 32],
}

impl Head {
    fn parse(head: &[u8; HEAD_BYTES]) -> Option<Self> {
        let mut fields = FieldReader::new(head);
        let (magic, version) = (fields.bytes::<8>()?, fields.u32()?);
        let (segment, stamp, digest) = (fields.u32()?, fields.u64()?, fields.bytes()?);
        let crc = crc32fast::hash(&head[..HEAD_FIELDS]).to_le_bytes();
        let sound = magic == MAGIC && version == FORMAT_VERSION && head[HEAD_FIELDS..] == crc;
        sound.then_some(Self { segment, stamp, digest })
    }
}

fn write(file: &File, bytes: &[u8], at: u64, failpoints: &Failpoints) -> io::Result<()> {
    failpoints.pass(Failpoint::BeforeWrite)?;
    if failpoints.is_armed(Failpoint::HalfWrite) {
        file.write_all_at(&bytes[..bytes.len() / 2], at)?;
        failpoints.pass(Failpoint::HalfWrite)?;
    }
    file.write_all_at(bytes, at)?;
    failpoints.pass(Failpoint::AfterWrite)
}

/// Sends the stretch of a file to the disk that a write has completed, so that a later sync finds
/// little left to do. It is a hint: nothing is known to be durable, and a refusal is no failure.
fn begin_writeback(file: &File, at: u64, num_bytes: u64) {
    let stretch = (at + num_bytes) / WRITEBACK_BYTES;
    if at / WRITEBACK_BYTES == stretch {
        return;
    }
    let begin = (stretch - 1) * WRITEBACK_BYTES;
    let (Ok(begin), Ok(length)) = (i64::try_from(begin), i64::try_from(WRITEBACK_BYTES)) else {
        return;
    };
    // SAFETY: the call reads no memory of ours, and the descriptor is open while `file` lives.
    unsafe { libc::sync_file_range(file.as_raw_fd(), begin, length, libc::SYNC_FILE_RANGE_WRITE) };
}
