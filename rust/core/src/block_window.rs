//! The block window of one sequence: index-key blocks by block id, on the same LRU.

use crate::error::Result;
use crate::slot_lru::{Resolution, SlotLru, StepStamps};

/// The executable model of a block window. Steps are counted from 1 and never go back.
#[derive(Debug, Clone)]
pub struct BlockWindow {
    lru: SlotLru,
}

impl BlockWindow {
    /// `num_slots` free slots of one block each.
    pub fn new(num_slots: usize) -> Result<Self> {
        SlotLru::new(num_slots).map(|lru| Self { lru })
    }

    /// Makes blocks resident that a step writes or scores, and keeps them until the step is over.
    pub fn select(&mut self, step: u32, blocks: &[i32]) -> Result<Resolution> {
        let stamps = StepStamps::of_step(step)?;
        self.lru.resolve(blocks, stamps.claim, stamps.claim)
    }

    /// Makes blocks resident for one scan: they recycle each other's slots, but never evict what
    /// the step has selected.
    pub fn stream(&mut self, step: u32, blocks: &[i32]) -> Result<Resolution> {
        let stamps = StepStamps::of_step(step)?;
        self.lru.resolve(blocks, stamps.stream, stamps.claim)
    }

    /// Forgets every block from `first_block` on.
    pub fn truncate(&mut self, first_block: i32) -> Result<()> {
        self.lru.release_from(first_block)
    }

    /// The slots themselves.
    pub fn lru(&self) -> &SlotLru {
        &self.lru
    }

    /// The slots, for a caller that stamps on its own.
    pub fn lru_mut(&mut self) -> &mut SlotLru {
        &mut self.lru
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_passes_through_one_slot_beside_the_selected_blocks() {
        let mut window = BlockWindow::new(3).unwrap();
        window.select(1, &[0, 9]).unwrap();
        let slots: Vec<_> = (1..6).map(|b| window.stream(1, &[b]).unwrap().slots[0]).collect();
        assert_eq!(slots, [2, 2, 2, 2, 2]);
        assert_eq!(window.stream(1, &[9]).unwrap().hits, [9]);
        assert_eq!(window.stream(2, &[1]).unwrap().victims, [2]);
        assert_eq!(window.stream(2, &[2]).unwrap().victims, [0]);
        window.truncate(2).unwrap();
        assert_eq!(window.lru().slot_of(1), 2);
    }
}
