//! Leaves before parents: a page without the pages before it is of no use to anyone.

use super::leaf_heap::LeafHeap;
use super::links::NONE;
use super::{EvictionPolicy, MayEvict, check_held, check_new, check_num_keys};
use crate::error::Result;

/// The least recently used of the pages that no held page continues goes first.
///
/// A page that may not go keeps every page before it. Where the owner removes a page, those that
/// continue it stay, as roots.
#[derive(Debug, Clone)]
pub struct LeafFirst {
    pages: Vec<Page>,
    stamps: Vec<u64>, // [num_keys], time of the last use
    leaves: LeafHeap,
    refused: Vec<u32>, // leaves that were put aside during a pass; empty between calls
    clock: u64,
    num_pages: usize,
}

/// Where one page stands in the forest.
#[derive(Debug, Clone, Copy)]
struct Page {
    is_held: bool,
    /// Counts the lives of the key, so that a parent's key in a new life is not taken for it.
    life: u32,
    parent: u32, // NONE = root
    parent_life: u32,
    num_children: u32,
}

impl LeafFirst {
    /// A policy for keys below `num_keys`.
    pub fn new(num_keys: u32) -> Result<Self> {
        let num_keys = check_num_keys(num_keys)?;
        let page = Page { is_held: false, life: 0, parent: NONE, parent_life: 0, num_children: 0 };
        Ok(Self {
            pages: vec![page; num_keys],
            stamps: vec![0; num_keys],
            leaves: LeafHeap::new(num_keys),
            refused: Vec::with_capacity(num_keys),
            clock: 0,
            num_pages: 0,
        })
    }

    fn stamp(&mut self, key: u32) {
        self.clock += 1;
        self.stamps[key as usize] = self.clock;
    }

    /// Counts one child more; a leaf that gets one is a leaf no longer.
    fn adopt(&mut self, parent: Option<u32>) -> (u32, u32) {
        let Some(parent) = parent else { return (NONE, 0) };
        let page = &mut self.pages[parent as usize];
        page.num_children += 1;
        self.leaves.take(parent, &self.stamps);
        (parent, page.life)
    }

    /// Forgets a page; its parent may become a leaf.
    fn forget(&mut self, key: u32) {
        self.leaves.take(key, &self.stamps);
        let page = &mut self.pages[key as usize];
        let (parent, parent_life) = (page.parent, page.parent_life);
        page.is_held = false;
        page.life = page.life.wrapping_add(1);
        self.num_pages -= 1;
        let Some(above) = self.pages.get_mut(parent as usize) else { return };
        if above.life == parent_life {
            above.num_children -= 1;
            if above.num_children == 0 {
                self.leaves.push(parent, &self.stamps);
            }
        }
    }

    /// Undoes the last [`forget`](Self::forget).
    fn remember(&mut self, key: u32) {
        let page = &mut self.pages[key as usize];
        page.is_held = true;
        page.life = page.life.wrapping_sub(1);
        self.num_pages += 1;
        let Page { parent, parent_life, num_children, .. } = *page;
        if num_children == 0 {
            self.leaves.push(key, &self.stamps);
        }
        let Some(above) = self.pages.get_mut(parent as usize) else { return };
        if above.life == parent_life {
            above.num_children += 1;
            self.leaves.take(parent, &self.stamps);
        }
    }

    /// The oldest leaf that may go; leaves that may not are put aside.
    fn next(&mut self, may_evict: MayEvict<'_>) -> Option<u32> {
        loop {
            let key = self.leaves.oldest()?;
            if may_evict(key) {
                self.forget(key);
                return Some(key);
            }
            self.leaves.take(key, &self.stamps);
            self.refused.push(key);
        }
    }

    fn put_back_refused(&mut self) {
        while let Some(key) = self.refused.pop() {
            self.leaves.push(key, &self.stamps);
        }
    }
}

impl EvictionPolicy for LeafFirst {
    fn inserted(&mut self, key: u32, parent: Option<u32>, _name: u64) -> Result<()> {
        check_new(self, key, self.pages.len())?;
        parent.map_or(Ok(()), |parent| check_held(self, parent, true))?;
        let (parent, parent_life) = self.adopt(parent);
        let page = &mut self.pages[key as usize];
        *page = Page { is_held: true, life: page.life, parent, parent_life, num_children: 0 };
        self.num_pages += 1;
        self.stamp(key);
        self.leaves.push(key, &self.stamps);
        Ok(())
    }

    fn touched(&mut self, key: u32) -> Result<()> {
        check_held(self, key, true)?;
        self.stamp(key);
        self.leaves.aged_less(key, &self.stamps);
        Ok(())
    }

    fn removed(&mut self, key: u32) -> Result<()> {
        check_held(self, key, true)?;
        self.forget(key);
        Ok(())
    }

    fn victim(&mut self, may_evict: MayEvict<'_>) -> Option<u32> {
        let victim = self.next(may_evict);
        self.put_back_refused();
        victim
    }

    fn victims(&mut self, count: usize, may_evict: MayEvict<'_>, victims: &mut Vec<u32>) {
        victims.extend((0..count).map_while(|_| self.next(may_evict)));
        self.put_back_refused();
    }

    fn restore(&mut self, gone: &[u32]) {
        gone.iter().rev().for_each(|&key| self.remember(key));
    }

    fn holds(&self, key: u32) -> bool {
        self.pages.get(key as usize).is_some_and(|page| page.is_held)
    }

    fn num_pages(&self) -> usize {
        self.num_pages
    }
}
