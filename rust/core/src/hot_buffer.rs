//! The hot buffer of one sequence: KV rows by token position, the newest tokens among them.

use crate::error::{Result, check_range};
use crate::slot_lru::{Resolution, SlotLru, StepStamps};

/// The executable model of a hot buffer. Steps are counted from 1 and never go back.
#[derive(Debug, Clone)]
pub struct HotBuffer {
    lru: SlotLru,
}

impl HotBuffer {
    /// `num_slots` free slots: those for selected rows plus those for the rows of one step.
    pub fn new(num_slots: usize) -> Result<Self> {
        SlotLru::new(num_slots).map(|lru| Self { lru })
    }

    /// Gives the new tokens of a step their own slots, which the step keeps.
    pub fn append(&mut self, step: u32, first_token: i32, num_tokens: u32) -> Result<Resolution> {
        check_range("first_token", first_token, 0, i32::MAX)?;
        let end = i64::from(first_token) + i64::from(num_tokens);
        check_range("end of the appended tokens", end, 1, i64::from(i32::MAX))?;
        let tokens: Vec<i32> = (first_token..).take(num_tokens as usize).collect();
        self.select(step, &tokens)
    }

    /// Makes the selected tokens of a step resident, and keeps them until the step is over.
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
    fn the_newest_token_keeps_its_slot_while_its_step_selects() {
        let mut hot = HotBuffer::new(3).unwrap();
        hot.select(1, &[0, 1]).unwrap();
        let newest = hot.append(2, 2, 1).unwrap();
        assert_eq!(newest.victims, [2]);
        assert_eq!(hot.select(2, &[3, 4]).unwrap().victims, [0, 1]);
        assert_eq!(hot.lru().slot_of(2), 2);
        assert!(hot.select(2, &[5]).is_err());
        assert_eq!(hot.append(3, 3, 1).unwrap().hits, [3]);
    }

    #[test]
    fn truncated_tokens_lose_their_slots() {
        let mut hot = HotBuffer::new(4).unwrap();
        hot.append(1, 0, 4).unwrap();
        hot.truncate(2).unwrap();
        assert_eq!(hot.append(2, 2, 2).unwrap().victims, [2, 3]);
        assert!(hot.append(2, i32::MAX, 1).is_err());
    }
}
