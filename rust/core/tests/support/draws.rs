//! Numbers by a seed.
#![allow(dead_code, reason = "each test uses a part of it")]

/// Xorshift, so that what a test draws is the same everywhere. The seed is not 0.
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).expect("below a usize")
    }

    /// One of `these`, of which there is one at least.
    pub(crate) fn of<'a, T>(&mut self, these: &'a [T]) -> &'a T {
        &these[self.below(these.len())]
    }
}
