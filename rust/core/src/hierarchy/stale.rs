//! Copies below that are not the page's any more: an engine may compute a row in more than one way,
//! and a tier keeps the first bytes that it was given under a name.

use super::Mover;
use super::lower::Lower;
use crate::error::Result;
use crate::sync::lock;
use crate::tier::{Deadline, PageHeader, Stored};

impl Mover {
    /// Removes the copies that the directory does not want any more. Whoever puts a page calls this
    /// first, and waits for those who do it: after it, a copy that was put stays.
    pub(super) fn tidy(&self, deadline: Deadline) -> Result<()> {
        let _one_at_a_time = lock(&self.tidying)?;
        for (identity, tiers) in self.directory.take_orphans()? {
            for lower in self.below.iter().filter(|lower| tiers.has(lower.tier)) {
                // one that stays takes room, and is found out when its page is put again
                let _ = lower.store().remove(&identity, self.call_by(deadline));
            }
        }
        Ok(())
    }

    /// Makes sure that what a tier had under a page's name is the page.
    pub(super) fn replace_stale(
        &self,
        lower: &Lower,
        page: &PageHeader,
        bytes: &[u8],
        deadline: Deadline,
    ) -> Result<Stored> {
        let mut had = vec![0; bytes.len()];
        let by = self.call_by(deadline);
        if lower.store().get(&page.identity, &mut had, by)? && had == bytes {
            return Ok(Stored::Already);
        }
        lower.store().remove(&page.identity, by)?;
        lower.store().put(page, bytes, by)
    }
}
