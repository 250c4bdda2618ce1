//! Putting pages on an io thread: written first, shown together, and only to who still waits.

use crate::error::{Error, Result};
use crate::tier::{PageHeader, Stored};

use super::draft::Draft;
use super::index::Slot;
use super::io::{Answer, lock};
use super::store::Store;

/// A page to write; `record` has its bytes, and room for the header before them.
pub(super) struct Incoming {
    pub(super) page: PageHeader,
    pub(super) num_bytes: u32,
    pub(super) record: Vec<u8>,
}

impl Store {
    /// Writes the pages and shows them; if the caller has left by then, nobody ever sees them.
    pub(super) fn put(&self, batch: Vec<Incoming>, answer: &Answer<Vec<Result<Stored>>>) {
        let append = |mut incoming: Incoming| {
            let slot = self.append_or_collect(&mut incoming);
            self.spares.put_back(incoming.record);
            slot
        };
        let slots: Vec<Result<Slot>> = batch.into_iter().map(append).collect();
        let mut settled = Vec::new();
        let is_given = answer.give(|| {
            settled = self.settle_all(&slots);
            settled.clone()
        });
        let is_shown = |number: usize| is_given && settled.get(number) == Some(&Ok(Stored::New));
        let hidden = slots.iter().enumerate().filter(|(number, _)| !is_shown(*number));
        for slot in hidden.filter_map(|(_, slot)| slot.as_ref().ok()) {
            if !is_given {
                lock(&self.index).drop_slot(slot);
            }
            self.bury(&slot.segment, &slot.place);
        }
    }

    fn settle_all(&self, slots: &[Result<Slot>]) -> Vec<Result<Stored>> {
        let mut index = lock(&self.index);
        let settle = |slot: &Result<Slot>| match slot {
            Ok(slot) => Ok(index.settle(slot)),
            Err(error) => Err(error.clone()),
        };
        slots.iter().map(settle).collect()
    }

    /// Appends a page, making room first if there is none.
    fn append_or_collect(&self, incoming: &mut Incoming) -> Result<Slot> {
        let Incoming { page, num_bytes, record } = incoming;
        let draft = Draft::of_put(page, *num_bytes);
        let mut slot = self.append(&draft, record);
        let mut pass = self.begin_pass();
        while matches!(slot, Err(Error::TierFull { .. })) {
            if let Ok(None) = self.collect_one(&mut pass) {
                break;
            }
            slot = self.append(&draft, record);
        }
        slot
    }
}
