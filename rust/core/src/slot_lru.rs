//! The exact LRU of one sequence's slots: items in, slots out, victims in `(stamp, slot)` order.
//!
//! This is what the device's resolve kernel must do, slot for slot.

use std::collections::HashMap;

use crate::error::{Error, Result, check_equal, check_range};

/// Most slots of one model.
pub const MAX_SLOTS: usize = 1 << 24;

const NONE: i32 = -1;

/// The two stamps of one step: what the step claims itself stays, what streams through does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepStamps {
    /// Stamp of appended and selected items, and the first stamp that the step protects.
    pub claim: i32,
    /// Stamp of items that stream through: older than `claim`, so they recycle their own slots.
    pub stream: i32,
}

impl StepStamps {
    /// Stamps of step `step`, counted from 1.
    pub fn of_step(step: u32) -> Result<Self> {
        let max = (i32::MAX - 1) / 2;
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        check_range("step", step, 1, max)?;
        Ok(Self { claim: 2 * step + 1, stream: 2 * step })
    }
}

/// What one [`SlotLru::resolve`] did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Resolution {
    /// Slot of every item of the call, in the call's order; -1 for -1.
    pub slots: Vec<i32>,
    /// Items that had a slot, ascending.
    pub hits: Vec<i32>,
    /// Items that had none, ascending.
    pub misses: Vec<i32>,
    /// Slots that the misses took, one each.
    pub victims: Vec<i32>,
    /// Items that the victims held; -1 = the slot was free.
    pub evicted: Vec<i32>,
}

/// Slots with the item and the stamp of each; items are positions or block ids.
#[derive(Debug, Clone)]
pub struct SlotLru {
    items: Vec<i32>,  // [num_slots], -1 = free
    stamps: Vec<i32>, // [num_slots], -1 = free
    slot_of: HashMap<i32, usize>,
}

impl SlotLru {
    /// `num_slots` free slots, 1 to [`MAX_SLOTS`].
    pub fn new(num_slots: usize) -> Result<Self> {
        check_range("num_slots", num_slots, 1, MAX_SLOTS)?;
        let none = vec![NONE; num_slots];
        Ok(Self { items: none.clone(), stamps: none, slot_of: HashMap::with_capacity(num_slots) })
    }

    /// All slots.
    pub fn num_slots(&self) -> usize {
        self.items.len()
    }

    /// Gives every item a slot: hits keep theirs, the i-th miss takes the i-th victim.
    ///
    /// Victims hold no item of the call and have a stamp below `protect_since`. Items may repeat
    /// and come in any order; -1 is no item.
    pub fn resolve(&mut self, items: &[i32], stamp: i32, protect_since: i32) -> Result<Resolution> {
        check_range("stamp", stamp, 0, i32::MAX)?;
        check_range("protect_since", protect_since, 0, i32::MAX)?;
        let wanted = union_of(items)?;
        let (hits, misses) = self.split(&wanted);
        let victims = self.victims(&hits, misses.len(), protect_since)?;
        for &(_, slot) in &hits {
            self.stamps[slot] = self.stamps[slot].max(stamp);
        }
        let hits = hits.into_iter().map(|(item, _)| item).collect();
        let evicted = self.claim(&misses, &victims, stamp);
        let slots = items.iter().map(|&item| self.slot_of(item)).collect();
        let victims = victims.into_iter().map(slot_id).collect();
        Ok(Resolution { slots, hits, misses, victims, evicted })
    }

    /// Frees every slot that holds `first_item` or a later one.
    pub fn release_from(&mut self, first_item: i32) -> Result<()> {
        check_range("first_item", first_item, 0, i32::MAX)?;
        for slot in 0..self.items.len() {
            if self.items[slot] >= first_item {
                self.slot_of.remove(&self.items[slot]);
                self.items[slot] = NONE;
                self.stamps[slot] = NONE;
            }
        }
        Ok(())
    }

    /// Slot of an item; -1 = none.
    pub fn slot_of(&self, item: i32) -> i32 {
        self.slot_of.get(&item).map_or(NONE, |&slot| slot_id(slot))
    }

    /// Item in a slot; -1 = free.
    pub fn item_in(&self, slot: usize) -> Result<i32> {
        check_range("slot", slot, 0, self.items.len() - 1)?;
        Ok(self.items[slot])
    }

    /// Stamp of a slot; -1 = free.
    pub fn stamp_of(&self, slot: usize) -> Result<i32> {
        check_range("slot", slot, 0, self.items.len() - 1)?;
        Ok(self.stamps[slot])
    }

    /// Slots and table name each other; a free slot has no stamp.
    pub fn check_integrity(&self) -> Result<()> {
        let used = self.items.iter().filter(|&&item| item != NONE).count();
        check_equal("items with a slot", self.slot_of.len(), used)?;
        for (slot, (&item, &stamp)) in self.items.iter().zip(&self.stamps).enumerate() {
            check_equal("stamp of a free slot", u8::from(item < 0), u8::from(stamp < 0))?;
            if item != NONE {
                check_equal("slot of an item", self.slot_of(item), slot_id(slot))?;
            }
        }
        Ok(())
    }

    /// Items that have a slot, with it, and those that have none.
    fn split(&self, wanted: &[i32]) -> (Vec<(i32, usize)>, Vec<i32>) {
        let (mut hits, mut misses) = (Vec::with_capacity(wanted.len()), Vec::new());
        for &item in wanted {
            match self.slot_of.get(&item) {
                Some(&slot) => hits.push((item, slot)),
                None => misses.push(item),
            }
        }
        (hits, misses)
    }

    /// The `count` oldest slots outside of `hits`, by `(stamp, slot)`.
    fn victims(
        &self,
        hits: &[(i32, usize)],
        count: usize,
        protect_since: i32,
    ) -> Result<Vec<usize>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let mut is_hit = vec![false; self.items.len()];
        for &(_, slot) in hits {
            is_hit[slot] = true;
        }
        let mut free: Vec<(i32, usize)> = self
            .stamps
            .iter()
            .enumerate()
            .filter(|&(slot, &stamp)| stamp < protect_since && !is_hit[slot])
            .map(|(slot, &stamp)| (stamp, slot))
            .collect();
        if free.len() < count {
            let (victims, num_slots) = (free.len(), self.items.len());
            return Err(Error::TooFewVictims { misses: count, victims, num_slots });
        }
        free.select_nth_unstable(count - 1);
        free.truncate(count);
        free.sort_unstable();
        Ok(free.into_iter().map(|(_, slot)| slot).collect())
    }

    fn claim(&mut self, misses: &[i32], victims: &[usize], stamp: i32) -> Vec<i32> {
        let evict = |(&item, &slot): (&i32, &usize)| {
            let old = std::mem::replace(&mut self.items[slot], item);
            self.slot_of.remove(&old);
            self.slot_of.insert(item, slot);
            self.stamps[slot] = stamp;
            old
        };
        misses.iter().zip(victims).map(evict).collect()
    }
}

/// The distinct items of one call, ascending.
fn union_of(items: &[i32]) -> Result<Vec<i32>> {
    if let Some(&least) = items.iter().min() {
        check_range("item", least, NONE, i32::MAX)?;
    }
    let mut union: Vec<i32> = items.iter().copied().filter(|&item| item != NONE).collect();
    union.sort_unstable();
    union.dedup();
    Ok(union)
}

fn slot_id(slot: usize) -> i32 {
    i32::try_from(slot).expect("a model has at most 2^24 slots")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_slots_go_first_then_the_oldest_then_the_lowest() {
        let mut lru = SlotLru::new(4).unwrap();
        assert_eq!(lru.resolve(&[30, 10, 20], 3, 3).unwrap().slots, [2, 0, 1]);
        let next = lru.resolve(&[20, 50, 40, -1, 20], 5, 5).unwrap();
        assert_eq!(next.hits, [20]);
        assert_eq!(next.misses, [40, 50]);
        assert_eq!(next.victims, [3, 0]);
        assert_eq!(next.evicted, [-1, 10]);
        assert_eq!(next.slots, [1, 0, 3, -1, 1]);
        lru.check_integrity().unwrap();
    }

    #[test]
    fn too_few_victims_leave_the_state_unchanged() {
        let mut lru = SlotLru::new(3).unwrap();
        lru.resolve(&[0, 1], 3, 3).unwrap();
        let before = (lru.items.clone(), lru.stamps.clone());
        let error = lru.resolve(&[0, 7, 8, 9], 5, 5).unwrap_err();
        assert_eq!(error.to_string(), "3 slots: 3 misses need a victim each, 2 may be evicted");
        assert_eq!((&lru.items, &lru.stamps), (&before.0, &before.1));
        lru.resolve(&[7, 8], 5, 5).unwrap();
    }

    #[test]
    fn a_step_never_evicts_what_it_claimed_itself() {
        let stamps = StepStamps::of_step(4).unwrap();
        let mut lru = SlotLru::new(3).unwrap();
        lru.resolve(&[0, 1], stamps.claim, stamps.claim).unwrap();
        for item in [5, 6, 7] {
            let streamed = lru.resolve(&[item], stamps.stream, stamps.claim).unwrap();
            assert_eq!(streamed.victims, [2]);
        }
        assert_eq!((lru.slot_of(0), lru.slot_of(1)), (0, 1));
    }

    #[test]
    fn a_hit_never_lowers_a_stamp() {
        let mut lru = SlotLru::new(1).unwrap();
        lru.resolve(&[9], 7, 7).unwrap();
        lru.resolve(&[9], 6, 7).unwrap();
        assert_eq!(lru.stamp_of(0), Ok(7));
    }

    #[test]
    fn released_slots_are_free_again() {
        let mut lru = SlotLru::new(2).unwrap();
        lru.resolve(&[3, 4], 1, 1).unwrap();
        lru.release_from(4).unwrap();
        assert_eq!((lru.slot_of(3), lru.slot_of(4)), (0, -1));
        assert_eq!((lru.item_in(1), lru.stamp_of(1)), (Ok(-1), Ok(-1)));
        lru.check_integrity().unwrap();
    }

    #[test]
    fn bad_numbers_are_refused() {
        let mut lru = SlotLru::new(2).unwrap();
        let text = |error: Error| error.to_string();
        let found = lru.resolve(&[-2], 1, 1).map_err(text).unwrap_err();
        assert_eq!(found, "item: found -2, needed -1 to 2147483647");
        assert!(lru.resolve(&[1], -1, 1).is_err());
        assert!(SlotLru::new(0).is_err());
        assert!(StepStamps::of_step(0).is_err());
        assert_eq!(StepStamps::of_step(1), Ok(StepStamps { claim: 3, stream: 2 }));
    }
}
