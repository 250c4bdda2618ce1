//! Where a directory lies: beside the pool whose pages it names, and under the same lock.

use std::fmt;

use super::table::PrefixTable;
use crate::error::{Error, Result};
use crate::page::PageAllocator;
use crate::sync::{Arc, Mutex, Weak};

/// Whoever owns host pages and keeps a directory of them under one lock.
pub trait Shelf: Send + fmt::Debug {
    /// The pool and its directory.
    fn parts(&mut self) -> (&mut PageAllocator, &mut PrefixTable);
}

/// A pool with a directory and nothing else.
#[derive(Debug)]
pub struct HostShelf {
    pool: PageAllocator,
    table: PrefixTable,
}

impl HostShelf {
    /// A directory that is empty beside a pool that nothing else uses.
    pub const fn new(pool: PageAllocator, table: PrefixTable) -> Self {
        Self { pool, table }
    }
}

impl Shelf for HostShelf {
    fn parts(&mut self) -> (&mut PageAllocator, &mut PrefixTable) {
        (&mut self.pool, &mut self.table)
    }
}

/// Runs `work` under the shelf's lock.
pub(super) fn with<R>(
    shelf: &Mutex<dyn Shelf>,
    work: impl FnOnce(&mut PageAllocator, &mut PrefixTable) -> Result<R>,
) -> Result<R> {
    let mut shelf = shelf.lock().map_err(|_| Error::Poisoned)?;
    let (pool, table) = shelf.parts();
    work(pool, table)
}

/// What a guard knows of its shelf, which it does not keep alive.
#[derive(Debug, Clone)]
pub(super) struct ShelfRef(Weak<Mutex<dyn Shelf>>);

impl ShelfRef {
    pub(super) fn new(shelf: &Arc<Mutex<dyn Shelf>>) -> Self {
        Self(Arc::downgrade(shelf))
    }

    /// Runs `work` under the shelf's lock; refused once the shelf has gone.
    pub(super) fn with<R>(
        &self,
        work: impl FnOnce(&mut PageAllocator, &mut PrefixTable) -> Result<R>,
    ) -> Result<R> {
        let gone = Error::WrongState { what: "directories of a guard", found: 0, needed: 1 };
        with(&*self.0.upgrade().ok_or(gone)?, work)
    }
}
