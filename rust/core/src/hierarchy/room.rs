//! Room in the host pool, and in a tier below that is full.

use std::sync::Arc;

use super::lower::{Count, Lower};
use super::{Hierarchy, Mover};
use crate::error::{Error, Result, check_range};
use crate::prefix::{HostRoom, LowerTiers};
use crate::tier::{Deadline, PageHeader, PageIdentity};

/// Batches that every thread gets of one round.
const BATCHES_PER_THREAD: usize = 4;

/// What balancing came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balanced {
    /// Host pages that it has freed.
    pub freed: usize,
    /// Host pages that are free now.
    pub available: usize,
}

impl Hierarchy {
    /// Moves idle pages down until as many host pages are free as the low watermark says, no page
    /// may move any more, or the deadline passes.
    pub fn balance(&self, deadline: Deadline) -> Result<Balanced> {
        self.mover.balance(deadline)
    }

    /// Waits until `num_pages` host pages are free, and moves idle pages down for it; how many are
    /// free then. They are not promised to the caller: others may take them first.
    ///
    /// # Errors
    /// [`Error::HostPoolFull`] once no page can be moved: idle pages that no tier has taken may
    /// still be given up for good. [`Error::DeadlinePassed`].
    pub fn make_room(&self, num_pages: usize, deadline: Deadline) -> Result<usize> {
        let total = self.mover.directory.host_room()?.total;
        check_range("pages to make room for", num_pages, 0, total)?;
        let (room, _) = self.mover.raise_room(num_pages, deadline)?;
        if room.available >= num_pages {
            return Ok(room.available);
        }
        deadline.check("make_room")?;
        let (need, free) = (num_pages as u64, room.available as u64);
        Err(Error::HostPoolFull { need, free, total: room.total as u64 })
    }
}

impl Mover {
    pub(super) fn balance(self: &Arc<Self>, deadline: Deadline) -> Result<Balanced> {
        let (room, freed) = self.raise_room(self.limits.low_watermark_pages, deadline)?;
        Ok(Balanced { freed, available: room.available })
    }

    /// Moves idle pages down that a call for `num_pages` would drop; what no tier has taken by the
    /// deadline it may still drop.
    pub(super) fn save_idle(self: &Arc<Self>, num_pages: usize, deadline: Deadline) -> Result<()> {
        let has_room_for_all = num_pages <= self.directory.host_room()?.total;
        if has_room_for_all && !self.below.is_empty() {
            self.raise_room(num_pages, deadline)?;
        }
        Ok(())
    }

    /// Moves pages down until `target` host pages are free, nothing may move, or time is up.
    pub(super) fn raise_room(
        self: &Arc<Self>,
        target: usize,
        deadline: Deadline,
    ) -> Result<(HostRoom, usize)> {
        let mut total_freed = 0;
        loop {
            self.check_open()?;
            let room = self.directory.host_room()?;
            if room.available >= target.min(room.total) || deadline.left().is_zero() {
                return Ok((room, total_freed));
            }
            let since = self.motion.ticket()?;
            let pressure =
                self.directory.demote((target - room.available).min(self.round_pages()))?;
            let freed = pressure.freed + self.spill(pressure.demotions, deadline);
            total_freed += freed;
            if freed == 0 && !self.motion.wait_for_room(since, deadline)? {
                return Ok((self.directory.host_room()?, total_freed));
            }
        }
    }

    /// Pages that are begun to move at a time.
    pub(super) fn round_pages(&self) -> usize {
        BATCHES_PER_THREAD * self.limits.batch_pages * (self.limits.num_threads + 1)
    }

    /// Makes room in a full tier for about `num_pages`, more at each attempt: the pages that it has
    /// not been asked for longest go to the next tier, or are lost. False if none may go.
    ///
    /// It takes its turn like one who tidies: a page that goes may be put again only after it has.
    pub(super) fn make_room_below(
        self: &Arc<Self>,
        number: usize,
        num_pages: usize,
        attempt: u32,
        deadline: Deadline,
    ) -> Result<bool> {
        let turn = self.tidying.begin(deadline)?;
        let count = num_pages << (attempt - 1);
        let leaving = self.directory.leave_below(self.below[number].tier, count)?;
        self.below[number].count(Count::Left, leaving.len());
        let names: Vec<PageIdentity> = leaving.iter().map(|page| page.identity).collect();
        let mover = Arc::clone(self);
        let leave = move |page: PageHeader| mover.leave(number, &page, deadline).is_ok();
        let has_left = self.crew.share(leaving, leave);
        let stays = |(name, has_left): (PageIdentity, &Option<bool>)| {
            let here = LowerTiers::NONE.with(self.below[number].tier);
            (*has_left != Some(true)).then_some((name, here))
        };
        turn.leave(names.into_iter().zip(&has_left).filter_map(stays))?;
        Ok(has_left.contains(&Some(true)))
    }

    /// Takes a page that the directory does not look for in a tier any more out of it.
    fn leave(&self, number: usize, page: &PageHeader, deadline: Deadline) -> Result<()> {
        let lower = &self.below[number];
        if let Some(next) = self.below.get(number + 1) {
            let _ = self.pass_on(lower, next, page, deadline); // lost if the next does not take it
        }
        lower.store().remove(&page.identity, self.call_by(deadline)).map(drop)
    }

    fn pass_on(
        &self,
        lower: &Lower,
        next: &Lower,
        page: &PageHeader,
        deadline: Deadline,
    ) -> Result<()> {
        let mut staged = vec![0; self.layout.page_bytes()];
        if !lower.store().get(&page.identity, &mut staged, self.call_by(deadline))? {
            return Ok(());
        }
        let outcomes = next.put_many(&[(*page, &staged)], self.call_by(deadline));
        outcomes.into_iter().next().transpose()?;
        next.count(Count::Demoted, 1);
        next.count(Count::BytesDown, staged.len());
        self.found_below(page, next)
    }
}
