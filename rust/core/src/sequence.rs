//! Sequences and the handles that name them: an entry number and the entry's generation.

use crate::arena::IdRange;
use crate::error::{Error, Result, check_range};
use crate::names::PageNames;
use crate::page_table::PageTable;
use crate::pooled_keys::PooledKeys;
use crate::tenants::TenantId;

/// Names one open sequence; stale for ever after the sequence is closed. 0 names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceHandle(u64);

impl SequenceHandle {
    /// A handle from its number.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The handle as a number: entry in the low half, generation in the high one.
    pub const fn bits(self) -> u64 {
        self.0
    }

    fn new(entry: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(entry))
    }

    #[allow(clippy::cast_possible_truncation, reason = "the low half is the entry")]
    const fn entry(self) -> u32 {
        self.0 as u32
    }

    const fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Where the state of one sequence lies in each device arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SequenceRanges {
    /// Slots of the hot buffer.
    pub slots: IdRange,
    /// Slots of the block window.
    pub window: IdRange,
    /// Slot-table entries, one a token.
    pub token_table: IdRange,
    /// Block-table entries, one a block.
    pub block_table: IdRange,
    /// Pooled keys, in whole pages of 64.
    pub pooled: IdRange,
    /// Row of the per-sequence state tensors.
    pub state_row: u32,
}

/// One open sequence.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) length: u32,
    pub(crate) admitted_tokens: u32,
    pub(crate) pooled: PooledKeys,
    pub(crate) names: Option<PageNames>, // None = it shares nothing but with its forks
    pub(crate) life: Life,
}

/// What a sequence has at the moment.
#[derive(Debug)]
pub(crate) enum Life {
    /// All that steps need.
    Active(Active),
    /// Pages that are kept for it, in whatever tier, and nothing on the device.
    Resting(Resting),
}

#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) pages: PageTable,
    pub(crate) ranges: SequenceRanges,
}

#[derive(Debug)]
pub(crate) struct Resting {
    pub(crate) tenant: TenantId,
    pub(crate) held: Box<[u32]>, // entries of the directory, in order
}

impl Sequence {
    /// What steps need; refused while the sequence rests.
    pub(crate) fn active(&self) -> Result<&Active> {
        match &self.life {
            Life::Active(active) => Ok(active),
            Life::Resting(_) => Err(RESTS),
        }
    }

    /// As [`active`](Self::active), to change it.
    pub(crate) fn active_mut(&mut self) -> Result<&mut Active> {
        match &mut self.life {
            Life::Active(active) => Ok(active),
            Life::Resting(_) => Err(RESTS),
        }
    }

    /// What is kept; refused while the sequence is active.
    pub(crate) fn resting(&self) -> Result<&Resting> {
        match &self.life {
            Life::Resting(resting) => Ok(resting),
            Life::Active(_) => Err(WORKS),
        }
    }
}

const RESTS: Error = Error::WrongState { what: "preemptions of the sequence", found: 1, needed: 0 };
const WORKS: Error = Error::WrongState { what: "preemptions of the sequence", found: 0, needed: 1 };

#[derive(Debug)]
struct Entry {
    generation: u32, // of the open sequence, or of the next one; 0 = worn out
    sequence: Option<Sequence>,
}

/// Every open sequence by handle. An entry whose generations are used up is never used again.
#[derive(Debug, Default)]
pub(crate) struct SequenceTable {
    entries: Vec<Entry>,
    free: Vec<u32>,
    num_open: usize,
}

impl SequenceTable {
    pub(crate) fn num_open(&self) -> usize {
        self.num_open
    }

    pub(crate) fn insert(&mut self, sequence: Sequence) -> Result<SequenceHandle> {
        let entry = if let Some(entry) = self.free.pop() { entry } else { self.grow()? };
        let place = &mut self.entries[entry as usize];
        place.sequence = Some(sequence);
        self.num_open += 1;
        Ok(SequenceHandle::new(entry, place.generation))
    }

    pub(crate) fn get(&self, handle: SequenceHandle) -> Result<&Sequence> {
        let entry = self.entries.get(handle.entry() as usize);
        let live = entry.filter(|entry| entry.generation == handle.generation());
        let sequence = live.and_then(|entry| entry.sequence.as_ref());
        sequence.ok_or_else(|| self.refuse(handle))
    }

    pub(crate) fn get_mut(&mut self, handle: SequenceHandle) -> Result<&mut Sequence> {
        self.get(handle)?;
        let place = &mut self.entries[handle.entry() as usize].sequence;
        Ok(place.as_mut().expect("get has found it"))
    }

    pub(crate) fn remove(&mut self, handle: SequenceHandle) -> Result<Sequence> {
        self.get(handle)?;
        let place = &mut self.entries[handle.entry() as usize];
        place.generation = place.generation.wrapping_add(1);
        if place.generation != 0 {
            self.free.push(handle.entry());
        }
        self.num_open -= 1;
        Ok(place.sequence.take().expect("get has found it"))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Sequence> {
        self.entries.iter().filter_map(|entry| entry.sequence.as_ref())
    }

    fn grow(&mut self) -> Result<u32> {
        let entry = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        check_range("sequence entries", entry, 0, u32::MAX - 1)?;
        self.entries.push(Entry { generation: 1, sequence: None });
        Ok(entry)
    }

    /// Stale if the handle was given out once, else unknown.
    fn refuse(&self, handle: SequenceHandle) -> Error {
        let (entry, generation) = (handle.entry(), handle.generation());
        let current = self.entries.get(entry as usize).map_or(1, |entry| entry.generation);
        let was_given_out = generation != 0 && (generation < current || current == 0);
        if was_given_out {
            return Error::StaleHandle { what: "sequence", id: entry, found: generation, current };
        }
        let num_entries = self.entries.len();
        Error::UnknownSequence { handle: handle.bits(), entry, generation, num_entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn sequence() -> Sequence {
        Sequence {
            length: 0,
            admitted_tokens: 1,
            pooled: PooledKeys::new(1, 64).unwrap(),
            names: None,
            life: Life::Active(Active {
                pages: PageTable::new(TenantId::DEFAULT, 1),
                ranges: SequenceRanges::default(),
            }),
        }
    }

    #[test]
    fn a_closed_handle_stays_stale_when_its_entry_is_used_again() {
        let mut table = SequenceTable::default();
        let old = table.insert(sequence()).unwrap();
        table.remove(old).unwrap();
        let new = table.insert(sequence()).unwrap();
        assert_eq!(new.entry(), old.entry());
        let error = table.get(old).unwrap_err();
        assert_eq!(error.to_string(), "stale sequence handle 0: found generation 1, needed 2");
        assert!(table.get(new).is_ok());
    }

    #[test]
    fn a_handle_that_was_never_given_out_is_unknown() {
        let mut table = SequenceTable::default();
        let first = table.insert(sequence()).unwrap();
        for bits in [0, 1, first.bits() + 1, first.bits() + (1 << 32), u64::MAX] {
            let error = table.get(SequenceHandle::from_bits(bits)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnknownSequence, "{error}");
        }
        table.remove(first).unwrap();
        let next = SequenceHandle::from_bits(first.bits() + (1 << 32));
        assert_eq!(table.remove(next).unwrap_err().kind(), ErrorKind::UnknownSequence);
    }

    #[test]
    fn an_entry_with_no_generation_left_is_retired() {
        let mut table = SequenceTable::default();
        let first = table.insert(sequence()).unwrap();
        table.entries[0].generation = u32::MAX;
        let last = SequenceHandle::new(0, u32::MAX);
        table.remove(last).unwrap();
        assert_eq!(table.get(last).unwrap_err().kind(), ErrorKind::StaleHandle);
        assert_eq!(table.get(first).unwrap_err().kind(), ErrorKind::StaleHandle);
        assert_eq!(table.insert(sequence()).unwrap().entry(), 1);
    }
}
