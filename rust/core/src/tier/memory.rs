//! Pages in a map: the tier without a device, for tests and as the model of the others.

use std::collections::HashMap;

use super::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use crate::error::{Error, Result};
use crate::sync::{Mutex, lock};

/// A tier in this process's memory; nothing of it outlives the process.
#[derive(Debug)]
pub struct MemoryTier {
    held: Mutex<Held>,
    capacity_bytes: u64,
}

#[derive(Debug, Default)]
struct Held {
    pages: HashMap<PageIdentity, Box<[u8]>>,
    used_bytes: u64,
    hits: u64,
    misses: u64,
    corrupt: u64,
    failures: u64,
}

impl MemoryTier {
    /// An empty tier that takes pages of up to `capacity_bytes` together.
    pub fn new(capacity_bytes: u64) -> Self {
        Self { held: Mutex::new(Held::default()), capacity_bytes }
    }
}

impl Held {
    fn insert(&mut self, identity: PageIdentity, bytes: &[u8], capacity: u64) -> Result<Stored> {
        if self.pages.contains_key(&identity) {
            return Ok(Stored::Already);
        }
        let (need, free) = (bytes.len() as u64, capacity - self.used_bytes);
        if need > free {
            self.failures += 1;
            return Err(Error::TierFull { tier: "memory tier", need, free, capacity });
        }
        self.pages.insert(identity, bytes.into());
        self.used_bytes += need;
        Ok(Stored::New)
    }

    fn copy(&mut self, identity: &PageIdentity, into: &mut [u8]) -> bool {
        let page = self.pages.get(identity);
        self.corrupt += u64::from(page.is_some_and(|page| page.len() != into.len()));
        let sound = page.filter(|page| page.len() == into.len());
        match sound {
            Some(page) => into.copy_from_slice(page),
            None => self.misses += 1,
        }
        self.hits += u64::from(sound.is_some());
        sound.is_some()
    }

    fn remove(&mut self, identity: &PageIdentity) -> bool {
        let page = self.pages.remove(identity);
        self.used_bytes -= page.as_ref().map_or(0, |page| page.len() as u64);
        page.is_some()
    }
}

impl PageTier for MemoryTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        deadline.check("put")?;
        lock(&self.held)?.insert(page.identity, bytes, self.capacity_bytes)
    }

    /// A page of another length than `into` counts as corrupt.
    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        deadline.check("get")?;
        Ok(lock(&self.held)?.copy(identity, into))
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        deadline.check("holds")?;
        Ok(lock(&self.held)?.pages.contains_key(identity))
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        deadline.check("remove")?;
        Ok(lock(&self.held)?.remove(identity))
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        deadline.check("flush")
    }

    fn usage(&self) -> TierUsage {
        let capacity_bytes = self.capacity_bytes;
        let empty = TierUsage { capacity_bytes, ..TierUsage::default() };
        lock(&self.held).map_or(empty, |held| TierUsage {
            pages: held.pages.len() as u64,
            used_bytes: held.used_bytes,
            hits: held.hits,
            misses: held.misses,
            corrupt: held.corrupt,
            failures: held.failures,
            ..empty
        })
    }

    /// No call of it waits for anything but a lock.
    fn keeps_deadlines(&self) -> bool {
        true
    }
}
