//! Who may hold leases: owners say that they live, and those that stop are given up.
//!
//! Times are milliseconds of a monotonic clock that the caller reads.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::error::{Error, Result, check_range};
use crate::sync::{Mutex, lock};

const MASK: u64 = (1 << 63) - 1;

/// Names one owner, 1 to 2^63 - 1; no other ever gets the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OwnerId(u64);

impl OwnerId {
    /// An owner from its number.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Its number.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// When an owner counts as dead, and where the numbers begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerLimits {
    /// Silence after which an owner is dead; a scan runs every quarter of it.
    pub timeout_ms: u64,
    /// Makes the numbers of one directory differ from another's.
    pub seed: u64,
}

impl OwnerLimits {
    /// Dead after two minutes, with numbers that nobody can guess.
    pub fn random() -> Self {
        Self::with_seed(RandomState::new().hash_one(0))
    }

    /// Dead after two minutes.
    pub const fn with_seed(seed: u64) -> Self {
        Self { timeout_ms: 120_000, seed }
    }
}

/// What a scan has given up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Owners that were silent for too long.
    pub owners: usize,
    /// Leases that they had.
    pub leases: usize,
}

/// The living owners. Its lock is held for map operations only.
#[derive(Debug)]
pub(super) struct Owners {
    living: Mutex<Living>,
    limits: OwnerLimits,
}

#[derive(Debug, Default)]
struct Living {
    last_seen_ms: HashMap<OwnerId, u64>,
    num_registered: u64,
    next_scan_ms: u64,
}

impl Owners {
    pub(super) fn new(limits: OwnerLimits) -> Result<Self> {
        check_range("timeout_ms", limits.timeout_ms, 4, u64::MAX)?;
        Ok(Self { living: Mutex::default(), limits })
    }

    /// A number that was never given out; its owner is not registered yet.
    pub(super) fn issue(&self) -> Result<OwnerId> {
        let mut living = lock(&self.living)?;
        loop {
            check_range("owners registered", living.num_registered, 0, MASK)?;
            living.num_registered += 1;
            let id = permute(living.num_registered - 1, self.limits.seed);
            if id != 0 {
                return Ok(OwnerId(id));
            }
        }
    }

    pub(super) fn register(&self, owner: OwnerId, now_ms: u64) -> Result<()> {
        lock(&self.living)?.last_seen_ms.insert(owner, now_ms);
        Ok(())
    }

    pub(super) fn heartbeat(&self, owner: OwnerId, now_ms: u64) -> Result<()> {
        let mut living = lock(&self.living)?;
        let num_live = living.last_seen_ms.len();
        let seen = living.last_seen_ms.get_mut(&owner).ok_or_else(|| unknown(owner, num_live))?;
        *seen = now_ms.max(*seen);
        Ok(())
    }

    pub(super) fn remove(&self, owner: OwnerId) -> Result<()> {
        let mut living = lock(&self.living)?;
        let num_live = living.last_seen_ms.len();
        living.last_seen_ms.remove(&owner).map(drop).ok_or_else(|| unknown(owner, num_live))
    }

    /// Gives up every owner that has been silent for longer than the timeout; none before the next
    /// scan is due.
    pub(super) fn take_dead(&self, now_ms: u64) -> Result<Vec<OwnerId>> {
        let mut living = lock(&self.living)?;
        if now_ms < living.next_scan_ms {
            return Ok(Vec::new());
        }
        living.next_scan_ms = now_ms.saturating_add(self.limits.timeout_ms / 4);
        let is_dead = |seen: u64| now_ms.saturating_sub(seen) > self.limits.timeout_ms;
        let dead = living.last_seen_ms.extract_if(|_, seen| is_dead(*seen));
        Ok(dead.map(|(owner, _)| owner).collect())
    }

    pub(super) fn num_live(&self) -> Result<usize> {
        Ok(lock(&self.living)?.last_seen_ms.len())
    }
}

/// No live owner has this number.
pub(super) fn unknown(owner: OwnerId, num_live: usize) -> Error {
    Error::UnknownOwner { owner: owner.0, num_live }
}

/// A permutation of the numbers below 2^63: odd factors and shifts can all be undone.
const fn permute(counter: u64, seed: u64) -> u64 {
    let mut word = counter.wrapping_add(seed) & MASK;
    word = word.wrapping_mul(0x9E37_79B9_7F4A_7C15) & MASK;
    word ^= word >> 32;
    word = word.wrapping_mul(0xBF58_476D_1CE4_E5B9) & MASK;
    word ^ (word >> 29)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn numbers_do_not_repeat() {
        let owners = Owners::new(OwnerLimits::with_seed(7)).unwrap();
        let ids: HashSet<OwnerId> = (0..100_000).map(|_| owners.issue().unwrap()).collect();
        assert_eq!(ids.len(), 100_000);
        assert!(ids.iter().all(|id| (1..=MASK).contains(&id.bits())));
    }

    #[test]
    fn the_number_that_would_be_0_is_left_out() {
        let owners = Owners::new(OwnerLimits::with_seed(0)).unwrap();
        assert_eq!(permute(0, 0), 0);
        assert_eq!(owners.issue(), Ok(OwnerId(permute(1, 0))));
    }

    #[test]
    fn silence_of_the_timeout_is_life_and_longer_is_death() {
        let owners = Owners::new(OwnerLimits { timeout_ms: 100, seed: 1 }).unwrap();
        let owner = owners.issue().unwrap();
        owners.register(owner, 1000).unwrap();
        assert_eq!(owners.take_dead(1100), Ok(vec![]));
        assert_eq!(owners.take_dead(1124), Ok(vec![])); // no scan is due
        assert_eq!(owners.take_dead(1125), Ok(vec![owner]));
        assert!(owners.heartbeat(owner, 1126).is_err());
    }
}
