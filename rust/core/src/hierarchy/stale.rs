//! Copies below that are not the page's any more: an engine may compute a row in more than one way,
//! and a tier keeps the first bytes that it was given under a name.

use super::Mover;
use super::lower::Lower;
use crate::error::{Error, Result};
use crate::prefix::LowerTiers;
use crate::sync::{Condvar, Mutex, lock};
use crate::tier::{Deadline, PageHeader, PageIdentity, Stored};

/// A page's copies in some tiers.
type Copies = (PageIdentity, LowerTiers);

/// Whose turn it is to remove copies, and those that a tier has not let go of.
#[derive(Debug, Default)]
pub(super) struct Tidying {
    state: Mutex<State>,
    is_free: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_busy: bool,
    left: Vec<Copies>,
}

/// One thread's turn; it ends when dropped.
pub(super) struct Turn<'a>(&'a Tidying);

impl Tidying {
    /// Waits for the turn; refused once the deadline has passed.
    pub(super) fn begin(&self, deadline: Deadline) -> Result<Turn<'_>> {
        let mut state = lock(&self.state)?;
        while state.is_busy {
            deadline.check("tidy")?;
            let woken = self.is_free.wait_timeout(state, deadline.left());
            state = woken.map_err(|_| Error::Poisoned)?.0;
        }
        state.is_busy = true;
        Ok(Turn(self))
    }
}

impl Turn<'_> {
    fn take_left(&self) -> Result<Vec<Copies>> {
        Ok(std::mem::take(&mut lock(&self.0.state)?.left))
    }

    /// Leaves copies to whoever has the next turn.
    pub(super) fn leave(&self, left: impl IntoIterator<Item = Copies>) -> Result<()> {
        lock(&self.0.state)?.left.extend(left);
        Ok(())
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Ok(mut state) = lock(&self.0.state) {
            state.is_busy = false;
        }
        self.0.is_free.notify_one();
    }
}

impl Mover {
    /// Removes the copies that the directory does not want any more. Whoever puts pages calls this
    /// first, and waits for those who do it: after it, a copy of them that was put stays.
    pub(super) fn tidy(&self, pages: &[PageIdentity], deadline: Deadline) -> Result<()> {
        let turn = self.tidying.begin(deadline)?;
        let mut unwanted = turn.take_left()?;
        unwanted.extend(self.directory.take_orphans()?);
        let is_left = |copies: &mut Copies| {
            copies.1 = self.remove_copies(copies, deadline);
            // one that is about to be put is found out by then
            !copies.1.is_empty() && !pages.contains(&copies.0)
        };
        unwanted.retain_mut(is_left);
        turn.leave(unwanted)
    }

    /// Removes a page from tiers; those that may have it still.
    fn remove_copies(&self, &(identity, tiers): &Copies, deadline: Deadline) -> LowerTiers {
        let mut left = tiers;
        for lower in self.below.iter().filter(|lower| tiers.has(lower.tier)) {
            if lower.store().remove(&identity, self.call_by(deadline)).is_ok() {
                left = left.without(lower.tier);
            }
        }
        left
    }

    /// Makes sure that what a tier had under a page's name is the page.
    pub(super) fn replace_stale(
        &self,
        lower: &Lower,
        page: &PageHeader,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<Stored> {
        let mut had = vec![0; bytes.len()];
        let by = self.call_by(deadline);
        if lower.store().get(&page.identity, &mut had, by)? && had == bytes {
            return Ok(Stored::Already);
        }
        lower.store().remove(&page.identity, by)?;
        lower.store().put(page, bytes, by)
    }
}
