//! The ends of a hierarchy's life: what tiers have from before, and what they must have at last.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::lower::Lower;
use super::{Condition, Hierarchy, Mover};
use crate::error::Result;
use crate::page::PAGE_TOKENS;
use crate::tier::{Deadline, PageHeader, PageIdentity};

/// Rounds without a page moved after which draining gives up.
const MAX_IDLE_ROUNDS: u32 = 3;

/// What was found in the tiers after a restart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Pages that sequences may share again.
    pub pages: usize,
    /// Pages that nobody can share, which were removed: they are not full.
    pub removed: usize,
}

/// What draining came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drained {
    /// Host pages that are free by it: lower tiers have them.
    pub moved: usize,
    /// Pages of the directory that are still in the host pool: pinned, in use, or refused below.
    pub left: u64,
}

impl Hierarchy {
    /// Tells the directory of every full page that the tiers have from before a restart, the oldest
    /// first, but no page before the page that it follows.
    pub fn recover(&self, deadline: Deadline) -> Result<Recovered> {
        self.mover.check_open()?;
        let mut recovered = Recovered::default();
        for lower in &self.mover.below {
            let pages = lower.store().pages();
            let (full, rest): (Vec<_>, Vec<_>) =
                pages.into_iter().partition(|page| page.num_tokens == PAGE_TOKENS);
            for page in rest {
                let by = self.mover.call_by(deadline);
                recovered.removed += usize::from(lower.store().remove(&page.identity, by)?);
            }
            for page in parents_first(&full) {
                self.mover.found_below(&page, lower)?;
                recovered.pages += 1;
            }
        }
        Ok(recovered)
    }

    /// Returns once every page that went down before the call is as durable as its tier makes it.
    pub fn flush(&self, deadline: Deadline) -> Result<()> {
        self.mover.check_open()?;
        let flush = |lower: &Lower| lower.store().flush(deadline);
        let outcomes: Vec<Result<()>> = self.mover.below.iter().map(flush).collect();
        outcomes.into_iter().collect()
    }

    /// Moves every page down that may move, removes the copies that nobody wants any more, then
    /// flushes: after it the process may end, and a restart finds what was `moved`. Moving ends in
    /// time for the flush. No tier is measured meanwhile.
    pub fn drain(&self, deadline: Deadline) -> Result<Drained> {
        let no_probes = self.mover.probes.pause()?;
        let moved = self.mover.move_all(Deadline::after(deadline.left() / 4 * 3))?;
        self.mover.tidy(&[], deadline)?;
        no_probes.wait(deadline)?;
        self.mover.remove_all_probes(deadline)?;
        self.flush(deadline)?;
        let stats = self.mover.directory.stats()?;
        Ok(Drained { moved, left: stats.resident + stats.demoting })
    }
}

impl Mover {
    /// A tier has a page of whichever tenant comes to match it.
    pub(super) fn found_below(&self, page: &PageHeader, lower: &Lower) -> Result<()> {
        self.directory.found_below(page, lower.tier, None)
    }

    fn move_all(self: &Arc<Self>, deadline: Deadline) -> Result<usize> {
        let (mut moved, mut idle_rounds) = (0, 0);
        while idle_rounds < MAX_IDLE_ROUNDS && !deadline.left().is_zero() {
            self.check_open()?;
            let pressure = self.directory.demote(self.round_pages())?;
            if pressure.freed == 0 && pressure.demotions.is_empty() {
                break;
            }
            let freed = pressure.freed + self.spill(pressure.demotions, deadline);
            moved += freed;
            idle_rounds = if freed > 0 { 0 } else { idle_rounds + 1 };
            if freed == 0 {
                std::thread::sleep(self.pause().min(deadline.left()));
            }
        }
        Ok(moved)
    }

    /// Until a tier that is spared will be tried again.
    fn pause(&self) -> Duration {
        let is_degraded =
            |lower: &Lower| lower.state().is_ok_and(|state| state.condition == Condition::Degraded);
        let is_any = self.below.iter().any(is_degraded);
        if is_any { self.limits.breaker.probe_every } else { Duration::ZERO }
    }
}

/// The pages in their order, but each after the page that it follows, if that is among them.
fn parents_first(pages: &[PageHeader]) -> Vec<PageHeader> {
    let mut waiting: HashMap<PageIdentity, PageHeader> =
        pages.iter().map(|page| (page.identity, *page)).collect();
    let mut ordered = Vec::with_capacity(pages.len());
    let mut line = Vec::new(); // a page and those before it, the youngest first
    for page in pages {
        let mut next = waiting.remove(&page.identity);
        while let Some(page) = next {
            next = waiting.remove(&page.parent);
            line.push(page);
        }
        ordered.extend(line.drain(..).rev());
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u8, parent: u8) -> PageHeader {
        let name = |number| PageIdentity::from_bytes([number; 32]);
        PageHeader { identity: name(number), parent: name(parent), num_tokens: PAGE_TOKENS }
    }

    #[test]
    fn every_page_comes_once_and_after_its_parent() {
        let pages = [page(3, 2), page(9, 8), page(1, 0), page(2, 1), page(4, 2), page(7, 7)];
        let ordered = parents_first(&pages);
        let order: Vec<u8> = ordered.iter().map(|page| page.identity.as_bytes()[0]).collect();
        assert_eq!(order, [1, 2, 3, 9, 4, 7]);
    }
}
