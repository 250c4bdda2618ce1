//! What stands before a page's bytes in a segment.
//!
//! A record is the header, the page's bytes, and zeros up to the next multiple of 4 KiB. Its mark
//! is the one field that changes later, so neither checksum covers it.

use crate::tier::{IDENTITY_BYTES, PageHeader, PageIdentity};

use super::codec::{FieldReader, FieldWriter};

/// Version of everything that the tier writes; another one is refused, not converted.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Length of a block in memory.
pub(super) const BLOCK_LEN: usize = 4096;
/// Records begin at multiples of this.
pub(super) const BLOCK_BYTES: u64 = BLOCK_LEN as u64;
/// Bytes of a header; a multiple of the cache line, so that the page's bytes keep its alignment.
pub(super) const HEADER_BYTES: usize = 192;
/// Offset of the mark in a header.
pub(super) const MARK_AT: u64 = 8;

const MAGIC: [u8; 8] = *b"hispPAGE";
const CHECKED_FROM: usize = 16; // after the magic, which is compared, and the mark
const CRC_AT: usize = HEADER_BYTES - 4;

/// Whether a page is there; any other value on the disk is damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    Live,
    Dead,
}

impl Mark {
    pub(super) const fn to_bytes(self) -> [u8; 8] {
        match self {
            Self::Live => *b"pageLIVE",
            Self::Dead => *b"pagedead",
        }
    }

    pub(super) fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        [Self::Live, Self::Dead].into_iter().find(|mark| mark.to_bytes() == bytes)
    }
}

/// A page's header, and where it was written: bytes that lie elsewhere are not the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) page: PageHeader,
    /// Grows with every page that is put, and is kept by a copy that a collection makes: of two
    /// records of a page the higher counts, and equal ones have the same bytes.
    pub(super) sequence: u64,
    pub(super) segment: u32,
    /// Unlike any other segment's, and not to be guessed by whoever chooses a page's bytes.
    pub(super) stamp: u64,
    /// Offset in the segment, in blocks of 4 KiB.
    pub(super) block: u32,
    pub(super) num_bytes: u32,
}

/// Bytes of the record of a page of so many bytes.
pub(super) const fn record_bytes(num_bytes: u64) -> u64 {
    (HEADER_BYTES as u64 + num_bytes).next_multiple_of(BLOCK_BYTES)
}

impl RecordHeader {
    /// Writes the header to the front of a record that holds the page's bytes already.
    pub(super) fn seal(&self, digest: &[u8; 32], record: &mut [u8]) {
        let (header, rest) = record.split_at_mut(HEADER_BYTES);
        let payload_crc = crc32fast::hash(&rest[..self.num_bytes as usize]);
        header.fill(0);
        FieldWriter::new(header)
            .bytes(&MAGIC)
            .bytes(&Mark::Live.to_bytes())
            .u32(FORMAT_VERSION)
            .u32(self.page.num_tokens)
            .bytes(digest)
            .bytes(self.page.identity.as_bytes())
            .bytes(self.page.parent.as_bytes())
            .u64(self.sequence)
            .u64(self.stamp)
            .u32(self.segment)
            .u32(self.block)
            .u32(self.num_bytes)
            .u32(payload_crc);
        let crc = crc32fast::hash(&header[CHECKED_FROM..CRC_AT]);
        header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    }

    /// The header at the front of `record`, its mark, and the checksum of the page's bytes.
    ///
    /// None for anything but a whole header of this version and digest.
    pub(super) fn read(digest: &[u8; 32], record: &[u8]) -> Option<(Self, Mark, u32)> {
        let header = record.first_chunk::<HEADER_BYTES>()?;
        let crc = crc32fast::hash(&header[CHECKED_FROM..CRC_AT]);
        let mut fields = FieldReader::new(header);
        let magic: [u8; 8] = fields.bytes()?;
        if header[CRC_AT..] != crc.to_le_bytes() || magic != MAGIC {
            return None;
        }
        let mark = Mark::from_bytes(fields.bytes()?)?;
        let (version, num_tokens) = (fields.u32()?, fields.u32()?);
        if version != FORMAT_VERSION || fields.bytes()? != *digest {
            return None;
        }
        let identity = PageIdentity::from_bytes(fields.bytes::<IDENTITY_BYTES>()?);
        let parent = PageIdentity::from_bytes(fields.bytes::<IDENTITY_BYTES>()?);
        let (sequence, stamp) = (fields.u64()?, fields.u64()?);
        let (segment, block, num_bytes) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let page = PageHeader { identity, parent, num_tokens };
        let header = Self { page, sequence, segment, stamp, block, num_bytes };
        Some((header, mark, fields.u32()?))
    }
}

/// What a record on the disk turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sound {
    /// The page, whole.
    Page(RecordHeader),
    /// A page that was removed; its bytes may be anything.
    Removed(RecordHeader),
}

/// Checks a whole record: None if a bit of its header or of the page is not as it was written.
pub(super) fn check_record(digest: &[u8; 32], record: &[u8]) -> Option<Sound> {
    let (header, mark, payload_crc) = RecordHeader::read(digest, record)?;
    if mark == Mark::Dead {
        return Some(Sound::Removed(header));
    }
    let payload = record.get(HEADER_BYTES..)?.get(..header.num_bytes as usize)?;
    (crc32fast::hash(payload) == payload_crc).then_some(Sound::Page(header))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: [u8; 32] = [7; 32];

    fn record() -> (RecordHeader, Vec<u8>) {
        let identity = PageIdentity::from_bytes([1; 32]);
        let page =
            PageHeader { identity, parent: PageIdentity::from_bytes([2; 32]), num_tokens: 3 };
        let header =
            RecordHeader { page, sequence: 4, segment: 5, stamp: 6, block: 7, num_bytes: 100 };
        let mut record = vec![9; usize::try_from(record_bytes(100)).unwrap()];
        header.seal(&DIGEST, &mut record);
        (header, record)
    }

    #[test]
    fn a_record_reads_back_as_written() {
        let (header, record) = record();
        assert_eq!(check_record(&DIGEST, &record), Some(Sound::Page(header)));
        assert_eq!(check_record(&[8; 32], &record), None);
    }

    #[test]
    fn no_flip_of_one_bit_of_header_or_page_passes() {
        let (header, mut record) = record();
        for bit in 0..(HEADER_BYTES + 100) * 8 {
            record[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(check_record(&DIGEST, &record), None, "bit {bit} of {header:?}");
            record[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
