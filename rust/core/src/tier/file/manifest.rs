//! The list of a directory's segments: what is not in it is not there.
//!
//! It is replaced as a whole: written beside the old one, made durable, renamed over it, and the
//! directory made durable.

use super::codec::{FieldReader, FieldWriter};
use super::page_header::FORMAT_VERSION;

const MAGIC: [u8; 8] = *b"hispMANI";
const HEAD_BYTES: usize = 56;
const LISTED_BYTES: usize = 16;
const CRC_BYTES: usize = 4;
const FULL: u32 = 1;

/// One segment of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) segment: u32,
    pub(super) stamp: u64,
    /// Its footer is durable: without one it is damaged.
    pub(super) is_full: bool,
}

/// What the file says; `digest` is that of the model and layout whose pages these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) digest: [u8; 32],
    pub(super) segments: Vec<Listed>,
}

/// A manifest that is not one of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadManifest {
    Damaged,
    OtherVersion(u32),
}

impl Manifest {
    /// Bytes of a manifest of so many segments.
    pub(super) const fn num_bytes(num_segments: usize) -> usize {
        HEAD_BYTES + num_segments * LISTED_BYTES + CRC_BYTES
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; Self::num_bytes(self.segments.len())];
        let len = bytes.len() - CRC_BYTES;
        let mut fields = FieldWriter::new(&mut bytes);
        fields.bytes(&MAGIC).u32(FORMAT_VERSION).u32(0).bytes(&self.digest);
        fields.u64(self.segments.len() as u64);
        for listed in &self.segments {
            fields.u32(listed.segment).u32(u32::from(listed.is_full) * FULL).u64(listed.stamp);
        }
        let crc = crc32fast::hash(&bytes[..len]);
        bytes[len..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, BadManifest> {
        let (body, crc) = bytes.split_last_chunk::<CRC_BYTES>().ok_or(BadManifest::Damaged)?;
        if *crc != crc32fast::hash(body).to_le_bytes() {
            return Err(BadManifest::Damaged);
        }
        let mut fields = FieldReader::new(body);
        match (fields.bytes(), fields.u32()) {
            (Some(MAGIC), Some(FORMAT_VERSION)) => {}
            (Some(MAGIC), Some(other)) => return Err(BadManifest::OtherVersion(other)),
            _ => return Err(BadManifest::Damaged),
        }
        Self::read(&mut fields).ok_or(BadManifest::Damaged)
    }

    fn read(fields: &mut FieldReader<'_>) -> Option<Self> {
        fields.u32()?;
        let digest = fields.bytes()?;
        let mut segments = Vec::new();
        for _ in 0..fields.u64()? {
            let (segment, flags, stamp) = (fields.u32()?, fields.u32()?, fields.u64()?);
            if segments.last().is_some_and(|last: &Listed| last.segment >= segment) {
                return None; // whoever wrote it, a segment that is read twice is counted wrong
            }
            segments.push(Listed { segment, stamp, is_full: flags & FULL != 0 });
        }
        Some(Self { digest, segments })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_reads_back_and_no_flip_of_one_bit_passes() {
        let listed = |segment| Listed { segment, stamp: 5, is_full: segment == 1 };
        let manifest = Manifest { digest: [3; 32], segments: (1..4).map(listed).collect() };
        let mut bytes = manifest.to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes), Ok(manifest));
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Manifest::from_bytes(&bytes), Err(BadManifest::Damaged), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_segment_that_is_listed_twice_or_out_of_order_is_damage() {
        for numbers in [[1, 1], [2, 1]] {
            let listed = |segment| Listed { segment, stamp: 5, is_full: true };
            let manifest = Manifest { digest: [3; 32], segments: numbers.map(listed).to_vec() };
            assert_eq!(Manifest::from_bytes(&manifest.to_bytes()), Err(BadManifest::Damaged));
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let mut bytes = Manifest { digest: [3; 32], segments: Vec::new() }.to_bytes();
        let len = bytes.len() - CRC_BYTES;
        bytes[8] = 9;
        let crc = crc32fast::hash(&bytes[..len]);
        bytes[len..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Manifest::from_bytes(&bytes), Err(BadManifest::OtherVersion(9)));
    }
}
