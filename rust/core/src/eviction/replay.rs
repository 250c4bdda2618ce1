//! Runs a trace through a policy: what a tier of so many pages would have hit.

use std::time::{Duration, Instant};

use super::EvictionPolicy;
use super::trace::Request;
use crate::error::{Result, check_range};
use crate::split_mix::mix;

/// No key, and no page.
const NONE: u32 = u32::MAX;

/// What a replay came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Requests of the trace.
    pub requests: u64,
    /// Requests for a page that the tier had, together with every page before it.
    pub hits: u64,
    /// Pages that had to go.
    pub evicted: u64,
    /// Pages that found no room, for every page held was in use by the same turn.
    pub turned_away: u64,
    /// How long all of it took.
    pub elapsed: Duration,
}

/// The tier that a replay pretends to have.
struct Tier<'a> {
    policy: &'a mut dyn EvictionPolicy,
    key_of: Vec<u32>,    // [num_pages], NONE = not held
    page_in: Vec<u32>,   // [capacity], NONE = free
    used_by: Vec<u32>,   // [capacity], sequence of the last use
    is_whole: Vec<bool>, // [num_pages], the last request for it was a hit
    free: Vec<u32>,
    done: Replayed,
}

/// Replays `requests` on a tier of `capacity_pages`; pages that a turn has used do not go in it.
pub fn replay(
    policy: &mut dyn EvictionPolicy,
    capacity_pages: u32,
    requests: &[Request],
) -> Result<Replayed> {
    check_range("capacity_pages", capacity_pages, 1, super::MAX_KEYS)?;
    let num_pages = requests.iter().map(|request| request.page as usize + 1).max().unwrap_or(0);
    let mut tier = Tier {
        policy,
        key_of: vec![NONE; num_pages],
        page_in: vec![NONE; capacity_pages as usize],
        used_by: vec![NONE; capacity_pages as usize],
        is_whole: vec![false; num_pages],
        free: (0..capacity_pages).rev().collect(),
        done: Replayed::default(),
    };
    let start = Instant::now();
    requests.iter().try_for_each(|request| tier.serve(request))?;
    Ok(Replayed { elapsed: start.elapsed(), ..tier.done })
}

impl Tier<'_> {
    fn serve(&mut self, request: &Request) -> Result<()> {
        self.done.requests += 1;
        let key = self.key_of[request.page as usize];
        let has_prefix = request.parent.is_none_or(|parent| self.is_whole[parent as usize]);
        let is_hit = key != NONE && has_prefix;
        self.is_whole[request.page as usize] = is_hit;
        self.done.hits += u64::from(is_hit);
        if key == NONE {
            return self.load(request);
        }
        self.used_by[key as usize] = request.sequence;
        self.policy.touched(key)
    }

    fn load(&mut self, request: &Request) -> Result<()> {
        let Some(key) = self.free.pop().or_else(|| self.evict(request.sequence)) else {
            self.done.turned_away += 1;
            return Ok(());
        };
        self.key_of[request.page as usize] = key;
        self.page_in[key as usize] = request.page;
        self.used_by[key as usize] = request.sequence;
        let parent = request.parent.map(|parent| self.key_of[parent as usize]);
        let parent = parent.filter(|&parent| parent != NONE);
        self.policy.inserted(key, parent, mix(request.page.into()))
    }

    fn evict(&mut self, sequence: u32) -> Option<u32> {
        let used_by = &self.used_by;
        let key = self.policy.victim(&|key| used_by[key as usize] != sequence)?;
        self.key_of[self.page_in[key as usize] as usize] = NONE;
        self.done.evicted += 1;
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Lru;
    use super::*;

    fn request(sequence: u32, page: u32, parent: Option<u32>) -> Request {
        Request { sequence, page, parent }
    }

    #[test]
    fn a_page_whose_prefix_is_gone_is_no_hit() {
        let mut policy = Lru::new(2).unwrap();
        let requests = [
            request(0, 0, None),
            request(0, 1, Some(0)),
            request(1, 2, None), // page 0 goes
            request(2, 0, None), // page 1 goes, it is older than 2
            request(2, 1, Some(0)),
            request(3, 0, None),
            request(3, 1, Some(0)),
        ];
        let done = replay(&mut policy, 2, &requests).unwrap();
        assert_eq!((done.requests, done.hits, done.evicted, done.turned_away), (7, 2, 3, 0));
    }

    #[test]
    fn a_turn_that_fills_the_tier_turns_its_own_pages_away() {
        let mut policy = Lru::new(2).unwrap();
        let requests = [0, 1, 2, 3].map(|page| request(0, page, page.checked_sub(1)));
        let done = replay(&mut policy, 2, &requests).unwrap();
        assert_eq!((done.hits, done.evicted, done.turned_away), (0, 0, 2));
    }
}
