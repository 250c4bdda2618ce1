//! Lists of keys that are linked by position: no page is in two lists, so two vectors hold all.

/// No key.
pub(super) const NONE: u32 = u32::MAX;

/// The links of every key; a key that is in no list has none.
#[derive(Debug, Clone)]
pub(super) struct Links {
    newer: Vec<u32>, // [num_keys], NONE = newest
    older: Vec<u32>, // [num_keys], NONE = oldest
}

/// One list, from the oldest key to the newest.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    oldest: u32,
    newest: u32,
    pub(super) len: usize,
}

impl List {
    pub(super) const EMPTY: Self = Self { oldest: NONE, newest: NONE, len: 0 };
}

impl Links {
    pub(super) fn new(num_keys: usize) -> Self {
        Self { newer: vec![NONE; num_keys], older: vec![NONE; num_keys] }
    }

    pub(super) fn push(&mut self, list: &mut List, key: u32) {
        self.older[key as usize] = list.newest;
        self.newer[key as usize] = NONE;
        match list.newest {
            NONE => list.oldest = key,
            newest => self.newer[newest as usize] = key,
        }
        list.newest = key;
        list.len += 1;
    }

    /// Adds `key` as the oldest.
    pub(super) fn push_oldest(&mut self, list: &mut List, key: u32) {
        self.newer[key as usize] = list.oldest;
        self.older[key as usize] = NONE;
        match list.oldest {
            NONE => list.newest = key,
            oldest => self.older[oldest as usize] = key,
        }
        list.oldest = key;
        list.len += 1;
    }

    /// Undoes the last [`unlink`](Self::unlink): a key that is in no list remembers its neighbours.
    pub(super) fn relink(&mut self, list: &mut List, key: u32) {
        let (older, newer) = (self.older[key as usize], self.newer[key as usize]);
        match older {
            NONE => list.oldest = key,
            older => self.newer[older as usize] = key,
        }
        match newer {
            NONE => list.newest = key,
            newer => self.older[newer as usize] = key,
        }
        list.len += 1;
    }

    /// Takes `key` out of the list that it is in.
    pub(super) fn unlink(&mut self, list: &mut List, key: u32) {
        let (older, newer) = (self.older[key as usize], self.newer[key as usize]);
        match older {
            NONE => list.oldest = newer,
            older => self.newer[older as usize] = newer,
        }
        match newer {
            NONE => list.newest = older,
            newer => self.older[newer as usize] = older,
        }
        list.len -= 1;
    }

    /// The oldest key of the list that is newer than `key`; the oldest of all after [`NONE`].
    pub(super) fn after(&self, list: &List, key: u32) -> Option<u32> {
        let next = if key == NONE { list.oldest } else { self.newer[key as usize] };
        (next != NONE).then_some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(links: &Links, list: &List) -> Vec<u32> {
        let mut key = NONE;
        std::iter::from_fn(|| {
            let next = links.after(list, key)?;
            key = next;
            Some(key)
        })
        .collect()
    }

    #[test]
    fn a_list_keeps_the_order_of_its_pushes() {
        let (mut links, mut list) = (Links::new(5), List::EMPTY);
        for key in [3, 0, 4, 1] {
            links.push(&mut list, key);
        }
        assert_eq!(keys(&links, &list), [3, 0, 4, 1]);
        links.unlink(&mut list, 0);
        links.unlink(&mut list, 3);
        links.unlink(&mut list, 1);
        links.push(&mut list, 3);
        assert_eq!((keys(&links, &list), list.len), (vec![4, 3], 2));
    }
}
