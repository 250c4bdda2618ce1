//! Least recently used first.

use super::links::{Links, List, NONE};
use super::{EvictionPolicy, MayEvict, check_held, check_new, check_num_keys};
use crate::error::Result;

/// The page that was used longest ago goes first; an insertion is a use.
#[derive(Debug, Clone)]
pub struct Lru {
    links: Links,
    list: List,
    held: Vec<bool>,
}

impl Lru {
    /// A policy for keys below `num_keys`.
    pub fn new(num_keys: u32) -> Result<Self> {
        let num_keys = check_num_keys(num_keys)?;
        Ok(Self { links: Links::new(num_keys), list: List::EMPTY, held: vec![false; num_keys] })
    }

    fn forget(&mut self, key: u32) {
        self.links.unlink(&mut self.list, key);
        self.held[key as usize] = false;
    }

    /// The oldest page that may go of those newer than `refused`, which then names the last refused.
    fn next(&mut self, refused: &mut u32, may_evict: MayEvict<'_>) -> Option<u32> {
        loop {
            let key = self.links.after(&self.list, *refused)?;
            if may_evict(key) {
                self.forget(key);
                return Some(key);
            }
            *refused = key;
        }
    }
}

impl EvictionPolicy for Lru {
    fn inserted(&mut self, key: u32, _parent: Option<u32>, _name: u64) -> Result<()> {
        check_new(self, key, self.held.len())?;
        self.held[key as usize] = true;
        self.links.push(&mut self.list, key);
        Ok(())
    }

    fn touched(&mut self, key: u32) -> Result<()> {
        check_held(self, key, true)?;
        self.links.unlink(&mut self.list, key);
        self.links.push(&mut self.list, key);
        Ok(())
    }

    fn removed(&mut self, key: u32) -> Result<()> {
        check_held(self, key, true)?;
        self.forget(key);
        Ok(())
    }

    fn victim(&mut self, may_evict: MayEvict<'_>) -> Option<u32> {
        self.next(&mut NONE.clone(), may_evict)
    }

    fn victims(&mut self, count: usize, may_evict: MayEvict<'_>, victims: &mut Vec<u32>) {
        let mut refused = NONE;
        victims.extend((0..count).map_while(|_| self.next(&mut refused, may_evict)));
    }

    fn restore(&mut self, gone: &[u32]) {
        for &key in gone.iter().rev() {
            self.links.relink(&mut self.list, key);
            self.held[key as usize] = true;
        }
    }

    fn holds(&self, key: u32) -> bool {
        self.held.get(key as usize).is_some_and(|&held| held)
    }

    fn num_pages(&self) -> usize {
        self.list.len
    }
}
