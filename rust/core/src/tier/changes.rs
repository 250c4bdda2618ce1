//! Changes of pages under way: those of one page follow each other, also where a caller has left.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Deadline, PageIdentity};
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex, lock};

/// Pages that are being put or removed.
#[derive(Debug, Default)]
pub struct Changes {
    under_way: Mutex<HashSet<PageIdentity>>,
    has_ended: Condvar,
}

/// One change; it ends when dropped, which is for whoever makes it to do, not for its caller.
#[derive(Debug)]
#[must_use = "dropping it ends the change"]
pub struct Change {
    changes: Arc<Changes>,
    page: PageIdentity,
}

impl Changes {
    /// Begins a change of a page as soon as no other is under way.
    ///
    /// # Errors
    /// [`Error::DeadlinePassed`] of `call`: an earlier one has not ended by then.
    pub fn begin(
        self: &Arc<Self>,
        page: &PageIdentity,
        call: &'static str,
        deadline: Deadline,
    ) -> Result<Change> {
        let mut under_way = lock(&self.under_way)?;
        while !under_way.insert(*page) {
            deadline.check(call)?;
            let woken = self.has_ended.wait_timeout(under_way, deadline.left());
            under_way = woken.map_err(|_| Error::Poisoned)?.0;
        }
        drop(under_way);
        Ok(Change { changes: Arc::clone(self), page: *page })
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        if let Ok(mut under_way) = lock(&self.changes.under_way) {
            under_way.remove(&self.page);
        }
        self.changes.has_ended.notify_all();
    }
}
