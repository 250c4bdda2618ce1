//! Sequences that come back from rest, in two halves: the first may wait for lower tiers and changes
//! nothing of the sequence, so it may run beside whatever else is called.

use super::Hierarchy;
use super::sequences::pages_beyond;
use crate::admission::DeviceSlots;
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::prefix::{Held, LowerTiers, PrefixLease};
use crate::sequence::SequenceHandle;
use crate::sharing::NO_TIME_MS;
use crate::tier::Deadline;

/// A resting sequence whose pages are in the host pool, where they stay until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the pages go"]
pub struct Returning {
    sequence: SequenceHandle,
    lease: PrefixLease,
    num_pages: usize, // from the first on: the others are lost
}

impl Hierarchy {
    /// Makes a resting sequence active again, with what the tiers still have of it; its length.
    ///
    /// # Errors
    /// As [`bring_back`](Self::bring_back) and [`finish_resume`](Self::finish_resume).
    pub fn resume(
        &self,
        manager: &Manager,
        sequence: SequenceHandle,
        device: DeviceSlots,
        deadline: Deadline,
    ) -> Result<u32> {
        let returning = self.bring_back(manager, sequence, deadline)?;
        self.finish_resume(manager, &returning, device, deadline)
    }

    /// The first half of [`resume`](Self::resume): loads the pages of a resting sequence.
    ///
    /// # Errors
    /// Full; [`Error::DeadlinePassed`], and the failure of a tier that may have the pages at the
    /// next try. What has arrived stays, like any page that nobody uses.
    pub fn bring_back(
        &self,
        manager: &Manager,
        sequence: SequenceHandle,
        deadline: Deadline,
    ) -> Result<Returning> {
        let lease = manager.lease_resting(sequence)?;
        let num_held = lease.found().len();
        let num_pages = self.load(&lease, 0..num_held, NO_TIME_MS, deadline)?.pages;
        if num_pages < num_held {
            let next = lease.pages(NO_TIME_MS)?[num_pages];
            if next != Held::Lower(LowerTiers::NONE) {
                deadline.check("resume")?;
                let (what, found) = ("pages of the sequence that came back", num_pages as u64);
                return Err(Error::TierShort { what, found, needed: num_held as u64 });
            }
        }
        Ok(Returning { sequence, lease, num_pages })
    }

    /// Moves idle pages down for what `finish_resume` will want beside the sequence's own pages, as
    /// far as that is possible by the deadline.
    pub fn make_room_to_resume(
        &self,
        manager: &Manager,
        returning: &Returning,
        deadline: Deadline,
    ) -> Result<()> {
        let last = 1; // a copy of it, if others have the last page, too
        self.mover.save_idle(wanted(manager, returning)? + last, deadline)
    }

    /// The second half of [`resume`](Self::resume): waits for room only, and not with a deadline
    /// that has passed.
    ///
    /// # Errors
    /// Full; the sequence then rests as before. [`Error::WrongState`] if it does not rest, or rests
    /// anew since it was brought back.
    pub fn finish_resume(
        &self,
        manager: &Manager,
        returning: &Returning,
        device: DeviceSlots,
        deadline: Deadline,
    ) -> Result<u32> {
        let Returning { sequence, lease, num_pages } = returning;
        let resumed = self.with_room(wanted(manager, returning)?, deadline, || {
            manager.resume(*sequence, lease, *num_pages, device)
        })?;
        self.wake();
        Ok(resumed)
    }
}

/// Host pages that the sequence takes beside those that came back.
fn wanted(manager: &Manager, returning: &Returning) -> Result<usize> {
    let admitted_tokens = manager.admitted_tokens(returning.sequence)?;
    Ok(pages_beyond(returning.num_pages, admitted_tokens, 0))
}
