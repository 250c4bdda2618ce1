//! Places where a test makes the file tier fail, wait or die; armed by nobody in production.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::split_mix::SplitMix;
use crate::sync::lock_whole;

/// A place in the file tier's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failpoint {
    /// No byte of a page, a footer or a mark has been written.
    BeforeWrite,
    /// The first half has been written.
    HalfWrite,
    /// All has been written, and nothing is known to be durable.
    AfterWrite,
    /// A segment is about to be made durable.
    BeforeSync,
    /// A segment is durable, and nobody has been told.
    AfterSync,
    /// The next manifest lies beside the old one.
    BeforeManifestRename,
    /// The next manifest is in force, if the directory is durable.
    AfterManifestRename,
    /// A segment has left the manifest, and its file is still there.
    InUnlink,
    /// A page is about to be read.
    BeforeRead,
}

/// What happens at a [`Failpoint`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailAction {
    /// The system call fails with this error number.
    Errno(i32),
    /// The call takes so much longer.
    Sleep(Duration),
    /// The process dies on the spot.
    Abort,
}

/// When an armed point acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Each time.
    Always,
    /// Once, after so many times at which nothing happens.
    OnceAfter(u64),
    /// One time in `one_in` on average, by a generator with this seed.
    Chance {
        /// The mean distance; at least 1.
        one_in: u32,
        /// Seed of the generator.
        seed: u64,
    },
}

/// The failpoints of one tier; clones share what is armed.
#[derive(Debug, Clone, Default)]
pub struct Failpoints(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    any: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    armed: HashMap<Failpoint, Armed>,
    num_acted: Vec<(FailAction, u64)>,
}

impl State {
    fn pass(&mut self, point: Failpoint) -> Option<FailAction> {
        let action = self.armed.get_mut(&point)?.pass()?;
        match self.num_acted.iter_mut().find(|(known, _)| *known == action) {
            Some((_, count)) => *count += 1,
            None => self.num_acted.push((action, 1)),
        }
        Some(action)
    }
}

#[derive(Debug)]
struct Armed {
    action: FailAction,
    occasion: Occasion,
    passes: u64,
    draws: SplitMix,
}

impl Failpoints {
    /// Arms a point, in place of what was armed there.
    pub fn arm(&self, point: Failpoint, action: FailAction, occasion: Occasion) {
        let seed = if let Occasion::Chance { seed, .. } = occasion { seed } else { 0 };
        let armed = Armed { action, occasion, passes: 0, draws: SplitMix(seed) };
        self.state().armed.insert(point, armed);
        self.0.any.store(true, Ordering::Release);
    }

    /// Disarms every point.
    pub fn disarm(&self) {
        self.0.any.store(false, Ordering::Release);
        self.state().armed.clear();
    }

    /// What has been done so far, at all points, and how often.
    pub fn acted(&self) -> Vec<(FailAction, u64)> {
        self.state().num_acted.clone()
    }

    /// Acts if the point is armed and the occasion has come.
    pub(crate) fn pass(&self, point: Failpoint) -> io::Result<()> {
        if !self.0.any.load(Ordering::Acquire) {
            return Ok(());
        }
        let action = self.state().pass(point);
        match action {
            None => Ok(()),
            Some(FailAction::Errno(number)) => Err(io::Error::from_raw_os_error(number)),
            Some(FailAction::Sleep(time)) => {
                thread::sleep(time);
                Ok(())
            }
            Some(FailAction::Abort) => std::process::abort(),
        }
    }

    /// Whether the point is armed: writes go in halves only then.
    pub(crate) fn is_armed(&self, point: Failpoint) -> bool {
        self.0.any.load(Ordering::Acquire) && self.state().armed.contains_key(&point)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        lock_whole(&self.0.state)
    }
}

impl Armed {
    fn pass(&mut self) -> Option<FailAction> {
        let acts = match self.occasion {
            Occasion::Always => true,
            Occasion::OnceAfter(after) => {
                self.passes += 1;
                self.passes == after + 1
            }
            Occasion::Chance { one_in, .. } => self.draws.below(one_in.max(1)) == 0,
        };
        acts.then_some(self.action)
    }
}
