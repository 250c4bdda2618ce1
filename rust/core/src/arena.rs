//! One device arena as numbers: contiguous ranges of ids, first fit, neighbours coalesce.

use std::collections::BTreeMap;

use crate::error::{Error, Result, check_equal, check_range};

/// `count` ids from `base` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct IdRange {
    /// First id; 0 in an empty range.
    pub base: u32,
    /// Number of ids.
    pub count: u32,
}

impl IdRange {
    const fn end(self) -> u32 {
        self.base + self.count
    }
}

/// Hands out ranges of the ids `0..capacity`; every base and count is a multiple of `unit`.
#[derive(Debug)]
pub struct RangeArena {
    holes: BTreeMap<u32, u32>, // base -> count; never empty, never touching
    name: &'static str,
    unit: u32,
    capacity: u32,
    num_free: u32,
}

impl RangeArena {
    /// All ids free. `capacity` is cut down to whole units; ids stay below 2^31.
    pub fn new(name: &'static str, capacity: u32, unit: u32) -> Result<Self> {
        check_range(name, capacity, 0, i32::MAX.unsigned_abs())?;
        check_range("arena unit", unit, 1, i32::MAX.unsigned_abs())?;
        let capacity = capacity / unit * unit;
        let holes = (capacity > 0).then_some((0, capacity)).into_iter().collect();
        Ok(Self { holes, name, unit, capacity, num_free: capacity })
    }

    /// All ids.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Ids of ranges that are out.
    pub fn num_used(&self) -> u32 {
        self.capacity - self.num_free
    }

    /// Takes the lowest range that holds `count` ids, rounded up to whole units; 0 is always free.
    pub fn claim(&mut self, count: u32) -> Result<IdRange> {
        let range = self.find(count)?;
        if let Some(hole) = self.holes.remove(&range.base) {
            self.insert_hole(range.end(), hole - range.count);
            self.num_free -= range.count;
        }
        Ok(range)
    }

    /// The range that [`claim`](Self::claim) would take now.
    pub fn find(&self, count: u32) -> Result<IdRange> {
        let Some(count) = count.div_ceil(self.unit).checked_mul(self.unit) else {
            return Err(self.full(count));
        };
        if count == 0 {
            return Ok(IdRange::default());
        }
        let hole = self.holes.iter().find(|&(_, &free)| free >= count);
        hole.map(|(&base, _)| IdRange { base, count }).ok_or_else(|| self.full(count))
    }

    /// Gives a range back; a range that is not out as a whole is refused.
    pub fn release(&mut self, range: IdRange) -> Result<()> {
        if range.count == 0 {
            return Ok(());
        }
        self.check_is_out(range)?;
        let mut merged = range;
        if let Some((&base, &count)) = self.holes.range(..range.base).next_back()
            && base + count == range.base
        {
            merged = IdRange { base, count: count + range.count };
        }
        if let Some(count) = self.holes.remove(&range.end()) {
            merged.count += count;
        }
        self.insert_hole(merged.base, merged.count);
        self.num_free += range.count;
        Ok(())
    }

    /// Holes lie inside the arena, are apart from each other, and add up to the free count.
    pub fn check_integrity(&self) -> Result<()> {
        let mut next_base = 0;
        for (&base, &count) in &self.holes {
            check_range("base of a free range", base, next_base, self.capacity)?;
            check_range("length of a free range", count, 1, self.capacity - base)?;
            check_equal("remainder of a free range", base % self.unit + count % self.unit, 0)?;
            next_base = base + count + 1;
        }
        check_equal("free ids", self.num_free, self.holes.values().sum())
    }

    fn check_is_out(&self, range: IdRange) -> Result<()> {
        check_range(self.name, range.count, 1, self.capacity)?;
        check_range(self.name, range.base, 0, self.capacity - range.count)?;
        let before = self.holes.range(..range.end()).next_back();
        match before.map_or(0, |(&base, &count)| base + count) {
            free_end if free_end <= range.base => Ok(()),
            free_end => Err(Error::WrongState {
                what: "released ids that are out",
                found: u64::from(range.count - (free_end - range.base).min(range.count)),
                needed: u64::from(range.count),
            }),
        }
    }

    fn insert_hole(&mut self, base: u32, count: u32) {
        if count > 0 {
            self.holes.insert(base, count);
        }
    }

    fn full(&self, need: u32) -> Error {
        Error::DeviceArenaFull {
            arena: self.name,
            need: u64::from(need),
            free: u64::from(self.num_free),
            longest: u64::from(self.holes.values().copied().max().unwrap_or(0)),
            total: u64::from(self.capacity),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn a_range_that_fits_in_pieces_only_is_refused_with_the_longest_piece() {
        let mut arena = RangeArena::new("slots", 30, 1).unwrap();
        let ranges: Vec<_> = (0..3).map(|_| arena.claim(10).unwrap()).collect();
        arena.release(ranges[0]).unwrap();
        arena.release(ranges[2]).unwrap();
        let error = arena.claim(11).unwrap_err().to_string();
        assert_eq!(
            error,
            "device arena full: need 11 slots in one range, 20 free of 30, longest free range 10"
        );
        arena.release(ranges[1]).unwrap();
        assert_eq!(arena.claim(30).unwrap(), IdRange { base: 0, count: 30 });
    }

    #[test]
    fn units_round_counts_up_and_the_capacity_down() {
        let mut arena = RangeArena::new("pooled keys", 200, 64).unwrap();
        assert_eq!(arena.capacity(), 192);
        assert_eq!(arena.claim(1).unwrap(), IdRange { base: 0, count: 64 });
        assert_eq!(arena.claim(65).unwrap(), IdRange { base: 64, count: 128 });
        assert_eq!(arena.claim(1).unwrap_err().kind(), ErrorKind::DeviceArenaFull);
        assert_eq!(arena.claim(u32::MAX).unwrap_err().kind(), ErrorKind::DeviceArenaFull);
        arena.check_integrity().unwrap();
    }

    #[test]
    fn a_range_is_released_once() {
        let mut arena = RangeArena::new("slots", 8, 1).unwrap();
        let range = arena.claim(4).unwrap();
        arena.release(range).unwrap();
        let error = arena.release(range).unwrap_err();
        assert_eq!(error.to_string(), "released ids that are out: found 0, needed 4");
        let far = IdRange { base: 6, count: 4 };
        assert_eq!(arena.release(far).unwrap_err().to_string(), "slots: found 6, needed 0 to 4");
        arena.check_integrity().unwrap();
    }

    #[test]
    fn an_empty_range_needs_no_room() {
        let mut arena = RangeArena::new("window slots", 0, 1).unwrap();
        let range = arena.claim(0).unwrap();
        arena.release(range).unwrap();
        arena.check_integrity().unwrap();
    }
}
