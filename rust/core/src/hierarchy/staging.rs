//! Memory for pages on their way: bounded, waited for until a deadline, given back when dropped.

use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::sync::lock_whole;
use crate::tier::Deadline;

/// Pieces of memory kept for the next movement: a fresh one is a page fault every 4 KiB.
const MAX_SPARES: usize = 8;

/// All staging memory of a hierarchy.
#[derive(Debug)]
pub(super) struct Staging {
    state: Mutex<State>,
    has_room: Condvar,
    max_bytes: usize,
}

#[derive(Debug, Default)]
struct State {
    used_bytes: usize,
    spares: Vec<Vec<u8>>,
    #[cfg(test)]
    fails_in: usize, // 0 = never
}

/// A piece of staging memory; what it holds at first is anything.
#[derive(Debug)]
pub(super) struct Staged<'a> {
    staging: &'a Staging,
    pub(super) bytes: Vec<u8>,
}

impl Staging {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { state: Mutex::default(), has_room: Condvar::new(), max_bytes }
    }

    /// Takes `num_bytes` as soon as others have given enough back.
    pub(super) fn take(&self, num_bytes: usize, deadline: Deadline) -> Result<Staged<'_>> {
        let mut state = lock_whole(&self.state);
        while state.used_bytes + num_bytes > self.max_bytes {
            let left = deadline.left();
            if left.is_zero() || num_bytes > self.max_bytes {
                return Err(self.full(num_bytes, state.used_bytes));
            }
            let woken = self.has_room.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        #[cfg(test)]
        state.pass(|used| self.full(num_bytes, used))?;
        let mut bytes = state.spares.pop().unwrap_or_default();
        let more = num_bytes.saturating_sub(bytes.len());
        let full = |_| self.full(num_bytes, state.used_bytes); // the system has no memory left
        bytes.try_reserve_exact(more).map_err(full)?;
        state.used_bytes += num_bytes;
        drop(state);
        bytes.resize(num_bytes, 0);
        Ok(Staged { staging: self, bytes })
    }

    fn full(&self, num_bytes: usize, used_bytes: usize) -> Error {
        let (need, capacity) = (num_bytes as u64, self.max_bytes as u64);
        Error::TierFull { tier: "staging", need, free: capacity - used_bytes as u64, capacity }
    }

    #[cfg(all(test, not(feature = "shuttle")))]
    pub(super) fn fail_in(&self, num_calls: usize) {
        lock_whole(&self.state).fails_in = num_calls;
    }

    #[cfg(test)]
    pub(super) fn used_bytes(&self) -> usize {
        lock_whole(&self.state).used_bytes
    }
}

#[cfg(test)]
impl State {
    fn pass(&mut self, refusal: impl Fn(usize) -> Error) -> Result<()> {
        let is_due = self.fails_in == 1;
        self.fails_in = self.fails_in.saturating_sub(1);
        if is_due { Err(refusal(self.used_bytes)) } else { Ok(()) }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut state = lock_whole(&self.staging.state);
        state.used_bytes -= bytes.len();
        if state.spares.len() < MAX_SPARES {
            state.spares.push(bytes);
        }
        drop(state);
        self.staging.has_room.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn staging_beyond_the_bound_waits_until_its_deadline_and_says_what_is_free() {
        let staging = Staging::new(100);
        let first = staging.take(60, Deadline::after(Duration::ZERO)).unwrap();
        let late = Deadline::after(Duration::from_millis(10));
        let error = staging.take(50, late).unwrap_err();
        assert_eq!(error.to_string(), "staging full: need 50 bytes, 40 free of 100");
        let far = Deadline::after(Duration::from_secs(600));
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| staging.take(50, far).map(|piece| piece.bytes.len()));
            drop(first);
            assert_eq!(waiter.join().unwrap(), Ok(50));
        });
        assert_eq!(staging.used_bytes(), 0);
        let never = staging.take(101, Deadline::after(Duration::from_secs(600)));
        assert!(never.is_err());
    }
}
