//! A manager, a lower tier that is a map, and what every sequence should read.

use std::collections::HashMap;

use hisparse_core::prefix::{Held, LowerTier, Promotion};
use hisparse_core::tier::PageIdentity;
use hisparse_core::{Error, ErrorKind, PAGE_TOKENS, SequenceHandle};
use proptest::sample::Index;

use crate::support::{DEVICE, Host, NUM_ANCHORS, SHAPE};

pub(crate) const NUM_PROMPTS: usize = 6;
const TENANTS: [&str; 3] = ["", "a", "b"];
const PAGE: usize = PAGE_TOKENS as usize;
const NO_VALUE: u64 = 0xdead; // what a page holds after it was given to another use

struct Sequence {
    handle: SequenceHandle,
    prompt: usize,
    tokens: Vec<u32>,
    values: Vec<u64>,
    admitted: u32,
    rests: bool,
}

impl Sequence {
    fn length(&self) -> u32 {
        length(&self.values)
    }
}

fn length<T>(values: &[T]) -> u32 {
    u32::try_from(values.len()).expect("a short sequence")
}

pub(crate) struct Run {
    host: Host,
    sequences: Vec<Sequence>,
    below: HashMap<PageIdentity, Vec<u64>>,
    next_value: u64,
    next_token: u32,
}

/// Prompts of one tenant begin alike.
fn prompt(number: usize, num_tokens: u32) -> Vec<u32> {
    let own = u32::try_from(1000 * (1 + number)).expect("small");
    (0..num_tokens).map(|at| if at < 150 { at } else { own + at }).collect()
}

impl Run {
    pub(crate) fn new() -> Self {
        let host = Host::new();
        host.manager.add_tenant("a", 16).expect("a new tenant");
        host.manager.add_tenant("b", 24).expect("a new tenant");
        let (sequences, below) = (Vec::new(), HashMap::new());
        Self { host, sequences, below, next_value: 1, next_token: 1 << 20 }
    }

    pub(crate) fn pick_active(&self) -> Vec<usize> {
        let places = 0..self.sequences.len();
        places.filter(|&at| !self.sequences[at].rests).collect()
    }

    pub(crate) fn open(&mut self, number: usize, num_tokens: u32, max_new: u32) {
        let tokens = prompt(number, num_tokens);
        let matched = self.host.manager.match_prompt(TENANTS[number % 3], &tokens);
        let matched = matched.expect("a known tenant");
        let num_pages =
            self.bring_up(|| matched.lease().promote(0..matched.lease().found().len(), 0));
        let readable = matched.lease().pages(0).expect("it lives");
        let num_held = readable.iter().take_while(|page| matches!(page, Held::Host(_))).count();
        assert!(num_pages.is_err() || num_held <= readable.len());
        match self.host.manager.open_prompt(&matched, num_held, max_new, DEVICE) {
            Ok(handle) => {
                self.opened(handle, number, &tokens[..num_held * PAGE], num_tokens + max_new);
            }
            Err(error) => assert_full(&error),
        }
    }

    /// What the sequence found has to be what somebody wrote for these very tokens.
    fn opened(&mut self, handle: SequenceHandle, prompt: usize, tokens: &[u32], admitted: u32) {
        assert_eq!(self.host.manager.length(handle), Ok(length(tokens)));
        let pages = self.host.manager.host_pages(handle).expect("it is open");
        let read = |at| self.host.read_token(&pages, at);
        let values: Vec<u64> = (0..length(tokens)).map(read).collect();
        for (at, &value) in values.iter().enumerate() {
            let found = (value >> 40, value >> 32 & 0xff, value & 0xffff_ffff);
            let tenant = (prompt % 3) as u64;
            assert_eq!(found.1, tenant, "another tenant's row at {at}");
            assert_eq!(found.2, u64::from(tokens[at]), "another token's row at {at}");
        }
        let (tokens, rests) = (tokens.to_vec(), false);
        self.sequences.push(Sequence { handle, prompt, tokens, values, admitted, rests });
    }

    /// Writes rows, folds them in and shares the pages. A value says who wrote it, for whom, and
    /// for which token.
    pub(crate) fn append(&mut self, at: usize, num_tokens: u32, are_told: bool) {
        let Self { host, sequences, next_value, next_token, .. } = self;
        let sequence = &mut sequences[at];
        let start = sequence.length();
        let num_tokens = num_tokens.min(sequence.admitted - start);
        if num_tokens == 0 {
            return;
        }
        assert_eq!(host.manager.append(sequence.handle, num_tokens), Ok(start));
        let pages = host.manager.host_pages(sequence.handle).expect("it is open");
        let follows = sequence.tokens == prompt(sequence.prompt, start);
        for position in start..start + num_tokens {
            *next_token += 1;
            let from_prompt = prompt(sequence.prompt, position + 1)[position as usize];
            let token = if follows { from_prompt } else { *next_token };
            let tenant = (sequence.prompt % 3) as u64;
            let value = *next_value << 40 | tenant << 32 | u64::from(token);
            host.write_token(&pages, position, value);
            sequence.tokens.push(token);
            sequence.values.push(value);
        }
        *next_value += 1;
        for anchor in 0..NUM_ANCHORS {
            host.manager.advance_pooled(sequence.handle, anchor, num_tokens).expect("appended");
        }
        if are_told {
            let told = &sequence.tokens[start as usize..];
            host.manager.note_tokens(sequence.handle, start, told).expect("within its length");
        }
        host.manager.publish(sequence.handle).expect("it is active");
    }

    pub(crate) fn truncate(&mut self, at: usize, num_tokens: u32) {
        let sequence = &mut self.sequences[at];
        let keep = sequence.length().saturating_sub(num_tokens);
        match self.host.manager.truncate(sequence.handle, keep) {
            Ok(()) => {
                sequence.tokens.truncate(keep as usize);
                sequence.values.truncate(keep as usize);
            }
            Err(error) => assert_full(&error),
        }
    }

    pub(crate) fn fork(&mut self, at: usize, length: Index, max_new: u32) {
        let parent = &self.sequences[at];
        let length = u32::try_from(length.index(parent.values.len() + 1)).expect("short");
        match self.host.manager.fork(parent.handle, length, max_new, DEVICE) {
            Ok(handle) => {
                let fork = Sequence {
                    handle,
                    prompt: parent.prompt,
                    tokens: parent.tokens[..length as usize].to_vec(),
                    values: parent.values[..length as usize].to_vec(),
                    admitted: length + max_new,
                    rests: false,
                };
                self.sequences.push(fork);
            }
            Err(error) => assert_full(&error),
        }
    }

    pub(crate) fn close(&mut self, pick: Index) {
        if self.sequences.is_empty() {
            return;
        }
        let sequence = self.sequences.swap_remove(pick.index(self.sequences.len()));
        self.host.manager.close(sequence.handle).expect("it is open");
    }

    pub(crate) fn preempt(&mut self, at: usize) {
        let sequence = &mut self.sequences[at];
        match self.host.manager.preempt(sequence.handle) {
            Ok(()) => sequence.rests = true,
            Err(error) => assert_eq!(error.kind(), ErrorKind::TierFull, "no entry: {error}"),
        }
        let error = self.host.manager.append(sequence.handle, 1);
        assert_eq!(error.is_err(), sequence.rests || sequence.length() == sequence.admitted);
        if error.is_ok() {
            self.host.manager.truncate(sequence.handle, sequence.length()).expect("just grown");
        }
    }

    /// Brings everything back that some tier has; what is lost costs the rest of the sequence.
    pub(crate) fn resume(&mut self, pick: Index) {
        let places = 0..self.sequences.len();
        let resting: Vec<usize> = places.filter(|&at| self.sequences[at].rests).collect();
        if resting.is_empty() {
            return;
        }
        let at = *pick.get(&resting);
        let handle = self.sequences[at].handle;
        let lease = self.host.manager.lease_resting(handle).expect("it rests");
        let num_pages = lease.found().len();
        if let Err(error) = self.bring_up(|| lease.promote(0..num_pages, 0)) {
            return assert_full(&error);
        }
        let pages = lease.pages(0).expect("it lives");
        let num_held = pages.iter().take_while(|page| matches!(page, Held::Host(_))).count();
        let sequence = &mut self.sequences[at];
        let expected = sequence.length().min(length(&pages[..num_held]) * PAGE_TOKENS);
        match self.host.manager.resume(handle, &lease, num_held, DEVICE) {
            Ok(found) => {
                assert_eq!(found, expected);
                sequence.tokens.truncate(found as usize);
                sequence.values.truncate(found as usize);
                sequence.rests = false;
            }
            Err(error) => assert_full(&error),
        }
    }

    /// Completes promotions out of the map.
    fn bring_up(
        &mut self,
        begin: impl FnOnce() -> hisparse_core::Result<Vec<Promotion>>,
    ) -> hisparse_core::Result<()> {
        for promotion in begin()? {
            let identity = promotion.header().identity;
            let Some(values) = self.below.get(&identity) else { panic!("not below: {identity:?}") };
            self.host.write_page(promotion.page(), values);
            promotion.enqueued().completed().expect("it moves");
        }
        Ok(())
    }

    pub(crate) fn evict(&mut self, count: usize) {
        self.host.manager.directory().evict(count).expect("sound");
        self.remove_orphans();
    }

    /// Copies pages to the map; the first `completed` of them get there.
    pub(crate) fn demote(&mut self, count: usize, completed: usize) {
        self.remove_orphans();
        let pressure = self.host.manager.directory().demote(count).expect("sound");
        for demotion in pressure.demotions.into_iter().take(completed) {
            let (identity, page) = (demotion.header().identity, demotion.page());
            self.below.insert(identity, self.host.read_page(page));
            let held = demotion.enqueued().completed(LowerTier::File).expect("it moves");
            if matches!(held, Held::Lower(_)) {
                self.host.write_page(page, &[NO_VALUE; PAGE]);
            }
        }
    }

    pub(crate) fn leave_below(&mut self, count: usize) {
        let left = self.host.manager.directory().leave_below(LowerTier::File, count);
        for page in left.expect("sound") {
            self.below.remove(&page.identity).expect("it was below");
        }
    }

    pub(crate) fn lose_below(&mut self, pick: Index) {
        let mut known: Vec<PageIdentity> = self.below.keys().copied().collect();
        known.sort_unstable();
        if known.is_empty() {
            return;
        }
        let identity = pick.get(&known);
        self.below.remove(identity);
        self.host.manager.directory().lost_below(identity, LowerTier::File).expect("sound");
    }

    fn remove_orphans(&mut self) {
        for (identity, _) in self.host.manager.directory().take_orphans().expect("sound") {
            self.below.remove(&identity);
        }
    }

    pub(crate) fn check_same(&mut self) {
        self.remove_orphans();
        let manager = &self.host.manager;
        manager.check_integrity().expect("every step leaves a sound manager");
        manager.directory().check_integrity().expect("sound");
        let stats = manager.directory().stats().expect("sound");
        assert_eq!((stats.leases, stats.pins, stats.demoting, stats.promoting), (0, 0, 0, 0));
        for sequence in &self.sequences {
            assert_eq!(manager.length(sequence.handle), Ok(sequence.length()));
            if sequence.rests {
                assert!(manager.host_pages(sequence.handle).is_err());
                continue;
            }
            let pages = manager.host_pages(sequence.handle).expect("it is active");
            for (position, &value) in (0..).zip(&sequence.values) {
                assert_eq!(self.host.read_token(&pages, position), value, "position {position}");
            }
        }
    }

    /// Ends everything; the whole pool is free again, and nothing is left below that is not known.
    pub(crate) fn finish(mut self) {
        while let Some(last) = self.sequences.pop() {
            self.host.manager.close(last.handle).expect("it is open");
        }
        self.evict(usize::MAX);
        let manager = &self.host.manager;
        manager.check_integrity().expect("sound");
        assert_eq!(manager.stats().expect("sound").host_pages_free, u64::from(SHAPE.num_pages));
        let stats = manager.directory().stats().expect("sound");
        assert_eq!((stats.pages, stats.holds), (self.below.len() as u64, 0));
    }
}

fn assert_full(error: &Error) {
    let full = [ErrorKind::HostPoolFull, ErrorKind::DeviceArenaFull, ErrorKind::TierFull];
    assert!(full.contains(&error.kind()), "{error}");
}
