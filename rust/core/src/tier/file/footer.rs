//! The list of a full segment's records, at its end: opening reads it instead of the records.
//!
//! Entries, zeros, and a trailer in the last bytes of the last block. An entry's mark changes when
//! its page is removed, so its checksum leaves it out.

use crate::tier::{IDENTITY_BYTES, PageHeader, PageIdentity};

use super::codec::{FieldReader, FieldWriter};
use super::page_header::{BLOCK_BYTES, FORMAT_VERSION, Mark, RecordHeader};

const ENTRY_BYTES: usize = 96;
const ENTRY_CRC_AT: usize = 84;
const ENTRY_MARK_AT: usize = 88;
const TRAILER_BYTES: usize = 64;
const TRAILER_CRC_AT: usize = TRAILER_BYTES - 4;
const MAGIC: [u8; 8] = *b"hispFOOT";

/// One record of a segment, in the order of their offsets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) page: PageHeader,
    pub(super) sequence: u64,
    pub(super) block: u32,
    pub(super) num_bytes: u32,
    pub(super) mark: Mark,
}

impl Entry {
    pub(super) fn of(header: &RecordHeader, mark: Mark) -> Self {
        let RecordHeader { page, sequence, block, num_bytes, .. } = *header;
        Self { page, sequence, block, num_bytes, mark }
    }

    fn write(&self, stamp: u64, ordinal: usize, entry: &mut [u8]) {
        FieldWriter::new(entry)
            .bytes(self.page.identity.as_bytes())
            .bytes(self.page.parent.as_bytes())
            .u64(self.sequence)
            .u32(self.block)
            .u32(self.num_bytes)
            .u32(self.page.num_tokens);
        let crc = entry_crc(stamp, ordinal, entry);
        FieldWriter::new(&mut entry[ENTRY_CRC_AT..]).u32(crc).bytes(&self.mark.to_bytes());
    }

    fn read(stamp: u64, ordinal: usize, entry: &[u8]) -> Option<Self> {
        let mut fields = FieldReader::new(entry);
        let identity = PageIdentity::from_bytes(fields.bytes::<IDENTITY_BYTES>()?);
        let parent = PageIdentity::from_bytes(fields.bytes::<IDENTITY_BYTES>()?);
        let sequence = fields.u64()?;
        let (block, num_bytes, num_tokens) = (fields.u32()?, fields.u32()?, fields.u32()?);
        if fields.u32()? != entry_crc(stamp, ordinal, entry) {
            return None;
        }
        let mark = Mark::from_bytes(fields.bytes()?)?;
        let page = PageHeader { identity, parent, num_tokens };
        Some(Self { page, sequence, block, num_bytes, mark })
    }
}

/// An entry of another segment, or of another place in the list, does not pass.
fn entry_crc(stamp: u64, ordinal: usize, entry: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&stamp.to_le_bytes());
    hasher.update(&(ordinal as u64).to_le_bytes());
    hasher.update(&entry[..ENTRY_CRC_AT]);
    hasher.finalize()
}

/// Bytes of the footer of so many records.
pub(super) const fn footer_bytes(num_records: u64) -> u64 {
    (num_records * ENTRY_BYTES as u64 + TRAILER_BYTES as u64).next_multiple_of(BLOCK_BYTES)
}

/// Offset of an entry's mark in a footer.
pub(super) const fn mark_offset(ordinal: u32) -> u64 {
    ordinal as u64 * ENTRY_BYTES as u64 + ENTRY_MARK_AT as u64
}

/// The footer of a segment whose records end at `at`.
pub(super) fn write_footer(segment: u32, stamp: u64, at: u64, entries: &[Entry]) -> Vec<u8> {
    let len = usize::try_from(footer_bytes(entries.len() as u64)).expect("a segment fits memory");
    let mut footer = vec![0; len];
    for (ordinal, entry) in entries.iter().enumerate() {
        entry.write(stamp, ordinal, &mut footer[ordinal * ENTRY_BYTES..][..ENTRY_BYTES]);
    }
    let trailer = &mut footer[len - TRAILER_BYTES..];
    let mut fields = FieldWriter::new(trailer);
    fields.bytes(&MAGIC).u32(FORMAT_VERSION).u32(segment).u64(stamp).u64(at);
    fields.u64(entries.len() as u64);
    let crc = crc32fast::hash(&trailer[..TRAILER_CRC_AT]);
    trailer[TRAILER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    footer
}

/// Where the footer begins, if these last bytes of a file of `file_bytes` are a sound trailer.
pub(super) fn footer_at(segment: u32, stamp: u64, file_bytes: u64, tail: &[u8]) -> Option<u64> {
    let trailer = tail.last_chunk::<TRAILER_BYTES>()?;
    let mut fields = FieldReader::new(trailer);
    let (magic, version) = (fields.bytes::<8>()?, fields.u32()?);
    let owner = (fields.u32()?, fields.u64()?);
    let (at, num_records) = (fields.u64()?, fields.u64()?);
    let crc = crc32fast::hash(&trailer[..TRAILER_CRC_AT]).to_le_bytes();
    let known = magic == MAGIC && version == FORMAT_VERSION && owner == (segment, stamp);
    let fits = num_records <= file_bytes / ENTRY_BYTES as u64;
    let sound = known && fits && trailer[TRAILER_CRC_AT..] == crc;
    (sound && at.checked_add(footer_bytes(num_records))? == file_bytes).then_some(at)
}

/// The entries of a footer whose trailer is sound; None if one of them is damaged.
pub(super) fn read_footer(stamp: u64, footer: &[u8]) -> Option<Vec<Entry>> {
    let trailer = footer.last_chunk::<TRAILER_BYTES>()?;
    let num_records = u64::from_le_bytes(*trailer[32..].first_chunk()?);
    let list = footer.get(..usize::try_from(num_records).ok()?.checked_mul(ENTRY_BYTES)?)?;
    let entries = list.chunks_exact(ENTRY_BYTES).enumerate();
    entries.map(|(ordinal, entry)| Entry::read(stamp, ordinal, entry)).collect()
}
