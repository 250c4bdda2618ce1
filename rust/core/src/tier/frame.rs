//! How a page travels to a tier that may lie: a header of 64 bytes, then the page.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0..8 | `HISPAGE` and a zero |
//! | 8..12 | version of this layout |
//! | 12..16 | tokens of the page |
//! | 16..48 | the page's identity |
//! | 48..56 | bytes of the page |
//! | 56..60 | zero |
//! | 60..64 | CRC-32 of bytes 0..60 and of the page |
//!
//! Numbers are little-endian. `hisparse_sidecar/remote/frame.py` reads and writes the same bytes.

use super::{IDENTITY_BYTES, PageHeader, PageIdentity};

/// Bytes before the page.
pub const FRAME_BYTES: usize = 64;
/// Version of the layout; a page of another version is a miss.
pub const FRAME_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"HISPAGE\0";
const CHECKED_BYTES: usize = 60;

/// The header of a page of these bytes.
pub fn header_of(page: &PageHeader, bytes: &[u8]) -> [u8; FRAME_BYTES] {
    let mut header = [0; FRAME_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&FRAME_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&page.num_tokens.to_le_bytes());
    header[16..16 + IDENTITY_BYTES].copy_from_slice(page.identity.as_bytes());
    header[48..56].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    let checksum = checksum(&header[..CHECKED_BYTES], bytes);
    header[CHECKED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// The page in a frame, if it is the one asked for, `num_bytes` long, and every bit of it is right.
pub fn open<'a>(identity: &PageIdentity, num_bytes: usize, frame: &'a [u8]) -> Option<&'a [u8]> {
    let (header, page) = frame.split_at_checked(FRAME_BYTES)?;
    let (checked, stored) = header.split_at(CHECKED_BYTES);
    let is_named = checked[..8] == MAGIC
        && checked[8..12] == FRAME_VERSION.to_le_bytes()
        && checked[16..48] == *identity.as_bytes()
        && checked[48..56] == (num_bytes as u64).to_le_bytes()
        && page.len() == num_bytes;
    (is_named && checksum(checked, page).to_le_bytes() == stored).then_some(page)
}

fn checksum(header: &[u8], page: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(page);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: PageIdentity = PageIdentity::from_bytes([7; IDENTITY_BYTES]);

    fn frame() -> Vec<u8> {
        let page = PageHeader { identity: IDENTITY, parent: IDENTITY, num_tokens: 64 };
        [header_of(&page, b"0123456789").as_slice(), b"0123456789"].concat()
    }

    /// `tests/remote/test_frame.py` has the same frame.
    #[test]
    fn the_layout_is_the_one_that_python_writes() {
        let expected = [
            b"HISPAGE\0\x01\0\0\0\x40\0\0\0".as_slice(),
            &[7; IDENTITY_BYTES],
            b"\x0a\0\0\0\0\0\0\0\0\0\0\0\xd0\x0c\x3b\x690123456789",
        ];
        assert_eq!(frame(), expected.concat());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let frame = frame();
        assert_eq!(open(&IDENTITY, 10, &frame), Some(b"0123456789".as_slice()));
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&IDENTITY, 10, &flipped), None, "bit {bit}");
        }
        for len in 0..frame.len() {
            assert_eq!(open(&IDENTITY, 10, &frame[..len]), None, "{len} bytes");
        }
        assert_eq!(open(&PageIdentity::from_bytes([8; 32]), 10, &frame), None);
        assert_eq!(open(&IDENTITY, 9, &frame), None);
    }
}
