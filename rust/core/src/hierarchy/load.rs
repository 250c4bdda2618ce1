//! Promotions: the pages of a lease that lie below are copied to the host pool, in order.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::lower::{Count, Lower};
use super::{Hierarchy, Mover};
use crate::error::{Error, Result, check_range};
use crate::prefix::{Held, PrefixLease, Promotion};
use crate::tier::Deadline;

/// Pages of one window for each thread; a page that is missing costs no more than its window.
const PAGES_PER_THREAD: usize = 8;

/// What a load came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Pages from the start of the range on that are all in the host pool now.
    pub pages: usize,
    /// Pages copied to the host pool.
    pub promoted: usize,
    /// Copies that the directory knew of, and that were not there or not sound.
    pub missed: usize,
    /// Calls that failed or came late; the page may be there at the next try.
    pub failed: usize,
}

/// A window of a load, as its threads share it.
struct Window {
    deadline: Deadline,
    first_failed: AtomicUsize, // pages after it do not make the run longer
}

/// What came of one page.
#[derive(Debug, Default)]
struct Fetched {
    is_whole: bool,
    missed: usize,
    failed: usize,
    fault: Option<Error>, // of the host's side, not of a tier's
}

impl Hierarchy {
    /// Brings the pages of `range` up that only lower tiers have, until the range is whole in the
    /// host pool, a page is nowhere to be had, or the deadline passes.
    ///
    /// A page that a tier turns out not to have is noted as lost there. What has arrived stays, also
    /// when the call fails; the lease pins it, and nothing else.
    ///
    /// # Errors
    /// [`Error::HostPoolFull`], [`Error::TierFull`] for a tenant's share or for staging,
    /// [`Error::StaleHandle`] once the lease has ended.
    pub fn load(
        &self,
        lease: &PrefixLease,
        range: Range<usize>,
        now_ms: u64,
        deadline: Deadline,
    ) -> Result<Loaded> {
        check_range("end of the pages to load", range.end, range.start, lease.found().len())?;
        self.mover.load(lease, range, now_ms, deadline)
    }
}

impl Mover {
    fn load(
        self: &Arc<Self>,
        lease: &PrefixLease,
        range: Range<usize>,
        now_ms: u64,
        deadline: Deadline,
    ) -> Result<Loaded> {
        let window_pages = PAGES_PER_THREAD * (self.limits.num_threads + 1);
        let (mut loaded, mut is_broken) = (Loaded::default(), false);
        loop {
            self.check_open()?;
            let since = self.motion.ticket()?;
            let held = &lease.pages(now_ms)?[range.clone()];
            loaded.pages = held.iter().take_while(|page| matches!(page, Held::Host(_))).count();
            if is_broken || deadline.left().is_zero() {
                return Ok(loaded);
            }
            let rest = &held[loaded.pages..];
            match rest.first() {
                None => return Ok(loaded),
                Some(Held::Lower(tiers)) if tiers.is_empty() => return Ok(loaded),
                Some(Held::Arriving(_)) => {
                    self.motion.wait_for_arrival(since, deadline)?;
                }
                Some(_) => {
                    let window = &rest[..rest.len().min(window_pages)];
                    let is_below = |page: &&Held| matches!(page, Held::Lower(_));
                    let num_below = window.iter().filter(is_below).count();
                    // pages that would be evicted get their chance to go down first
                    self.raise_room(num_below, Deadline::after(deadline.left() / 2))?;
                    let first = range.start + loaded.pages;
                    let begun = lease.promote(first..first + window.len(), now_ms)?;
                    is_broken = !self.load_window(begun, deadline, &mut loaded)?;
                }
            }
        }
    }

    /// Copies pages up, several at a time; false if one has not come.
    fn load_window(
        self: &Arc<Self>,
        begun: Vec<Promotion>,
        deadline: Deadline,
        loaded: &mut Loaded,
    ) -> Result<bool> {
        let begun: Vec<(usize, Promotion)> = begun.into_iter().enumerate().collect();
        let window = Window { deadline, first_failed: AtomicUsize::new(usize::MAX) };
        let mover = Arc::clone(self);
        let fetch = move |(number, promotion)| mover.fetch(number, promotion, &window);
        let mut is_whole = true;
        for page in self.crew.share(begun, fetch) {
            let page = page.ok_or(Error::Poisoned)?;
            page.fault.map_or(Ok(()), Err)?;
            loaded.promoted += usize::from(page.is_whole);
            loaded.missed += page.missed;
            loaded.failed += page.failed;
            is_whole &= page.is_whole;
        }
        Ok(is_whole)
    }

    /// Copies one page up from the first tier that has it, and tells those who wait for it.
    fn fetch(&self, number: usize, promotion: Promotion, window: &Window) -> Fetched {
        let mut fetched = Fetched::default();
        if number < window.first_failed.load(Ordering::Relaxed) {
            let copied = self.copy_up(promotion, window.deadline, &mut fetched);
            fetched.fault = copied.err();
        } else {
            drop(promotion);
        }
        if !fetched.is_whole {
            window.first_failed.fetch_min(number, Ordering::Relaxed);
        }
        let _ = self.motion.arrived(); // fails after a panic under its lock only
        fetched
    }

    fn copy_up(
        &self,
        promotion: Promotion,
        deadline: Deadline,
        fetched: &mut Fetched,
    ) -> Result<()> {
        self.check_open()?;
        let mut staged = self.staging.take(self.layout.page_bytes(), deadline)?;
        let Some(lower) = self.find(&promotion, &mut staged.bytes, deadline, fetched)? else {
            return Ok(());
        };
        self.region.lend_pages(&self.layout)?.write(promotion.page(), &staged.bytes)?;
        promotion.enqueued().completed().map_err(|refused| refused.error)?;
        lower.count(Count::Promoted, 1);
        lower.count(Count::BytesUp, staged.bytes.len());
        fetched.is_whole = true;
        Ok(())
    }

    /// The first tier that gave out the page's bytes; the others have lost it, or have failed.
    fn find(
        &self,
        promotion: &Promotion,
        into: &mut [u8],
        deadline: Deadline,
        fetched: &mut Fetched,
    ) -> Result<Option<&Lower>> {
        let identity = promotion.header().identity;
        for lower in &self.below {
            match lower.store().get(&identity, into, self.call_by(deadline)) {
                Ok(true) => return Ok(Some(lower)),
                Ok(false) if self.directory.lost_below(&identity, lower.tier)? => {
                    fetched.missed += 1;
                    lower.count(Count::Missed, 1);
                    // a tier that will not give the page out must not keep its room either
                    let _ = lower.store().remove(&identity, self.call_by(deadline));
                }
                Ok(false) => {} // as the directory knew
                Err(_) => {
                    fetched.failed += 1;
                    lower.count(Count::Failed, 1);
                }
            }
        }
        Ok(None)
    }
}
