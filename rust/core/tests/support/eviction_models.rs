//! Eviction policies by their definitions, over plain vectors.

use std::collections::{HashSet, VecDeque};

/// Names that S3-FIFO remembers; its policy has as many keys.
pub(crate) const NUM_KEYS: u32 = 24;

/// A policy by its definition.
pub(crate) trait Model {
    fn insert(&mut self, key: u32, parent: Option<u32>, name: u64);
    fn touch(&mut self, key: u32);
    fn remove(&mut self, key: u32);
    fn victim(&mut self, pinned: &HashSet<u32>) -> Option<u32>;
    fn held(&self) -> Vec<u32>;
}

/// Keys, least recently used first.
#[derive(Default)]
pub(crate) struct LruModel(Vec<u32>);

impl Model for LruModel {
    fn insert(&mut self, key: u32, _parent: Option<u32>, _name: u64) {
        self.0.push(key);
    }

    fn touch(&mut self, key: u32) {
        self.remove(key);
        self.0.push(key);
    }

    fn remove(&mut self, key: u32) {
        self.0.retain(|&other| other != key);
    }

    fn victim(&mut self, pinned: &HashSet<u32>) -> Option<u32> {
        let at = self.0.iter().position(|key| !pinned.contains(key))?;
        Some(self.0.remove(at))
    }

    fn held(&self) -> Vec<u32> {
        self.0.clone()
    }
}

/// Pages as (key, name, uses), oldest first, and the names that left the small queue.
#[derive(Default)]
pub(crate) struct S3FifoModel {
    small: Vec<(u32, u64, u8)>,
    main: Vec<(u32, u64, u8)>,
    ghost: VecDeque<Option<u64>>, // None = the name came back; it still takes its place
}

impl S3FifoModel {
    fn leave_small(&mut self, pinned: &HashSet<u32>) -> Option<u32> {
        let mut at = 0;
        while at < self.small.len() {
            let (key, name, uses) = self.small[at];
            if uses > 0 {
                self.small.remove(at);
                self.main.push((key, name, 0));
            } else if pinned.contains(&key) {
                at += 1;
            } else {
                self.small.remove(at);
                self.remember(name);
                return Some(key);
            }
        }
        None
    }

    fn leave_main(&mut self, pinned: &HashSet<u32>) -> Option<u32> {
        let mut at = 0;
        while at < self.main.len() {
            let (key, name, uses) = self.main[at];
            if uses > 0 {
                self.main.remove(at);
                self.main.push((key, name, uses - 1));
            } else if pinned.contains(&key) {
                at += 1;
            } else {
                self.main.remove(at);
                return Some(key);
            }
        }
        None
    }

    fn remember(&mut self, name: u64) {
        self.ghost.iter_mut().filter(|old| **old == Some(name)).for_each(|old| *old = None);
        if self.ghost.len() == NUM_KEYS as usize {
            self.ghost.pop_front();
        }
        self.ghost.push_back(Some(name));
    }
}

impl Model for S3FifoModel {
    fn insert(&mut self, key: u32, _parent: Option<u32>, name: u64) {
        let old = self.ghost.iter_mut().find(|old| **old == Some(name));
        let queue = if old.is_some() { &mut self.main } else { &mut self.small };
        queue.push((key, name, 0));
        if let Some(old) = old {
            *old = None;
        }
    }

    fn touch(&mut self, key: u32) {
        let pages = self.small.iter_mut().chain(&mut self.main);
        pages.filter(|page| page.0 == key).for_each(|page| page.2 = (page.2 + 1).min(3));
    }

    fn remove(&mut self, key: u32) {
        self.small.retain(|page| page.0 != key);
        self.main.retain(|page| page.0 != key);
    }

    fn victim(&mut self, pinned: &HashSet<u32>) -> Option<u32> {
        if self.small.len() * 10 >= self.small.len() + self.main.len() {
            self.leave_small(pinned).or_else(|| self.leave_main(pinned))
        } else {
            self.leave_main(pinned).or_else(|| self.leave_small(pinned))
        }
    }

    fn held(&self) -> Vec<u32> {
        self.small.iter().chain(&self.main).map(|page| page.0).collect()
    }
}

/// Pages as (key, parent), least recently used first.
#[derive(Default)]
pub(crate) struct LeafFirstModel(Vec<(u32, Option<u32>)>);

impl LeafFirstModel {
    fn is_leaf(&self, key: u32) -> bool {
        self.0.iter().all(|page| page.1 != Some(key))
    }
}

impl Model for LeafFirstModel {
    fn insert(&mut self, key: u32, parent: Option<u32>, _name: u64) {
        self.0.push((key, parent));
    }

    fn touch(&mut self, key: u32) {
        let at = self.0.iter().position(|page| page.0 == key).expect("the key is held");
        let page = self.0.remove(at);
        self.0.push(page);
    }

    fn remove(&mut self, key: u32) {
        self.0.retain(|page| page.0 != key);
        self.0.iter_mut().filter(|page| page.1 == Some(key)).for_each(|page| page.1 = None);
    }

    fn victim(&mut self, pinned: &HashSet<u32>) -> Option<u32> {
        let may_go = |&(key, _): &(u32, _)| !pinned.contains(&key) && self.is_leaf(key);
        let key = self.0.iter().copied().find(may_go)?.0;
        self.remove(key);
        Some(key)
    }

    fn held(&self) -> Vec<u32> {
        self.0.iter().map(|page| page.0).collect()
    }
}
