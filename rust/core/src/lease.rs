//! The right to use some pages: it ends when dropped, and outliving the manager is harmless.

use crate::error::Result;
use crate::ledger::Ledger;
use crate::page::PageHandle;
use crate::sync::{Mutex, Weak, lock};

/// Pages held outside of any sequence; dropping the lease gives them back.
#[derive(Debug)]
pub struct PageLease {
    ledger: Weak<Mutex<Ledger>>,
    handles: Vec<PageHandle>,
}

impl PageLease {
    pub(crate) fn new(ledger: Weak<Mutex<Ledger>>, handles: Vec<PageHandle>) -> Self {
        Self { ledger, handles }
    }

    /// Numbers of the leased pages.
    pub fn pages(&self) -> Vec<u32> {
        self.handles.iter().map(|handle| handle.page()).collect()
    }

    /// Gives the pages back now, and reports what dropping the lease could only swallow.
    pub fn release(mut self) -> Result<()> {
        self.give_back()
    }

    fn give_back(&mut self) -> Result<()> {
        let handles = std::mem::take(&mut self.handles);
        match self.ledger.upgrade() {
            Some(ledger) if !handles.is_empty() => lock(&ledger)?.end_lease(&handles),
            _ => Ok(()),
        }
    }
}

impl Drop for PageLease {
    fn drop(&mut self) {
        let _ = self.give_back(); // fails only after a panic under the lock, which others report
    }
}
