//! Sequences over all tiers: admitted when pages that may leave the host pool make room, and opened
//! on what any tier has of their prompt.

use super::Hierarchy;
use crate::admission::DeviceSlots;
use crate::error::{Error, Result};
use crate::manager::Manager;
use crate::page::PAGE_TOKENS;
use crate::page_table::pages_for;
use crate::prefix::{Held, LowerTier};
use crate::sequence::SequenceHandle;
use crate::sharing::{MatchedPrompt, NO_TIME_MS};
use crate::tier::Deadline;

/// How often a call tries again after pages have left the host pool for it; others may be faster.
const MAX_TRIES: usize = 3;
/// Pages that the remote tier is asked for in one call.
const PAGES_PER_QUESTION: usize = 64;

/// How long a prompt may wait for its beginning, and what waiting is worth.
#[derive(Debug, Clone, Copy)]
pub struct Loading {
    /// When the call has to end.
    pub deadline: Deadline,
    /// Tokens that the engine computes in a second; None = loading always pays.
    pub recompute_tokens_per_s: Option<f64>,
}

/// A sequence that was opened on what was held of its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenedPrompt {
    /// The sequence.
    pub sequence: SequenceHandle,
    /// Tokens that it has already.
    pub cached_tokens: u32,
}

impl Hierarchy {
    /// Opens a sequence on the longest beginning of its prompt that any tier has for the tenant and
    /// that is sooner loaded than computed. A tier that fails costs no more than its pages.
    ///
    /// # Errors
    /// As [`Manager::open_prompt`]: full, when no page may leave the host pool for it any more.
    pub fn open_prompt(
        &self,
        manager: &Manager,
        (tenant, tokens): (&str, &[u32]),
        max_new_tokens: u32,
        device: DeviceSlots,
        loading: Loading,
    ) -> Result<OpenedPrompt> {
        let mut matched = manager.match_prompt(tenant, tokens)?;
        self.discover(&mut matched, loading.deadline)?;
        let num_pages = self.bring_up(&matched, loading)?;
        let wanted = pages_beyond(num_pages, matched.num_tokens(), max_new_tokens);
        let sequence = self.with_room(wanted, loading.deadline, || {
            manager.open_prompt(&matched, num_pages, max_new_tokens, device)
        })?;
        self.wake();
        let cached_tokens = manager.length(sequence)?;
        Ok(OpenedPrompt { sequence, cached_tokens })
    }

    /// As [`Manager::open_sequence`], with room that pages make by going down.
    pub fn open_sequence(
        &self,
        manager: &Manager,
        (prompt_tokens, max_new_tokens): (u32, u32),
        device: DeviceSlots,
        deadline: Deadline,
    ) -> Result<SequenceHandle> {
        let wanted = pages_beyond(0, prompt_tokens, max_new_tokens);
        self.with_room(wanted, deadline, || {
            manager.open_sequence(prompt_tokens, max_new_tokens, device)
        })
    }

    /// As [`Manager::fork`], with room that pages make by going down.
    pub fn fork(
        &self,
        manager: &Manager,
        (sequence, length): (SequenceHandle, u32),
        max_new_tokens: u32,
        device: DeviceSlots,
        deadline: Deadline,
    ) -> Result<SequenceHandle> {
        self.with_room(pages_of_fork(length, max_new_tokens), deadline, || {
            manager.fork(sequence, length, max_new_tokens, device)
        })
    }

    /// Moves idle pages down for what [`fork`](Self::fork) will want, as far as that is possible by
    /// the deadline: with one that has passed, the fork itself then waits for nothing.
    pub fn make_room_to_fork(
        &self,
        length: u32,
        max_new_tokens: u32,
        deadline: Deadline,
    ) -> Result<()> {
        self.mover.save_idle(pages_of_fork(length, max_new_tokens), deadline)
    }

    /// Makes a call that wants up to `num_pages` host pages. Idle pages that it would drop go down
    /// before it, for half of the time at most; while it finds too few, held ones do, and it is made
    /// again.
    pub fn with_room<T>(
        &self,
        num_pages: usize,
        deadline: Deadline,
        call: impl Fn() -> Result<T>,
    ) -> Result<T> {
        self.mover.save_idle(num_pages, Deadline::after(deadline.left() / 2))?;
        let mut outcome = call();
        for _ in 1..MAX_TRIES {
            let Err(Error::HostPoolFull { need, .. }) = outcome else { break };
            let need = usize::try_from(need).unwrap_or(usize::MAX);
            if self.make_room(need, deadline).is_err() {
                break; // the first refusal says what was needed and what was free
            }
            outcome = call();
        }
        outcome
    }

    /// Asks a store that others fill, too, for pages beyond those that the directory knows. What it
    /// has is pinned at once: the tail of a long prompt takes no entry from its head.
    fn discover(&self, matched: &mut MatchedPrompt, deadline: Deadline) -> Result<()> {
        let Some(remote) = self.mover.lower(LowerTier::Remote) else { return Ok(()) };
        loop {
            let unknown = &matched.chain()[matched.lease().found().len()..];
            let asked = &unknown[..unknown.len().min(PAGES_PER_QUESTION)];
            let num_asked = asked.len();
            if num_asked == 0 {
                return Ok(());
            }
            let held = remote.store().count_held(asked, self.mover.call_by(deadline)).unwrap_or(0);
            let held = held.min(num_asked); // a store may say anything
            if matched.lengthen(num_asked, held, LowerTier::Remote)? < num_asked {
                return Ok(());
            }
        }
    }

    /// Pages of a match, from its first on, that are in the host pool in the end.
    fn bring_up(&self, matched: &MatchedPrompt, loading: Loading) -> Result<usize> {
        let found = matched.lease().found();
        let resident = num_in_host(found);
        let worth = self.worth_loading_of(&found[resident..], loading)?;
        match self.load(matched.lease(), 0..resident + worth, NO_TIME_MS, loading.deadline) {
            Ok(loaded) => Ok(loaded.pages),
            // without room for more, what is there by now is still worth having
            Err(Error::HostPoolFull { .. } | Error::ShareFull { .. } | Error::TierFull { .. }) => {
                Ok(num_in_host(&matched.lease().pages(NO_TIME_MS)?).min(resident + worth))
            }
            Err(error) => Err(error),
        }
    }

    /// How many of these pages are sooner loaded than computed.
    fn worth_loading_of(&self, pages: &[Held], loading: Loading) -> Result<usize> {
        let Some(rate) = loading.recompute_tokens_per_s else { return Ok(pages.len()) };
        let in_tier = |tier| pages.iter().filter(|page| lies_in(**page, tier)).count();
        for tier in [LowerTier::File, LowerTier::Remote] {
            let count = in_tier(tier);
            if count > 0 && !self.worth_loading(tier, count, rate)? {
                let before = pages.iter().take_while(|page| !lies_in(**page, tier)).count();
                return self.worth_loading_of(&pages[..before], loading);
            }
        }
        Ok(pages.len())
    }
}

/// Host pages that so many tokens take beside those that are there.
pub(super) fn pages_beyond(num_there: usize, first_tokens: u32, max_new_tokens: u32) -> usize {
    pages_for(first_tokens.saturating_add(max_new_tokens)).saturating_sub(num_there)
}

fn pages_of_fork(length: u32, max_new_tokens: u32) -> usize {
    pages_beyond((length / PAGE_TOKENS) as usize, length, max_new_tokens)
}

/// Pages from the first on that are in the host pool.
fn num_in_host(pages: &[Held]) -> usize {
    pages.iter().take_while(|page| matches!(page, Held::Host(_))).count()
}

/// Whether this is the tier that the page would be loaded from.
fn lies_in(page: Held, tier: LowerTier) -> bool {
    let Held::Lower(tiers) = page else { return false };
    tiers.has(tier) && (tier == LowerTier::File || !tiers.has(LowerTier::File))
}
