//! S3-FIFO (Yang et al., SOSP 2023): three queues, no order kept on a hit.
//!
//! New pages wait in a small queue and leave by it unless they are used there; what is used moves
//! to the main queue. A page that comes back soon after it left goes to the main queue at once.

use super::ghost::Ghost;
use super::links::{Links, List, NONE};
use super::{EvictionPolicy, MayEvict, check_held, check_new, check_num_keys};
use crate::error::Result;

/// The small queue gives up pages once it holds a tenth of all.
const SMALL_PARTS: usize = 10;
/// Uses that are counted; more are not.
const MAX_USES: u8 = 3;

/// Place of a queue in `queues`.
const SMALL: u8 = 0;
const MAIN: u8 = 1;

/// Where a page is, or was last, and how often it was used since it came there, in one byte.
#[derive(Debug, Clone, Copy)]
struct Place(u8);

impl Place {
    const QUEUE: u8 = 0b0001;
    const HELD: u8 = 0b0010;
    const USES_FROM_BIT: u32 = 2;
    /// Of a page that was never in a queue.
    const NEVER: Self = Self(SMALL);

    const fn held(queue: u8, uses: u8) -> Self {
        Self(queue | Self::HELD | uses << Self::USES_FROM_BIT)
    }

    const fn queue(self) -> u8 {
        self.0 & Self::QUEUE
    }

    const fn uses(self) -> u8 {
        self.0 >> Self::USES_FROM_BIT
    }

    const fn is_held(self) -> bool {
        self.0 & Self::HELD != 0
    }

    const fn left(self) -> Self {
        Self(self.0 & !Self::HELD)
    }
}

/// Two queues by first in, first out, and the names of what left the small one.
#[derive(Debug, Clone)]
pub struct S3Fifo {
    links: Links,
    queues: [List; 2],
    places: Vec<Place>, // [num_keys]
    names: Vec<u64>,    // [num_keys]
    ghost: Ghost,
}

/// The newest page of each queue that was refused to one pass.
struct Refused {
    small: u32,
    main: u32,
}

impl Refused {
    const fn none() -> Self {
        Self { small: NONE, main: NONE }
    }
}

impl S3Fifo {
    /// A policy for keys below `num_keys`, which remembers as many names.
    pub fn new(num_keys: u32) -> Result<Self> {
        let num_keys = check_num_keys(num_keys)?;
        Ok(Self {
            links: Links::new(num_keys),
            queues: [List::EMPTY; 2],
            places: vec![Place::NEVER; num_keys],
            names: vec![0; num_keys],
            ghost: Ghost::new(num_keys),
        })
    }

    fn queue(&self, queue: u8) -> &List {
        &self.queues[usize::from(queue)]
    }

    fn enter(&mut self, queue: u8, key: u32, uses: u8) {
        self.links.push(&mut self.queues[usize::from(queue)], key);
        self.places[key as usize] = Place::held(queue, uses);
    }

    fn leave(&mut self, key: u32) {
        let place = self.places[key as usize];
        self.links.unlink(&mut self.queues[usize::from(place.queue())], key);
        self.places[key as usize] = place.left();
    }

    fn next(&mut self, refused: &mut Refused, may_evict: MayEvict<'_>) -> Option<u32> {
        let is_small_full = self.queue(SMALL).len * SMALL_PARTS >= self.num_pages();
        if is_small_full {
            self.leave_small(refused, may_evict).or_else(|| self.leave_main(refused, may_evict))
        } else {
            self.leave_main(refused, may_evict).or_else(|| self.leave_small(refused, may_evict))
        }
    }

    /// The oldest page that was never used; used ones move on to the main queue.
    fn leave_small(&mut self, refused: &mut Refused, may_evict: MayEvict<'_>) -> Option<u32> {
        loop {
            let key = self.links.after(self.queue(SMALL), refused.small)?;
            if self.places[key as usize].uses() > 0 {
                self.leave(key);
                self.enter(MAIN, key, 0);
            } else if may_evict(key) {
                self.leave(key);
                self.ghost.remember(self.names[key as usize]);
                return Some(key);
            } else {
                refused.small = key;
            }
        }
    }

    /// The oldest page without uses; each use buys one more round.
    fn leave_main(&mut self, refused: &mut Refused, may_evict: MayEvict<'_>) -> Option<u32> {
        loop {
            let key = self.links.after(self.queue(MAIN), refused.main)?;
            let uses = self.places[key as usize].uses();
            if uses > 0 {
                self.leave(key);
                self.enter(MAIN, key, uses - 1);
            } else if may_evict(key) {
                self.leave(key);
                return Some(key);
            } else {
                refused.main = key;
            }
        }
    }
}

impl EvictionPolicy for S3Fifo {
    fn inserted(&mut self, key: u32, _parent: Option<u32>, name: u64) -> Result<()> {
        check_new(self, key, self.places.len())?;
        self.names[key as usize] = name;
        let queue = if self.ghost.recall(name) { MAIN } else { SMALL };
        self.enter(queue, key, 0);
        Ok(())
    }

    fn touched(&mut self, key: u32) -> Result<()> {
        check_held(self, key, true)?;
        let place = &mut self.places[key as usize];
        *place = Place::held(place.queue(), MAX_USES.min(place.uses() + 1));
        Ok(())
    }

    fn removed(&mut self, key: u32) -> Result<()> {
        check_held(self, key, true)?;
        self.leave(key);
        Ok(())
    }

    fn victim(&mut self, may_evict: MayEvict<'_>) -> Option<u32> {
        self.next(&mut Refused::none(), may_evict)
    }

    fn victims(&mut self, count: usize, may_evict: MayEvict<'_>, victims: &mut Vec<u32>) {
        let mut refused = Refused::none();
        victims.extend((0..count).map_while(|_| self.next(&mut refused, may_evict)));
    }

    fn restore(&mut self, gone: &[u32]) {
        for &key in gone.iter().rev() {
            let place = self.places[key as usize];
            self.links.push_oldest(&mut self.queues[usize::from(place.queue())], key);
            self.places[key as usize] = Place::held(place.queue(), place.uses());
            self.ghost.recall(self.names[key as usize]);
        }
    }

    fn holds(&self, key: u32) -> bool {
        self.places.get(key as usize).is_some_and(|place| place.is_held())
    }

    fn num_pages(&self) -> usize {
        self.queue(SMALL).len + self.queue(MAIN).len
    }
}
