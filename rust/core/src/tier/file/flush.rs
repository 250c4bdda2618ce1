//! Making pages durable: calls that wait together share one round of syncs.
//!
//! A sync that fails leaves it open which bytes reached the disk, and a later one that succeeds
//! says nothing about them. So the pages of such a segment are written again, elsewhere; where a
//! full tier has no room for that, at their places.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::tier::Deadline;

use super::collect::usize_of;
use super::error::{TIER, io_error};
use super::held::Held;
use super::io::{IoPool, lock};
use super::segment::Segment;
use super::store::{Reading, Store};
use super::synced::note_synced;

const CALL: &str = "flush";
/// Failed rounds whose error is kept for callers that have not woken yet.
const MAX_FAILED: usize = 64;

/// The rounds of syncs that were asked for, are going on, or have ended.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: u64,
    begun: u64,
    ended: u64,
    is_running: bool,
    failed: VecDeque<(u64, Error)>,
}

impl State {
    fn outcome(&self, round: u64) -> Result<()> {
        let failed = self.failed.iter().find(|(failed, _)| *failed == round);
        failed.map_or(Ok(()), |(_, error)| Err(error.clone()))
    }

    /// Begins the next round, if somebody waits for one.
    fn begin(&mut self) -> bool {
        self.is_running = self.wanted > self.ended;
        if self.is_running {
            self.begun = self.ended + 1;
        }
        self.is_running
    }

    fn end(&mut self, outcome: Result<()>) {
        self.ended = self.begun;
        if let Err(error) = outcome {
            if self.failed.len() == MAX_FAILED {
                self.failed.pop_front(); // never the newest: its callers would take it for a success
            }
            self.failed.push_back((self.ended, error));
        }
    }
}

impl Rounds {
    /// Waits for a round that begins after this call did.
    pub(super) fn join(&self, store: &Arc<Store>, pool: &IoPool, deadline: Deadline) -> Result<()> {
        deadline.check(CALL)?;
        let mut state = lock(&self.state);
        let round = state.begun + 1;
        state.wanted = state.wanted.max(round);
        loop {
            if state.ended >= round {
                return state.outcome(round);
            }
            if !state.is_running {
                state.is_running = true;
                drop(state);
                self.start(store, pool, deadline)?;
                state = lock(&self.state);
                continue;
            }
            let left = deadline.left();
            if left.is_zero() {
                return Err(Error::DeadlinePassed { call: CALL });
            }
            let woken = self.ended.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn start(&self, store: &Arc<Store>, pool: &IoPool, deadline: Deadline) -> Result<()> {
        let theirs = Arc::clone(store);
        let submitted = pool.submit(CALL, deadline, Box::new(move || theirs.run_rounds()));
        if submitted.is_err() {
            lock(&self.state).is_running = false;
            self.ended.notify_all(); // another caller may have time left
        }
        submitted
    }
}

impl Store {
    fn run_rounds(&self) {
        while lock(&self.rounds.state).begin() {
            let outcome = self.make_durable();
            lock(&self.rounds.state).end(outcome);
            self.rounds.ended.notify_all();
        }
    }

    fn make_durable(&self) -> Result<()> {
        self.rescue_unsynced()?;
        self.close_segments();
        if self.sync_dirty()? {
            self.list_full();
        }
        self.check_synced()
    }

    /// A collection may have met a failed sync meanwhile.
    fn check_synced(&self) -> Result<()> {
        let index = lock(&self.index);
        let mut held = index.segments.values();
        let Some(held) = held.find(|held| held.is_unsynced && held.live_bytes > 0) else {
            return Ok(());
        };
        let text = format!("segment {:08x} could not be synced", held.segment.id);
        Err(Error::TierIo { tier: TIER, call: CALL, text })
    }

    /// Tells the manifest which footers are durable; without that they are only less trusted.
    fn list_full(&self) {
        let files = lock(&self.files);
        let listed = self.write_manifest(None);
        drop(files);
        if listed.is_err() {
            lock(&self.index).counts.failures += 1;
        }
    }

    /// Syncs every segment that was written to; true if a footer became durable.
    pub(super) fn sync_dirty(&self) -> Result<bool> {
        let _syncing = lock(&self.syncing); // or a sync that is going on would be missed
        let index = lock(&self.index);
        let is_due = |held: &&Held| held.segment.is_dirty() && !held.is_unsynced;
        let due: Vec<_> = index.segments.values().filter(is_due).collect();
        let due: Vec<_> = due.into_iter().map(|held| Arc::clone(&held.segment)).collect();
        drop(index);
        let outcomes: Vec<_> = due.iter().map(|segment| self.sync(segment)).collect();
        outcomes.into_iter().try_fold(false, |any, outcome| Ok(any | outcome?))
    }

    fn sync(&self, segment: &Segment) -> Result<bool> {
        let has_footer = segment.has_footer();
        let whole_end = lock(&self.index).segments.get(&segment.id).map(Held::whole_end);
        self.num_syncs.fetch_add(1, Ordering::Relaxed);
        let synced = segment.sync(&self.options.failpoints);
        let mut index = lock(&self.index);
        if synced.is_err() {
            index.shut(segment.id);
        }
        let Some(held) = index.segments.get_mut(&segment.id) else { return Ok(false) };
        held.is_unsynced |= synced.is_err();
        synced.map_err(io_error("fdatasync"))?;
        let is_new = has_footer && !held.is_full;
        held.is_full = has_footer;
        drop(index);
        if let Some(end) = whole_end.filter(|_| !has_footer) {
            let _ = note_synced(&segment.file, segment.stamp, end); // what it said before stays true
        }
        Ok(is_new)
    }

    /// Writes the pages again whose sync failed, the newest segment first: an older one's pages
    /// may have been moved to it.
    fn rescue_unsynced(&self) -> Result<()> {
        let index = lock(&self.index);
        let unsynced = index.segments.values().rev().filter(|held| held.is_unsynced);
        let unsynced: Vec<_> = unsynced.map(|held| held.segment.id).collect();
        drop(index);
        let mut num_lost = 0;
        for segment in unsynced {
            let collecting = self.begin_collecting();
            num_lost += match self.empty_segment(segment) {
                Ok(emptied) => {
                    self.retire_segment(segment)?;
                    emptied.lost
                }
                Err(Error::TierFull { .. }) => self.rewrite_segment(segment)?,
                Err(error) => return Err(error),
            };
            drop(collecting);
        }
        if num_lost == 0 {
            return Ok(());
        }
        let text = format!("{num_lost} pages lost: their sync failed, and they do not read back");
        Err(Error::TierIo { tier: TIER, call: CALL, text })
    }

    /// Writes a segment again at its place, so that it may be synced again; how many of its pages
    /// are lost. A write that is torn changes nothing: the bytes are the same.
    fn rewrite_segment(&self, segment: u32) -> Result<u64> {
        let index = lock(&self.index);
        let held = index.segments.get(&segment).filter(|held| held.writing.is_empty());
        let file = held.map(|held| Arc::clone(&held.segment));
        drop(index);
        let Some(file) = file else {
            let text = format!("segment {segment:08x} is being written");
            return Err(Error::TierIo { tier: TIER, call: CALL, text });
        };
        file.write_again(&self.options.failpoints).map_err(io_error("pwrite"))?;
        let num_lost = self.count_damaged(segment, &file)?;
        let mut index = lock(&self.index);
        index.segments.entry(segment).and_modify(|held| held.is_unsynced = false);
        Ok(num_lost)
    }

    fn count_damaged(&self, segment: u32, file: &Segment) -> Result<u64> {
        let pages = lock(&self.index).pages_of(segment);
        let mut num_damaged = 0;
        for (identity, place) in &pages {
            let mut record = self.spares.take(usize_of(place.record_bytes()));
            let reading = self.read_page(identity, place, file, &mut record);
            self.spares.put_back(record);
            num_damaged += u64::from(reading? == Reading::Damaged);
        }
        Ok(num_damaged)
    }
}
