//! The names of a sequence's pages, made from the tokens that it was told of.

use crate::error::Result;
use crate::page::PAGE_TOKENS;
use crate::tier::{IdentityChain, PageHeader, PageIdentity};

/// Names of the first pages of one sequence. They end where tokens were not told, and with them
/// what the sequence can share.
#[derive(Debug, Clone)]
pub(crate) struct PageNames {
    chain: IdentityChain,
    identities: Vec<PageIdentity>, // of the full pages
    tail: Vec<u32>,                // tokens from `tail_start` on: the open page, and the one before
    tail_start: u32,
    num_published: usize, // pages, from the first on, that the directory was asked to share
}

impl PageNames {
    /// Names that begin with pages of a prefix, which are shared already.
    pub(crate) fn new(chain: IdentityChain, identities: Vec<PageIdentity>) -> Self {
        let num_published = identities.len();
        let tail_start = tokens_of(num_published);
        Self { chain, identities, tail: Vec::new(), tail_start, num_published }
    }

    /// Tokens that are known, from the first on.
    fn num_tokens(&self) -> u32 {
        self.tail_start + u32::try_from(self.tail.len()).expect("two pages at most")
    }

    /// Tells the tokens from position `start` on; tokens that leave a gap name nothing.
    pub(crate) fn note(&mut self, start: u32, tokens: &[u32]) -> Result<()> {
        if start != self.num_tokens() {
            return Ok(());
        }
        for &token in tokens {
            self.tail.push(token);
            if self.num_tokens().is_multiple_of(PAGE_TOKENS) {
                self.close_page()?;
            }
        }
        Ok(())
    }

    /// Forgets tokens from `length` on. Names end at the last page of which all tokens are known.
    pub(crate) fn truncate(&mut self, length: u32) {
        if length >= self.num_tokens() {
            return;
        }
        self.identities.truncate((length / PAGE_TOKENS) as usize);
        self.num_published = self.num_published.min(self.identities.len());
        if length >= self.tail_start {
            self.tail.truncate((length - self.tail_start) as usize);
        } else {
            self.tail.clear();
            self.tail_start = tokens_of(self.identities.len());
        }
    }

    /// The names of a copy of the first `length` tokens.
    pub(crate) fn fork(&self, length: u32) -> Self {
        let mut copy = self.clone();
        copy.truncate(length);
        copy
    }

    /// The next page to share, if it is full and all of its tokens are known.
    pub(crate) fn next_to_publish(&self, length: u32) -> Option<(usize, PageHeader)> {
        let at = self.num_published;
        let identity = *self.identities.get(at).filter(|_| tokens_of(at + 1) <= length)?;
        let parent = at.checked_sub(1).map_or(self.chain.root(), |before| self.identities[before]);
        Some((at, PageHeader { identity, parent, num_tokens: PAGE_TOKENS }))
    }

    /// The page of [`next_to_publish`](Self::next_to_publish) has been dealt with.
    pub(crate) fn published(&mut self) {
        self.num_published += 1;
    }

    /// The open page is full: it gets its name, and the one before it is settled.
    fn close_page(&mut self) -> Result<()> {
        let page = PAGE_TOKENS as usize;
        let parent = self.identities.last().copied().unwrap_or(self.chain.root());
        let tokens = &self.tail[self.tail.len() - page..];
        self.identities.push(self.chain.page(&parent, tokens)?);
        if self.tail.len() > page {
            self.tail.drain(..page);
            self.tail_start += PAGE_TOKENS;
        }
        Ok(())
    }
}

fn tokens_of(num_pages: usize) -> u32 {
    PAGE_TOKENS * u32::try_from(num_pages).expect("a sequence has fewer than 2^31 tokens")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::TenantKey;

    fn names() -> PageNames {
        let chain = IdentityChain::new(TenantKey::derive(&[1; 32], "a"), "model", "layout");
        PageNames::new(chain, Vec::new())
    }

    fn tokens(count: u32) -> Vec<u32> {
        (0..count).collect()
    }

    #[test]
    fn names_do_not_depend_on_how_tokens_came() {
        let mut once = names();
        once.note(0, &tokens(400)).unwrap();
        assert_eq!(once.identities, once.chain.pages(&tokens(400)).unwrap());
        let mut often = names();
        for at in 0..400 {
            often.note(at, &[at]).unwrap();
        }
        assert_eq!(often.identities, once.identities);
        assert!(often.tail.len() < 128);
    }

    #[test]
    fn a_rejected_token_before_a_page_end_renames_the_page() {
        let mut names = names();
        names.note(0, &tokens(130)).unwrap();
        names.truncate(127);
        assert_eq!(names.identities.len(), 1);
        names.note(127, &[9]).unwrap();
        let mut other = tokens(127);
        other.push(9);
        assert_eq!(names.identities, names.chain.pages(&other).unwrap());
    }

    #[test]
    fn tokens_that_leave_a_gap_name_nothing() {
        let mut names = names();
        names.note(0, &tokens(256)).unwrap();
        names.truncate(70); // the tokens of this page are not kept any more
        names.note(70, &tokens(500)).unwrap();
        assert_eq!((names.identities.len(), names.num_tokens()), (1, 64));
        names.truncate(64);
        names.note(64, &tokens(64)).unwrap();
        assert_eq!(names.identities.len(), 2);
    }

    #[test]
    fn pages_are_shared_in_order_once_they_are_full() {
        let mut names = names();
        names.note(0, &tokens(192)).unwrap();
        assert_eq!(names.next_to_publish(63), None);
        let (at, first) = names.next_to_publish(128).unwrap();
        assert_eq!((at, first.parent), (0, names.chain.root()));
        names.published();
        let (at, second) = names.next_to_publish(128).unwrap();
        assert_eq!((at, second.parent), (1, first.identity));
        names.published();
        assert_eq!(names.next_to_publish(128), None);
        names.truncate(64);
        assert_eq!(names.next_to_publish(64), None);
    }
}
