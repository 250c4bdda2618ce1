//! What a sequence needs before it may start: claimed in every device arena, or in none.

use crate::arena::{IdRange, RangeArena};
use crate::error::{Result, check_equal, check_range};
use crate::page::PAGE_TOKENS;
use crate::sequence::SequenceRanges;

/// How many ids each device arena has; plain numbers, the tensors are the caller's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceCapacity {
    /// Rows of the hot buffers.
    pub slots: u32,
    /// Blocks of the block windows.
    pub window_slots: u32,
    /// Entries of the slot tables.
    pub table_tokens: u32,
    /// Entries of the block tables.
    pub table_blocks: u32,
    /// Pooled keys, handed out in pages of 64.
    pub pooled_keys: u32,
    /// Rows of the per-sequence state.
    pub sequences: u32,
}

/// The device ranges that a sequence chooses itself; the others follow from its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSlots {
    /// Slots of its hot buffer, 1 or more.
    pub slots: u32,
    /// Slots of its block window; 0 where selections come from outside.
    pub window_slots: u32,
}

/// A checked request for a sequence of up to `tokens` tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Admission {
    pub(crate) tokens: u32,
    blocks: u32,
    device: DeviceSlots,
}

impl Admission {
    pub(crate) fn new(
        first_tokens: u32,
        max_new_tokens: u32,
        block_tokens: u32,
        device: DeviceSlots,
    ) -> Result<Self> {
        let tokens = u64::from(first_tokens) + u64::from(max_new_tokens);
        check_range("tokens of a sequence", tokens, 1, u64::from(i32::MAX.unsigned_abs()))?;
        check_range("slots", device.slots, 1, u32::MAX)?;
        let tokens = first_tokens + max_new_tokens;
        Ok(Self { tokens, blocks: tokens.div_ceil(block_tokens), device })
    }
}

/// The six arenas of device state.
#[derive(Debug)]
pub(crate) struct DeviceArenas {
    pub(crate) slots: RangeArena,
    pub(crate) window: RangeArena,
    pub(crate) token_table: RangeArena,
    pub(crate) block_table: RangeArena,
    pub(crate) pooled: RangeArena,
    pub(crate) state_rows: RangeArena,
}

impl DeviceArenas {
    pub(crate) fn new(capacity: DeviceCapacity) -> Result<Self> {
        Ok(Self {
            slots: RangeArena::new("slots", capacity.slots, 1)?,
            window: RangeArena::new("window slots", capacity.window_slots, 1)?,
            token_table: RangeArena::new("table tokens", capacity.table_tokens, 1)?,
            block_table: RangeArena::new("table blocks", capacity.table_blocks, 1)?,
            pooled: RangeArena::new("pooled keys", capacity.pooled_keys, PAGE_TOKENS)?,
            state_rows: RangeArena::new("state rows", capacity.sequences, 1)?,
        })
    }

    /// Claims a range in every arena. Nothing is claimed unless all fit.
    pub(crate) fn claim(&mut self, need: &Admission) -> Result<SequenceRanges> {
        self.state_rows.find(1)?;
        self.slots.find(need.device.slots)?;
        self.window.find(need.device.window_slots)?;
        self.token_table.find(need.tokens)?;
        self.block_table.find(need.blocks)?;
        self.pooled.find(need.blocks)?;
        Ok(SequenceRanges {
            slots: self.slots.claim(need.device.slots)?,
            window: self.window.claim(need.device.window_slots)?,
            token_table: self.token_table.claim(need.tokens)?,
            block_table: self.block_table.claim(need.blocks)?,
            pooled: self.pooled.claim(need.blocks)?,
            state_row: self.state_rows.claim(1)?.base,
        })
    }

    pub(crate) fn release(&mut self, ranges: &SequenceRanges) -> Result<()> {
        self.slots.release(ranges.slots)?;
        self.window.release(ranges.window)?;
        self.token_table.release(ranges.token_table)?;
        self.block_table.release(ranges.block_table)?;
        self.pooled.release(ranges.pooled)?;
        self.state_rows.release(state_row_range(ranges))
    }

    /// Each arena is sound, and what is out is exactly what the open sequences hold, once.
    pub(crate) fn check_integrity(&self, open: &[SequenceRanges]) -> Result<()> {
        let check = |arena: &RangeArena, range_of: fn(&SequenceRanges) -> IdRange| {
            arena.check_integrity()?;
            check_held(arena, open.iter().map(range_of).collect())
        };
        check(&self.slots, |ranges| ranges.slots)?;
        check(&self.window, |ranges| ranges.window)?;
        check(&self.token_table, |ranges| ranges.token_table)?;
        check(&self.block_table, |ranges| ranges.block_table)?;
        check(&self.pooled, |ranges| ranges.pooled)?;
        check(&self.state_rows, state_row_range)
    }
}

fn state_row_range(ranges: &SequenceRanges) -> IdRange {
    IdRange { base: ranges.state_row, count: 1 }
}

fn check_held(arena: &RangeArena, mut held: Vec<IdRange>) -> Result<()> {
    held.retain(|range| range.count > 0);
    held.sort_unstable_by_key(|range| range.base);
    for pair in held.windows(2) {
        let end = pair[0].base + pair[0].count;
        check_range("base of a held range", pair[1].base, end, arena.capacity())?;
    }
    let num_held: u32 = held.iter().map(|range| range.count).sum();
    check_equal("ids held by sequences", num_held, arena.num_used())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_arena_that_is_full_leaves_all_others_untouched() {
        let capacity = DeviceCapacity {
            slots: 100,
            window_slots: 8,
            table_tokens: 1000,
            table_blocks: 20,
            pooled_keys: 64,
            sequences: 9,
        };
        let mut arenas = DeviceArenas::new(capacity).unwrap();
        let device = DeviceSlots { slots: 10, window_slots: 2 };
        let need = Admission::new(100, 28, 128, device).unwrap();
        let first = arenas.claim(&need).unwrap();
        assert_eq!(first.pooled, IdRange { base: 0, count: 64 });
        let error = arenas.claim(&need).unwrap_err().to_string();
        assert_eq!(
            error,
            "device arena full: need 64 pooled keys in one range, 0 free of 64, longest free range 0"
        );
        arenas.check_integrity(&[first]).unwrap();
        arenas.release(&first).unwrap();
        arenas.check_integrity(&[]).unwrap();
    }

    #[test]
    fn a_sequence_longer_than_positions_reach_is_refused() {
        let device = DeviceSlots { slots: 1, window_slots: 0 };
        let error = Admission::new(u32::MAX, 1, 128, device).unwrap_err().to_string();
        assert_eq!(error, "tokens of a sequence: found 4294967296, needed 1 to 2147483647");
        assert!(Admission::new(0, 0, 128, device).is_err());
    }
}
