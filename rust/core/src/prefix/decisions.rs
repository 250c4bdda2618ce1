//! What was decided about pages, numbered, so that every rank of a host can do the same.

use std::collections::VecDeque;

use crate::error::{Result, check_range};
use crate::tier::PageIdentity;

/// What becomes of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// A copy of this host page is being made in a lower tier; it stays readable.
    Demote(u32),
    /// This host page is given up; lower tiers have the page.
    Leave(u32),
    /// This host page is given up, and the page with it.
    Forget(u32),
    /// Lower tiers may have the page still, but the directory does not know it any more.
    ForgetLower,
}

/// One decision; every rank that applies all of them in order has the same pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Its number: 1 for the first.
    pub epoch: u64,
    /// The page.
    pub identity: PageIdentity,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// The newest decisions.
#[derive(Debug)]
pub(super) struct DecisionLog {
    kept: VecDeque<Decision>,
    max_kept: usize,
    epoch: u64, // of the newest decision
}

impl DecisionLog {
    pub(super) fn new(max_kept: usize) -> Self {
        Self { kept: VecDeque::with_capacity(max_kept), max_kept, epoch: 0 }
    }

    pub(super) fn note(&mut self, identity: PageIdentity, verdict: Verdict) {
        self.epoch += 1;
        if self.kept.len() == self.max_kept {
            self.kept.pop_front();
        }
        self.kept.push_back(Decision { epoch: self.epoch, identity, verdict });
    }

    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The decisions after `epoch`, oldest first; refused if some of them are kept no longer.
    pub(super) fn since(&self, epoch: u64) -> Result<Vec<Decision>> {
        let oldest = self.epoch - self.kept.len() as u64;
        check_range("epoch of the last decision applied", epoch, oldest, self.epoch)?;
        let num_applied = usize::try_from(epoch - oldest).expect("no more than are kept");
        Ok(self.kept.range(num_applied..).copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_is_too_far_behind_is_told_so() {
        let mut log = DecisionLog::new(3);
        assert_eq!(log.since(0), Ok(vec![]));
        for byte in 1..=5 {
            log.note(PageIdentity::from_bytes([byte; 32]), Verdict::Leave(7));
        }
        let epochs: Vec<u64> = log.since(3).unwrap().iter().map(|made| made.epoch).collect();
        assert_eq!(epochs, [4, 5]);
        assert_eq!(log.since(2).unwrap().len(), 3);
        let error = log.since(1).unwrap_err().to_string();
        assert_eq!(error, "epoch of the last decision applied: found 1, needed 2 to 5");
        assert!(log.since(6).is_err());
    }
}
