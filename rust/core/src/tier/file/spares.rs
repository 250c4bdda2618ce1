//! Blocks of memory to use again: a fresh megabyte costs as much as copying into it.

use std::sync::Mutex;

use super::io::lock;
use super::page_header::{HEADER_BYTES, record_bytes};

/// Bytes that may lie unused.
const MAX_SPARE_BYTES: usize = 32 << 20;

/// Records' memory between two calls.
#[derive(Debug, Default)]
pub(super) struct Spares(Mutex<Unused>);

#[derive(Debug, Default)]
struct Unused {
    spares: Vec<Vec<u8>>,
    num_bytes: usize,
}

impl Spares {
    /// Memory for a record; it holds anything.
    pub(super) fn take(&self, num_bytes: usize) -> Vec<u8> {
        let mut unused = lock(&self.0);
        let mut spare = unused.spares.pop().unwrap_or_default();
        unused.num_bytes -= spare.capacity();
        drop(unused);
        spare.resize(num_bytes, 0);
        spare
    }

    /// A record with a page's bytes, and zeros after them.
    pub(super) fn record_of(&self, page: &[u8]) -> Vec<u8> {
        let len = usize::try_from(record_bytes(page.len() as u64)).expect("a page fits memory");
        let mut record = self.take(len);
        let (body, rest) = record[HEADER_BYTES..].split_at_mut(page.len());
        body.copy_from_slice(page);
        rest.fill(0);
        record
    }

    pub(super) fn put_back(&self, spare: Vec<u8>) {
        let mut unused = lock(&self.0);
        if unused.num_bytes + spare.capacity() <= MAX_SPARE_BYTES {
            unused.num_bytes += spare.capacity();
            unused.spares.push(spare);
        }
    }
}
