//! Checks every page that a tier gives out: one that lies is caught, whatever it is made of.

use std::sync::atomic::{AtomicU64, Ordering};

use super::frame::{self, FRAME_BYTES};
use super::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use crate::error::Result;
use crate::sync::{Mutex, lock};

/// Frames kept for the next calls; more calls at a time allocate their own.
const MAX_SPARE_FRAMES: usize = 8;

/// A tier whose pages carry their identity, length and checksum; see [`frame`].
///
/// A page that is not what was put is a miss and counts as corrupt. It is removed, for as long as
/// it stayed a new put of the page would find it there already.
#[derive(Debug)]
pub struct VerifiedTier<T> {
    inner: T,
    hits: AtomicU64,
    misses: AtomicU64,
    corrupt: AtomicU64,
    spare_frames: Mutex<Vec<Vec<u8>>>,
}

impl<T: PageTier> VerifiedTier<T> {
    /// Verifies what `inner` holds; every page in it must have come through such a tier.
    pub fn new(inner: T) -> Self {
        let spare_frames = Mutex::new(Vec::with_capacity(MAX_SPARE_FRAMES));
        let [hits, misses, corrupt] = [const { AtomicU64::new(0) }; 3];
        Self { inner, hits, misses, corrupt, spare_frames }
    }

    /// The tier that is verified.
    pub const fn inner(&self) -> &T {
        &self.inner
    }

    /// Calls `work` with a frame that is kept between calls: a fresh one is a page fault every 4 KiB.
    fn with_frame<R>(&self, work: impl FnOnce(&mut Vec<u8>) -> Result<R>) -> Result<R> {
        let mut frame = lock(&self.spare_frames)?.pop().unwrap_or_default();
        let done = work(&mut frame);
        let mut spare = lock(&self.spare_frames)?;
        if spare.len() < MAX_SPARE_FRAMES {
            spare.push(frame);
        }
        done
    }

    fn reject(&self, identity: &PageIdentity, deadline: Deadline) -> bool {
        count(&self.corrupt);
        let _ = self.inner.remove(identity, deadline); // the page is a miss either way
        false
    }

    fn get_checked(
        &self,
        identity: &PageIdentity,
        into: &mut [u8],
        deadline: Deadline,
    ) -> Result<bool> {
        self.with_frame(|frame| {
            frame.resize(FRAME_BYTES + into.len(), 0);
            frame[..FRAME_BYTES].fill(0); // a tier that writes nothing must not find an old frame
            if !self.inner.get(identity, frame, deadline)? {
                return Ok(false);
            }
            let Some(page) = frame::open(identity, into.len(), frame) else {
                return Ok(self.reject(identity, deadline));
            };
            into.copy_from_slice(page);
            Ok(true)
        })
    }
}

impl<T: PageTier> PageTier for VerifiedTier<T> {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        self.with_frame(|frame| {
            frame.clear();
            frame.extend_from_slice(&frame::header_of(page, bytes));
            frame.extend_from_slice(bytes);
            self.inner.put(page, frame, deadline)
        })
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        let is_found = self.get_checked(identity, into, deadline)?;
        count(if is_found { &self.hits } else { &self.misses });
        Ok(is_found)
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.inner.holds(identity, deadline)
    }

    fn count_held(&self, identities: &[PageIdentity], deadline: Deadline) -> Result<usize> {
        self.inner.count_held(identities, deadline)
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.inner.remove(identity, deadline)
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.inner.flush(deadline)
    }

    /// Hits, misses and corrupt pages as found here, whatever the inner tier believes.
    fn usage(&self) -> TierUsage {
        let usage = self.inner.usage();
        TierUsage {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            corrupt: usage.corrupt + self.corrupt.load(Ordering::Relaxed),
            ..usage
        }
    }

    fn pages(&self) -> Vec<PageHeader> {
        self.inner.pages()
    }

    fn forget_cached(&self) {
        self.inner.forget_cached();
    }

    fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    fn keeps_deadlines(&self) -> bool {
        self.inner.keeps_deadlines()
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
