//! Pages in files: append-only segments, durable once flushed, checked whenever they are read.
//!
//! A page is a record in a segment; a full segment ends with a list of its records, so that opening
//! need not read them; the manifest lists the segments. Bytes that are not exactly what was put are
//! a miss, and the page is not looked for again.

mod codec;
mod collect;
mod directory;
mod draft;
mod error;
mod failpoint;
mod flush;
mod footer;
mod held;
mod index;
mod io;
mod manifest;
mod options;
mod page_header;
mod put;
mod recovery;
mod remove;
mod scan;
mod segment;
mod spares;
mod store;
mod synced;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::error::{Result, check_range};
use crate::page::PAGE_TOKENS;

use super::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};

pub use collect::Collected;
pub use failpoint::{FailAction, Failpoint, Failpoints, Occasion};
pub use options::{FileTierOptions, Recovery, RecoveryMode};

use directory::Directory;
use flush::Rounds;
use io::{Answer, IoPool, lock};
use page_header::HEADER_BYTES;
use put::Incoming;
use spares::Spares;
use store::{Files, Reading, Store};

/// A directory of pages; see the module. Dropping it ends the calls that are going on.
pub struct FileTier {
    pool: IoPool, // before the store: its threads end first
    store: Arc<Store>,
}

impl FileTier {
    /// Opens a directory, or makes it, and says what was found there.
    ///
    /// # Errors
    /// [`WrongState`](crate::Error::WrongState) while another process holds the directory, or if
    /// its format is of another version; [`TierForeign`](crate::Error::TierForeign) if its pages
    /// are of another model or layout; [`TierDamaged`](crate::Error::TierDamaged) in strict mode;
    /// [`TierFull`](crate::Error::TierFull) if the disk has no room for a new directory's manifest;
    /// [`TierIo`](crate::Error::TierIo).
    pub fn open(options: FileTierOptions) -> Result<(Self, Recovery)> {
        let begin = Instant::now();
        options.check()?;
        let directory = Directory::open(&options.directory)?;
        let recovered = recovery::recover(&directory, &options)?;
        let pool = IoPool::new(options.io_threads, options.queue)?;
        let store = Store {
            directory,
            index: Mutex::new(recovered.index),
            files: Mutex::new(Files::new(recovered.next_segment)),
            collecting: Mutex::new(()),
            syncing: Mutex::new(()),
            rounds: Rounds::default(),
            spares: Spares::default(),
            num_syncs: AtomicU64::new(0),
            options,
        };
        let files = lock(&store.files);
        if recovered.list_is_old {
            store.write_manifest_on_full_disk()?;
        }
        store.keep_reserve(); // of an earlier version there is none
        drop(files);
        let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        let report = Recovery { micros, ..recovered.report };
        Ok((Self { pool, store: Arc::new(store) }, report))
    }

    /// Gives back the space of removed pages: segments with few live pages are written again.
    ///
    /// A put that finds the tier full does this first.
    pub fn collect(&self, deadline: Deadline) -> Result<Collected> {
        let mut total = Collected::default();
        let mut pass = self.store.begin_pass();
        loop {
            let store = Arc::clone(&self.store);
            let work = move |answer: &Answer<_>| {
                let outcome = store.collect_one(&mut pass);
                answer.give(|| (outcome, pass));
            };
            let outcome;
            (outcome, pass) = self.counted(self.pool.call("collect", deadline, work))?;
            let Some(collected) = self.counted(outcome)? else { return Ok(total) };
            total.segments += collected.segments;
            total.moved += collected.moved;
            total.bytes += collected.bytes;
        }
    }

    /// Segments that were synced so far; flushes that wait together share one each.
    pub fn num_syncs(&self) -> u64 {
        self.store.num_syncs.load(Ordering::Relaxed)
    }

    /// The number of bytes of a page held; None if it is not.
    pub fn page_bytes(&self, identity: &PageIdentity) -> Option<u64> {
        lock(&self.store.index).pages.get(identity).map(|place| place.num_bytes.into())
    }

    fn check_page(&self, page: &PageHeader, bytes: &[u8]) -> Result<()> {
        check_range("tokens of a page", page.num_tokens, 1, PAGE_TOKENS)?;
        let max = self.store.options.max_page_bytes().min(u32::MAX.into());
        check_range("bytes of a page", bytes.len() as u64, 1, max)
    }

    fn check_length(&self, identity: &PageIdentity, found: usize) -> Result<bool> {
        let Some(held) = self.page_bytes(identity) else { return Ok(false) };
        check_range("bytes of a page that is held", found as u64, held, held)?;
        Ok(true)
    }

    /// What is to be written of a page; None if the tier has it.
    fn incoming(&self, page: &PageHeader, bytes: &[u8]) -> Result<Option<Incoming>> {
        self.check_page(page, bytes)?;
        if self.check_length(&page.identity, bytes.len())? {
            return Ok(None);
        }
        let num_bytes = u32::try_from(bytes.len()).expect("checked");
        Ok(Some(Incoming { page: *page, num_bytes, record: self.store.spares.record_of(bytes) }))
    }

    fn put_incoming(
        &self,
        batch: Vec<Incoming>,
        deadline: Deadline,
    ) -> Result<Vec<Result<Stored>>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let store = Arc::clone(&self.store);
        self.pool.call("put", deadline, move |answer: &Answer<_>| store.put(batch, answer))
    }

    /// The record of a page; None if the page is not there, or not sound.
    fn read(&self, identity: &PageIdentity, deadline: Deadline) -> Result<Option<Vec<u8>>> {
        let found = lock(&self.store.index).find(identity);
        let Some((place, segment)) = found else { return Ok(None) };
        let (store, identity) = (Arc::clone(&self.store), *identity);
        let work = move |answer: &Answer<Result<Option<Vec<u8>>>>| {
            let num_bytes = usize::try_from(place.record_bytes()).expect("a page fits memory");
            let mut record = store.spares.take(num_bytes);
            let read = store.read_page(&identity, &place, &segment, &mut record);
            answer.give(|| read.map(|reading| (reading == Reading::Whole).then_some(record)));
        };
        self.pool.call("get", deadline, work)?
    }

    fn counted<T>(&self, outcome: Result<T>) -> Result<T> {
        if outcome.is_err() {
            lock(&self.store.index).counts.failures += 1;
        }
        outcome
    }
}

impl PageTier for FileTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        let outcomes = self.put_many(&[(*page, bytes)], deadline)?;
        outcomes.into_iter().next().unwrap_or(Ok(Stored::Already)) // one page, one outcome
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        let read = deadline.check("get").and_then(|()| {
            self.check_length(identity, into.len())?;
            self.read(identity, deadline)
        });
        let record = self.counted(read)?;
        let mut index = lock(&self.store.index);
        match record {
            Some(_) => index.counts.hits += 1,
            None => index.counts.misses += 1,
        }
        drop(index);
        let Some(record) = record else { return Ok(false) };
        into.copy_from_slice(&record[HEADER_BYTES..][..into.len()]);
        self.store.spares.put_back(record);
        Ok(true)
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.counted(deadline.check("holds"))?;
        Ok(lock(&self.store.index).pages.contains_key(identity))
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.counted(deadline.check("remove"))?;
        if !lock(&self.store.index).pages.contains_key(identity) {
            return Ok(false);
        }
        let (store, identity) = (Arc::clone(&self.store), *identity);
        let work = move |answer: &Answer<_>| store.remove(&identity, answer);
        self.counted(self.pool.call("remove", deadline, work))
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.counted(self.store.rounds.join(&self.store, &self.pool, deadline))
    }

    /// Of the segments that are appended to, once they are synced.
    fn forget_cached(&self) {
        for segment in lock(&self.store.index).open_segments() {
            segment.forget_cached();
        }
    }

    fn usage(&self) -> TierUsage {
        lock(&self.store.index).usage(self.store.options.capacity_bytes)
    }

    /// One hand-over to the io threads, which small pages gain by.
    fn put_many(
        &self,
        pages: &[(PageHeader, &[u8])],
        deadline: Deadline,
    ) -> Result<Vec<Result<Stored>>> {
        self.counted(deadline.check("put"))?;
        let incoming = pages.iter().map(|(page, bytes)| self.incoming(page, bytes));
        let incoming: Vec<_> = self.counted(incoming.collect::<Result<_>>())?;
        let is_new: Vec<bool> = incoming.iter().map(Option::is_some).collect();
        let batch = incoming.into_iter().flatten().collect();
        let mut written = self.counted(self.put_incoming(batch, deadline))?.into_iter();
        let mut outcome = |is_new: bool| {
            let written = if is_new { written.next() } else { None };
            self.counted(written.unwrap_or(Ok(Stored::Already)))
        };
        Ok(is_new.into_iter().map(&mut outcome).collect())
    }

    fn pages(&self) -> Vec<PageHeader> {
        let index = lock(&self.store.index);
        let mut held: Vec<_> = index.pages.iter().collect();
        held.sort_unstable_by_key(|(_, place)| place.sequence);
        held.into_iter().map(|(&identity, place)| place.page(identity)).collect()
    }

    fn keeps_deadlines(&self) -> bool {
        true
    }
}
