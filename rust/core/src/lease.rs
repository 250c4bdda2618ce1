//! The right to use some pages: it ends when dropped, and outliving the manager is harmless.

use crate::error::{Error, Result, check_range};
use crate::ledger::Ledger;
use crate::page::PageHandle;
use crate::sync::{Arc, Mutex, Weak, lock};

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

    /// Takes the pages from `at` on out of this lease, into one of their own.
    pub fn split_off(&mut self, at: usize) -> Result<Self> {
        check_range("pages to keep", at, 0, self.handles.len())?;
        let rest = self.handles.split_off(at);
        Ok(self.with(rest))
    }

    /// Another lease of the same pages.
    pub fn share(&self) -> Result<Self> {
        let Some(ledger) = self.ledger.upgrade() else { return Ok(self.with(Vec::new())) };
        lock(&ledger)?.share_lease(&self.handles)?;
        Ok(self.with(self.handles.clone()))
    }

    /// The pages, for a call of the manager whose ledger this is.
    pub(crate) fn handles_in(&self, ledger: &Arc<Mutex<Ledger>>) -> Result<&[PageHandle]> {
        if self.handles.is_empty() || Weak::ptr_eq(&self.ledger, &Arc::downgrade(ledger)) {
            return Ok(&self.handles);
        }
        Err(Error::WrongState { what: "leases of another manager", found: 1, needed: 0 })
    }

    fn with(&self, handles: Vec<PageHandle>) -> Self {
        Self { ledger: self.ledger.clone(), handles }
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
