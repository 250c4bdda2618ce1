//! Demotions: pages of the host pool are copied to the first tier below that takes them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Mover;
use super::lower::{Count, Lower, is_full};
use crate::error::Result;
use crate::prefix::{Demotion, Held};
use crate::tier::{Deadline, PageHeader, Stored};

/// A page in motion and its bytes.
type Staged<'a> = (Demotion, &'a [u8]);

impl Mover {
    /// Copies the pages to lower tiers, several batches at a time; how many host pages are free by
    /// it. A page that no tier takes stays in the host pool.
    pub(super) fn spill(self: &Arc<Self>, demotions: Vec<Demotion>, deadline: Deadline) -> usize {
        let num_pages = demotions.len();
        let mut rest = demotions.into_iter();
        let batch = |_| rest.by_ref().take(self.limits.batch_pages).collect();
        let batches: Vec<Vec<Demotion>> =
            (0..num_pages.div_ceil(self.limits.batch_pages)).map(batch).collect();
        let mover = Arc::clone(self);
        let freed = self.crew.share(batches, move |batch| mover.spill_batch(batch, deadline));
        freed.into_iter().flatten().sum()
    }

    /// As [`spill`](Self::spill), of one batch, and tells those who wait for room.
    fn spill_batch(self: &Arc<Self>, batch: Vec<Demotion>, deadline: Deadline) -> usize {
        let num_pages = batch.len();
        let is_known = self.motion.leaving(num_pages).is_ok();
        let freed = self.copy_down(batch, deadline).unwrap_or(0);
        if is_known {
            let _ = self.motion.left(num_pages, freed); // fails after a panic under its lock only
        }
        freed
    }

    fn copy_down(self: &Arc<Self>, batch: Vec<Demotion>, deadline: Deadline) -> Result<usize> {
        self.check_open()?;
        let names: Vec<_> = batch.iter().map(|demotion| demotion.header().identity).collect();
        self.tidy(&names, deadline)?;
        let page_bytes = self.layout.page_bytes();
        let mut staged = self.staging.take(batch.len() * page_bytes, deadline)?;
        let pages = self.region.lend_pages(&self.layout)?;
        for (demotion, bytes) in batch.iter().zip(staged.bytes.chunks_exact_mut(page_bytes)) {
            pages.read(demotion.page(), bytes)?;
        }
        drop(pages);
        let mut waiting: Vec<Staged<'_>> =
            batch.into_iter().zip(staged.bytes.chunks_exact(page_bytes)).collect();
        let mut freed = 0;
        for number in 0..self.below.len() {
            waiting = self.put_down(number, waiting, &mut freed, deadline);
        }
        self.num_kept.fetch_add(waiting.len() as u64, Ordering::Relaxed);
        Ok(freed)
    }

    /// Puts pages to one tier, which makes room if it is full; gives back those it has not taken.
    fn put_down<'a>(
        self: &Arc<Self>,
        number: usize,
        waiting: Vec<Staged<'a>>,
        freed: &mut usize,
        deadline: Deadline,
    ) -> Vec<Staged<'a>> {
        let lower = &self.below[number];
        let Put { mut refused, failed, num_freed } = self.put_once(lower, waiting, deadline);
        *freed += num_freed;
        let mut rest = failed;
        for attempt in 1..=MAX_ROOM_ATTEMPTS {
            if refused.is_empty() {
                break;
            }
            let room = self.make_room_below(number, refused.len(), attempt, deadline);
            if !matches!(room, Ok(true)) {
                break;
            }
            let again = self.put_once(lower, refused, deadline);
            *freed += again.num_freed;
            rest.extend(again.failed);
            refused = again.refused;
        }
        lower.count(Count::Refused, refused.len());
        rest.extend(refused);
        rest
    }

    fn put_once<'a>(&self, lower: &Lower, pages: Vec<Staged<'a>>, deadline: Deadline) -> Put<'a> {
        let named: Vec<(PageHeader, &[u8])> =
            pages.iter().map(|(demotion, bytes)| (*demotion.header(), *bytes)).collect();
        if named.is_empty() {
            return Put::default();
        }
        let outcomes = lower.put_many(&named, self.call_by(deadline));
        let mut put = Put::default();
        for (page, outcome) in pages.into_iter().zip(outcomes) {
            let (header, bytes) = (*page.0.header(), page.1);
            let is_old = matches!(outcome, Ok(Stored::Already));
            let replace = || self.replace_stale(lower, &header, bytes, deadline);
            match if is_old { replace() } else { outcome } {
                Ok(stored) => put.num_freed += usize::from(complete(lower, page, stored)),
                Err(error) if is_full(&error) => put.refused.push(page),
                Err(_) => put.failed.push(page),
            }
        }
        lower.count(Count::Failed, put.failed.len());
        put
    }
}

/// How often room is made for one batch; each time for twice as many pages.
const MAX_ROOM_ATTEMPTS: u32 = 4;

/// What came of putting a batch.
#[derive(Default)]
struct Put<'a> {
    refused: Vec<Staged<'a>>, // the tier was full
    failed: Vec<Staged<'a>>,
    num_freed: usize,
}

/// The tier has the page; whether its host page is free now.
fn complete(lower: &Lower, (demotion, bytes): Staged<'_>, stored: Stored) -> bool {
    lower.count(Count::Demoted, 1);
    if stored == Stored::New {
        lower.count(Count::BytesDown, bytes.len());
    }
    matches!(demotion.enqueued().completed(lower.tier), Ok(Held::Lower(_)))
}
