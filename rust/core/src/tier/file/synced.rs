//! How much of a segment is known to be durable: a note in its first block, behind the head.
//!
//! It is written after a sync, and not synced itself: after a crash it may say too little, never
//! too much. So what is not whole before that end was damaged, and what is not whole behind it may
//! be a write that a crash cut short.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Behind the head, in the same sector; zeros in a new segment.
const NOTE_AT: u64 = 64;
const END_BYTES: usize = 8;
const NOTE_BYTES: usize = END_BYTES + 4;

/// What a segment's note says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Synced {
    /// Everything before this offset is durable; 0 = nothing is known to be.
    Until(u64),
    Damaged,
}

/// Notes that everything before `end` is durable.
pub(super) fn note_synced(file: &File, stamp: u64, end: u64) -> io::Result<()> {
    file.write_all_at(&note_of(stamp, end), NOTE_AT)
}

/// Reads the note of a file that is long enough to have one; another segment's is damage.
pub(super) fn read_synced(file: &File, stamp: u64) -> io::Result<Synced> {
    let mut note = [0; NOTE_BYTES];
    file.read_exact_at(&mut note, NOTE_AT)?;
    let end = note.first_chunk().map_or(0, |end| u64::from_le_bytes(*end));
    let is_sound = note == [0; NOTE_BYTES] || note == note_of(stamp, end);
    Ok(if is_sound { Synced::Until(end) } else { Synced::Damaged })
}

fn note_of(stamp: u64, end: u64) -> [u8; NOTE_BYTES] {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&stamp.to_le_bytes());
    hasher.update(&end.to_le_bytes());
    let mut note = [0; NOTE_BYTES];
    note[..END_BYTES].copy_from_slice(&end.to_le_bytes());
    note[END_BYTES..].copy_from_slice(&hasher.finalize().to_le_bytes());
    note
}
