//! Guards of pages in motion: `Started -> Enqueued -> completed`, and back if dropped on the way.
//!
//! *Enqueued* says that the copy is in the queue of whoever makes it: in that queue's order its
//! source may be written again. *Completed* says that the copy is whole: it may be published.

use std::marker::PhantomData;

use super::entry::{Held, LowerTier};
use super::moves::Direction;
use super::shelf::ShelfRef;
use super::slab::SlabKey;
use super::table::PrefixTable;
use crate::error::{Error, Result};
use crate::tier::PageHeader;

/// The copy is not begun.
#[derive(Debug)]
pub enum Started {}

/// The copy is in a queue, or made.
#[derive(Debug)]
pub enum Enqueued {}

/// A step that was refused, and the guard as it was before: try again, or drop it.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused<Guard> {
    /// The guard.
    pub guard: Guard,
    /// Why.
    pub error: Error,
}

/// A page that is copied from the host pool to a lower tier; leases may read it all the while.
///
/// Dropped before it is completed, the page stays in the host pool.
#[derive(Debug)]
#[must_use = "dropping it cancels the demotion"]
pub struct Demotion<Stage = Started> {
    moving: Box<Moving>, // so that a refusal stays small
    stage: PhantomData<Stage>,
}

/// A page that is copied from a lower tier to a host page that nobody may read yet.
///
/// Dropped before it is completed, the host page goes back to the pool: a copy that was enqueued
/// must have ended by then, well or not.
#[derive(Debug)]
#[must_use = "dropping it cancels the promotion"]
pub struct Promotion<Stage = Started> {
    moving: Box<Moving>,
    stage: PhantomData<Stage>,
}

impl Demotion {
    pub(super) fn new(shelf: &ShelfRef, table: &PrefixTable, key: SlabKey) -> Result<Self> {
        let moving = Moving::new(shelf, table, key, Direction::Down)?;
        Ok(Self { moving, stage: PhantomData })
    }

    /// First acknowledgement: the tier has taken the bytes, or has them in its queue.
    pub fn enqueued(self) -> Demotion<Enqueued> {
        Demotion { moving: self.moving, stage: PhantomData }
    }
}

impl<Stage> Demotion<Stage> {
    /// The page, as the tier has to be told.
    pub const fn header(&self) -> &PageHeader {
        &self.moving.header
    }

    /// The host page to copy from.
    pub const fn page(&self) -> u32 {
        self.moving.page
    }
}

impl Demotion<Enqueued> {
    /// Second acknowledgement: `tier` has the page. Its host page is free unless it is in use again.
    pub fn completed(mut self, tier: LowerTier) -> Result<Held, Refused<Self>> {
        let key = self.moving.key;
        let held = self.moving.shelf.with(|pool, table| table.complete_demotion(pool, key, tier));
        self.moving.is_ended = held.is_ok();
        held.map_err(|error| Refused { guard: self, error })
    }
}

impl Promotion {
    pub(super) fn new(shelf: &ShelfRef, table: &PrefixTable, key: SlabKey) -> Result<Self> {
        let moving = Moving::new(shelf, table, key, Direction::Up)?;
        Ok(Self { moving, stage: PhantomData })
    }

    /// First acknowledgement: the copy is in a queue, and the tier's bytes are not needed again.
    pub fn enqueued(self) -> Promotion<Enqueued> {
        Promotion { moving: self.moving, stage: PhantomData }
    }
}

impl<Stage> Promotion<Stage> {
    /// The page to get.
    pub const fn header(&self) -> &PageHeader {
        &self.moving.header
    }

    /// The host page to copy to.
    pub const fn page(&self) -> u32 {
        self.moving.page
    }
}

impl Promotion<Enqueued> {
    /// Second acknowledgement: the host page is whole, and leases may read it.
    pub fn completed(mut self) -> Result<Held, Refused<Self>> {
        let key = self.moving.key;
        let held = self.moving.shelf.with(|pool, table| table.complete_promotion(pool, key));
        self.moving.is_ended = held.is_ok();
        held.map_err(|error| Refused { guard: self, error })
    }
}

#[derive(Debug)]
struct Moving {
    shelf: ShelfRef,
    key: SlabKey,
    direction: Direction,
    header: PageHeader,
    page: u32,
    is_ended: bool,
}

impl Moving {
    fn new(
        shelf: &ShelfRef,
        table: &PrefixTable,
        key: SlabKey,
        direction: Direction,
    ) -> Result<Box<Self>> {
        let (header, page) = table.in_motion(key)?;
        Ok(Box::new(Self { shelf: shelf.clone(), key, direction, header, page, is_ended: false }))
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        if self.is_ended {
            return;
        }
        let (key, direction) = (self.key, self.direction);
        // fails only if the table is gone, or after a panic under its lock, which others report
        let _ = self.shelf.with(|pool, table| table.cancel(pool, key, direction));
    }
}
