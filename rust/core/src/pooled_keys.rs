//! Which blocks of a sequence have a pooled key: per anchor, how many tokens have been folded in.
//!
//! Tokens fold in ascending order, so one count says it all: whole blocks are closed and the rest
//! is open. A rollback may reopen a closed block; its sum is then made again from stored rows.

use crate::error::{Result, check_range};
use crate::layout::check_index;
use crate::page::PAGE_TOKENS;

const MAX_BLOCK_TOKENS: u32 = 1 << 16;

/// What one [`PooledKeys::advance`] closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedBlocks {
    /// First block that this call closed, or the open block if it closed none.
    pub first_block: u32,
    /// Blocks that this call closed.
    pub num_blocks: u32,
    /// Tokens in the open block now.
    pub open_tokens: u32,
}

/// Pooled-key metadata of one sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PooledKeys {
    block_tokens: u32,
    folded_tokens: Vec<u32>, // [num_anchors]
}

impl PooledKeys {
    /// No token folded in. `block_tokens` is a multiple of the page, up to 65,536.
    pub fn new(num_anchors: usize, block_tokens: u32) -> Result<Self> {
        check_block_tokens(block_tokens)?;
        Ok(Self { block_tokens, folded_tokens: vec![0; num_anchors] })
    }

    /// The first `length` tokens folded in: their pooled keys came with their pages.
    pub fn restored(num_anchors: usize, block_tokens: u32, length: u32) -> Result<Self> {
        check_block_tokens(block_tokens)?;
        Ok(Self { block_tokens, folded_tokens: vec![length; num_anchors] })
    }

    /// Tokens that every anchor has folded in.
    pub fn num_folded(&self, length: u32) -> u32 {
        self.folded_tokens.iter().copied().min().unwrap_or(length)
    }

    /// Closed blocks and tokens in the open block.
    pub fn state(&self, anchor: usize) -> Result<(u32, u32)> {
        check_index("anchor", anchor, self.folded_tokens.len())?;
        let folded = self.folded_tokens[anchor];
        Ok((folded / self.block_tokens, folded % self.block_tokens))
    }

    /// Folds the next `num_tokens` tokens in; the sequence has `length` tokens.
    pub fn advance(&mut self, anchor: usize, num_tokens: u32, length: u32) -> Result<ClosedBlocks> {
        check_index("anchor", anchor, self.folded_tokens.len())?;
        let old = self.folded_tokens[anchor];
        check_range("num_tokens", num_tokens, 1, u32::MAX)?;
        let end = u64::from(old) + u64::from(num_tokens);
        check_range("end of the folded tokens", end, 1, u64::from(length))?;
        let new = old + num_tokens;
        self.folded_tokens[anchor] = new;
        let first_block = old / self.block_tokens;
        let num_blocks = new / self.block_tokens - first_block;
        Ok(ClosedBlocks { first_block, num_blocks, open_tokens: new % self.block_tokens })
    }

    /// Forgets tokens from `length` on, for every anchor; a closed block may reopen.
    pub fn truncate(&mut self, length: u32) {
        for folded in &mut self.folded_tokens {
            *folded = length.min(*folded);
        }
    }

    /// The metadata of a copy of the first `length` tokens.
    #[must_use]
    pub fn fork(&self, length: u32) -> Self {
        let mut copy = self.clone();
        copy.truncate(length);
        copy
    }

    /// No anchor has folded a token that the sequence does not have.
    pub fn check_integrity(&self, length: u32) -> Result<()> {
        let check = |&folded| check_range("tokens folded by an anchor", folded, 0, length);
        self.folded_tokens.iter().try_for_each(check)
    }
}

/// Refuses a block that is not made of whole pages.
pub(crate) fn check_block_tokens(block_tokens: u32) -> Result<()> {
    check_range("block_tokens", block_tokens, PAGE_TOKENS, MAX_BLOCK_TOKENS)?;
    if block_tokens.is_multiple_of(PAGE_TOKENS) {
        return Ok(());
    }
    let (found, unit) = (u64::from(block_tokens), u64::from(PAGE_TOKENS));
    Err(crate::error::Error::NotAMultiple { what: "block_tokens", found, unit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_advance_may_close_several_blocks() {
        let mut keys = PooledKeys::new(2, 128).unwrap();
        keys.advance(1, 100, 1000).unwrap();
        let closed = keys.advance(1, 300, 1000).unwrap();
        assert_eq!(closed, ClosedBlocks { first_block: 0, num_blocks: 3, open_tokens: 16 });
        assert_eq!((keys.state(0), keys.state(1)), (Ok((0, 0)), Ok((3, 16))));
    }

    #[test]
    fn a_rollback_reopens_a_closed_block() {
        let mut keys = PooledKeys::new(1, 64).unwrap();
        keys.advance(0, 129, 129).unwrap();
        keys.truncate(127);
        assert_eq!(keys.state(0), Ok((1, 63)));
        let closed = keys.advance(0, 1, 128).unwrap();
        assert_eq!(closed, ClosedBlocks { first_block: 1, num_blocks: 1, open_tokens: 0 });
    }

    #[test]
    fn folding_beyond_the_sequence_is_refused() {
        let mut keys = PooledKeys::new(1, 64).unwrap();
        keys.advance(0, 5, 6).unwrap();
        let error = keys.advance(0, 2, 6).unwrap_err();
        assert_eq!(error.to_string(), "end of the folded tokens: found 7, needed 1 to 6");
        assert_eq!(keys.state(0), Ok((0, 5)));
        let error = keys.advance(1, 1, 6).unwrap_err();
        assert_eq!(error.to_string(), "anchor: found 1, needed 0 to 0");
    }

    #[test]
    fn a_block_is_made_of_whole_pages() {
        let error = PooledKeys::new(1, 100).unwrap_err();
        assert_eq!(error.to_string(), "block_tokens: found 100, needed a multiple of 64");
        assert!(PooledKeys::new(1, 0).is_err());
    }
}
