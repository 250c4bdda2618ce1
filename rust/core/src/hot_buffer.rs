//! The hot buffer of one sequence: KV rows by token position.

use crate::error::Result;
use crate::slot_lru::{Resolution, SlotLru, StepStamps};

/// The executable model of a hot buffer. Steps are counted from 1 and never go back.
#[derive(Debug, Clone)]
pub struct HotBuffer {
    lru: SlotLru,
}

impl HotBuffer {
    /// `num_slots` free slots.
    pub fn new(num_slots: usize) -> Result<Self> {
        SlotLru::new(num_slots).map(|lru| Self { lru })
    }

    /// Makes the selected tokens of a step resident, and keeps them until the step is over.
    ///
    /// The step's own tokens are misses like any other, though their rows do not come from the host;
    /// those that nobody selects get no slot.
    pub fn select(&mut self, step: u32, tokens: &[i32]) -> Result<Resolution> {
        let stamps = StepStamps::of_step(step)?;
        self.lru.resolve(tokens, stamps.claim, stamps.claim)
    }

    /// Forgets every token from `length` on.
    pub fn truncate(&mut self, length: i32) -> Result<()> {
        self.lru.release_from(length)
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
    fn what_a_step_selected_keeps_its_slot_until_the_next() {
        let mut hot = HotBuffer::new(3).unwrap();
        hot.select(1, &[0, 1]).unwrap();
        assert_eq!(hot.select(2, &[2]).unwrap().victims, [2]);
        assert_eq!(hot.select(2, &[3, 4]).unwrap().victims, [0, 1]);
        assert_eq!(hot.lru().slot_of(2), 2);
        assert!(hot.select(2, &[5]).is_err());
        assert_eq!(hot.select(3, &[3]).unwrap().hits, [3]);
    }

    #[test]
    fn truncated_tokens_lose_their_slots() {
        let mut hot = HotBuffer::new(4).unwrap();
        hot.select(1, &[0, 1, 2, 3]).unwrap();
        hot.truncate(2).unwrap();
        assert_eq!(hot.select(2, &[2, 3]).unwrap().victims, [2, 3]);
    }
}
