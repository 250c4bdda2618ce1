//! Changes of pages under way, also by calls whose callers have left: a put waits for removals of its
//! page, which could remove what it puts, and a removal for puts, which could bring the page back.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Deadline, PageIdentity};
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, lock};

/// What is done to a page. Changes of one kind are in nobody's way: they come to the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is put.
    Put,
    /// It is removed.
    Remove,
}

/// Pages that are being put or removed.
#[derive(Debug, Default)]
pub struct Changes {
    under_way: Mutex<HashMap<PageIdentity, (ChangeKind, usize)>>, // how many of that kind
    has_ended: Condvar,
}

/// One change; it ends when dropped, which is for whoever makes it to do, not for its caller.
#[derive(Debug)]
#[must_use = "dropping it ends the change"]
pub struct Change {
    changes: Arc<Changes>,
    page: PageIdentity,
}

impl ChangeKind {
    const fn call(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Remove => "remove",
        }
    }
}

impl Changes {
    /// Begins a change of a page as soon as none of the other kind is under way.
    ///
    /// # Errors
    /// [`Error::DeadlinePassed`]: such a one has not ended by then.
    pub fn begin(
        self: &Arc<Self>,
        kind: ChangeKind,
        page: &PageIdentity,
        deadline: Deadline,
    ) -> Result<Change> {
        let mut under_way = lock(&self.under_way)?;
        while under_way.get(page).is_some_and(|(other, _)| *other != kind) {
            deadline.check(kind.call())?;
            let woken = self.has_ended.wait_timeout(under_way, deadline.left());
            under_way = woken.map_err(|_| Error::Poisoned)?.0;
        }
        under_way.entry(*page).or_insert((kind, 0)).1 += 1;
        drop(under_way);
        Ok(Change { changes: Arc::clone(self), page: *page })
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Ok(mut under_way) = lock(&self.changes.under_way)
            && let Some((_, number)) = under_way.get_mut(&self.page)
        {
            *number -= 1;
            if *number == 0 {
                under_way.remove(&self.page);
            }
        }
        self.changes.has_ended.notify_all();
    }
}
