//! A tier that a test switches: down, slow, or not letting go of pages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hisparse_core::sync::Mutex;
use hisparse_core::tier::{Deadline, PageHeader, PageIdentity, PageTier, Stored, TierUsage};
use hisparse_core::{Error, Result};

/// A state that a test sets.
#[derive(Default)]
pub(crate) struct Switch(AtomicBool);

/// Pages in a map.
#[derive(Default)]
pub(crate) struct SwitchedTier {
    /// Every call fails.
    pub(crate) is_down: Switch,
    /// The tier says so, though its calls do not fail.
    pub(crate) says_down: Switch,
    /// Every call lasts until its deadline.
    pub(crate) is_slow: Switch,
    /// Removals fail.
    pub(crate) keeps_pages: Switch,
    pages: Mutex<HashMap<PageIdentity, (PageHeader, Vec<u8>)>>,
    num_puts: AtomicU64,
}

impl Switch {
    pub(crate) fn set(&self, is_on: bool) {
        self.0.store(is_on, Ordering::Relaxed);
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl SwitchedTier {
    pub(crate) fn num_pages(&self) -> usize {
        self.pages.lock().expect("no holder panics").len()
    }

    pub(crate) fn num_puts(&self) -> u64 {
        self.num_puts.load(Ordering::Relaxed)
    }

    fn begin(&self, call: &'static str, deadline: Deadline) -> Result<()> {
        if self.is_slow.is_on() {
            std::thread::sleep(deadline.left());
        }
        if self.is_down.is_on() {
            return Err(Error::TierIo { tier: "switched", call, text: "it is down".into() });
        }
        deadline.check(call)
    }
}

impl PageTier for SwitchedTier {
    fn put(&self, page: &PageHeader, bytes: &[u8], deadline: Deadline) -> Result<Stored> {
        self.num_puts.fetch_add(1, Ordering::Relaxed);
        self.begin("put", deadline)?;
        let mut pages = self.pages.lock().expect("no holder panics");
        let before = pages.insert(page.identity, (*page, bytes.to_vec()));
        Ok(if before.is_some() { Stored::Already } else { Stored::New })
    }

    fn get(&self, identity: &PageIdentity, into: &mut [u8], deadline: Deadline) -> Result<bool> {
        self.begin("get", deadline)?;
        let pages = self.pages.lock().expect("no holder panics");
        let page = pages.get(identity);
        page.inspect(|(_, bytes)| into.copy_from_slice(bytes));
        Ok(page.is_some())
    }

    fn holds(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.begin("holds", deadline)?;
        Ok(self.pages.lock().expect("no holder panics").contains_key(identity))
    }

    fn remove(&self, identity: &PageIdentity, deadline: Deadline) -> Result<bool> {
        self.begin("remove", deadline)?;
        if self.keeps_pages.is_on() {
            let (tier, call) = ("switched", "remove");
            return Err(Error::TierIo { tier, call, text: "it keeps its pages".into() });
        }
        Ok(self.pages.lock().expect("no holder panics").remove(identity).is_some())
    }

    fn flush(&self, deadline: Deadline) -> Result<()> {
        self.begin("flush", deadline)
    }

    fn usage(&self) -> TierUsage {
        TierUsage { pages: self.num_pages() as u64, ..TierUsage::default() }
    }

    fn pages(&self) -> Vec<PageHeader> {
        let pages = self.pages.lock().expect("no holder panics");
        pages.values().map(|(page, _)| *page).collect()
    }

    fn is_up(&self) -> bool {
        !self.says_down.is_on()
    }

    fn keeps_deadlines(&self) -> bool {
        true
    }
}
