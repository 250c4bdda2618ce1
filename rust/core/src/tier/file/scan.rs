//! Reading a segment record by record, where no footer lists them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::Result;

use super::error::io_error;
use super::footer::Entry;
use super::page_header::{
    BLOCK_BYTES, HEADER_BYTES, Mark, RecordHeader, Sound, check_record, record_bytes,
};
use super::segment::{FIRST_RECORD, Head};

/// What a segment's file holds.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// The records that are whole, dead ones included.
    pub(super) entries: Vec<Entry>,
    /// Where the last of them ends.
    pub(super) end: u64,
    /// Where something else lies though a sync had a whole record there.
    pub(super) damage: Vec<u64>,
    /// Where something else lies before a whole record, and no sync had one: a write that a crash
    /// cut short, or that failed. Several threads write at a time, so the later one may be whole.
    pub(super) first_gap: Option<u64>,
    /// There is such a gap, or the file goes on after the last whole record.
    pub(super) is_torn: bool,
}

/// Reads every record of a file that is known to be durable before the offset `synced`.
pub(super) fn scan(file: &File, head: &Head, synced: u64) -> Result<Scanned> {
    let file_bytes = file.metadata().map_err(io_error("fstat"))?.len();
    let mut found = Scanned { end: FIRST_RECORD, ..Scanned::default() };
    let mut broken = Vec::new();
    let mut num_before = 0; // those before the last whole record
    let mut record = Vec::new();
    let mut at = FIRST_RECORD;
    while at + HEADER_BYTES as u64 <= file_bytes {
        match read_at(file, file_bytes, head, at, &mut record).map_err(io_error("pread"))? {
            Read::Record(entry) => {
                at += record_bytes(entry.num_bytes.into());
                found.entries.push(entry);
                found.end = at;
                num_before = broken.len();
            }
            Read::Broken(step) => {
                broken.push(at);
                at += step;
            }
        }
    }
    let is_synced = |at: &u64| *at < synced;
    found.first_gap = broken[..num_before].iter().copied().find(|at| !is_synced(at));
    found.is_torn = found.first_gap.is_some() || file_bytes > found.end;
    found.damage = broken.into_iter().filter(is_synced).collect();
    if found.damage.is_empty() && found.end < synced {
        found.damage.push(found.end); // the file ends too early
    }
    Ok(found)
}

enum Read {
    Record(Entry),
    /// No record, and so many bytes to where the next may begin.
    Broken(u64),
}

fn read_at(
    file: &File,
    file_bytes: u64,
    head: &Head,
    at: u64,
    record: &mut Vec<u8>,
) -> io::Result<Read> {
    fill(file, at, BLOCK_BYTES, record)?;
    let header = RecordHeader::read(&head.digest, record).map(|(header, ..)| header);
    let Some(header) = header.filter(|header| is_at(header, head, at)) else {
        return Ok(Read::Broken(BLOCK_BYTES));
    };
    let num_bytes = record_bytes(header.num_bytes.into());
    fill(file, at, num_bytes.min(file_bytes - at), record)?;
    Ok(match check_record(&head.digest, record) {
        Some(Sound::Page(header)) => Read::Record(Entry::of(&header, Mark::Live)),
        Some(Sound::Removed(header)) => Read::Record(Entry::of(&header, Mark::Dead)),
        None => Read::Broken(num_bytes),
    })
}

fn is_at(header: &RecordHeader, head: &Head, at: u64) -> bool {
    let RecordHeader { segment, stamp, block, .. } = *header;
    (segment, stamp) == (head.segment, head.stamp) && u64::from(block) * BLOCK_BYTES == at
}

/// Reads up to `num_bytes`; less where the file ends.
fn fill(file: &File, at: u64, num_bytes: u64, record: &mut Vec<u8>) -> io::Result<()> {
    record.resize(usize::try_from(num_bytes).map_err(io::Error::other)?, 0);
    let mut len = 0;
    while len < record.len() {
        match file.read_at(&mut record[len..], at + len as u64) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    record.truncate(len);
    Ok(())
}
