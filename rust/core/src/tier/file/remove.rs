//! Removing a page on an io thread: only for who still waits.

use crate::tier::PageIdentity;

use super::io::{Answer, lock};
use super::store::Store;

impl Store {
    /// Forgets a page and marks its record dead. If the caller has left by then, nothing happens: it
    /// may have found the page since, and count on it.
    pub(super) fn remove(&self, identity: &PageIdentity, answer: &Answer<bool>) {
        let hidden = answer.while_awaited(|| lock(&self.index).hide(identity));
        let Some(hidden) = hidden else { return };
        if let Some((place, segment)) = &hidden {
            self.bury(segment, place);
        }
        answer.give(|| hidden.is_some());
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::super::{FileTier, FileTierOptions};
    use super::*;
    use crate::tier::{Deadline, PageHeader, PageTier, Stored};
    use std::time::Duration;

    #[test]
    fn a_removal_that_comes_late_leaves_the_page_to_who_has_found_it() {
        let directory = std::env::temp_dir().join(format!("hisparse-late-{}", std::process::id()));
        let options = FileTierOptions::new(&directory, 1 << 30, [1; 32]);
        let (tier, _) = FileTier::open(options).unwrap();
        let soon = Deadline::after(Duration::from_secs(60));
        let identity = PageIdentity::from_bytes([2; 32]);
        let page = PageHeader { identity, parent: identity, num_tokens: 64 };
        assert_eq!(tier.put(&page, &[3; 100], soon), Ok(Stored::New));
        let left = Answer::default();
        assert_eq!(left.wait(Deadline::after(Duration::ZERO)), None);
        tier.store.remove(&identity, &left);
        assert_eq!(tier.put(&page, &[3; 100], soon), Ok(Stored::Already));
        let awaited = Answer::default();
        tier.store.remove(&identity, &awaited);
        assert_eq!(awaited.wait(soon), Some(true));
        assert_eq!(tier.holds(&identity, soon), Ok(false));
        drop(tier);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
