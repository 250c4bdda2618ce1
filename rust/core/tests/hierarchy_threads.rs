//! Threads whose sequences begin alike, fork, are cut, rest and come back, over tiers that may fail:
//! every token is where its sequence wrote it, and in the end everything is free.

#[path = "support/draws.rs"]
mod draws;
#[path = "support/failing_site.rs"]
mod failing_site;
#[path = "support/file_pages.rs"]
mod file_pages;
mod support;

use std::thread;
use std::time::Duration;

use draws::Draws;
use failing_site::{HOST_PAGES, Site, Tiers, soon};
use file_pages::Scratch;
use hisparse_core::hierarchy::Loading;
use hisparse_core::tier::Deadline;
use hisparse_core::{ErrorKind, PAGE_TOKENS, Result, SequenceHandle};
use support::{DEVICE, NUM_ANCHORS};

const NUM_THREADS: u64 = 4;
const NUM_TEXTS: usize = 12;
const MAX_NEW: u32 = 70;

/// One sequence and the tokens that it has.
struct Own {
    sequence: SequenceHandle,
    tokens: Vec<u32>,
    admitted: usize,
    rests: bool,
}

struct Client<'a> {
    site: &'a Site,
    tiers: Tiers,
    draws: Draws,
    own: Vec<Own>,
    num_refused: u64,
    num_back: u64,
}

impl Client<'_> {
    fn run(&mut self, num_operations: usize) {
        for _ in 0..num_operations {
            let done = self.act();
            if let Err(error) = done {
                let is_full = matches!(
                    error.kind(),
                    ErrorKind::HostPoolFull | ErrorKind::DeviceArenaFull | ErrorKind::TierFull
                );
                let is_down = matches!(error.kind(), ErrorKind::TierDown);
                assert!(is_full || (is_down && self.tiers == Tiers::Failing), "{error}");
                self.num_refused += 1;
                self.give_way();
            }
        }
        while !self.own.is_empty() {
            self.close_one().expect("it is open");
        }
    }

    /// Another gets the room of one that works, or of one that goes.
    fn give_way(&mut self) {
        let active = self.own.iter().position(|own| !own.rests);
        match active {
            Some(at) if self.own.len() < 9 => self.rest(at).expect("it is active"),
            _ => self.close_one().expect("it is open"),
        }
    }

    fn act(&mut self) -> Result<()> {
        if self.own.len() < 2 {
            return self.open();
        }
        let at = self.draws.below(self.own.len());
        match self.draws.below(9) {
            0 | 1 => self.open(),
            2 if !self.own[at].rests => self.fork(at),
            3 if !self.own[at].rests => self.cut(at),
            4 if !self.own[at].rests => self.grow(at),
            5 if !self.own[at].rests => self.rest(at),
            6 | 7 if self.own[at].rests => self.come_back(at),
            8 => self.close_one(),
            _ => Ok(()),
        }
    }

    /// A text of a few that all clients know, and an end of its own.
    fn open(&mut self) -> Result<()> {
        let text = u32::try_from(self.draws.below(NUM_TEXTS)).expect("small");
        let mut tokens: Vec<u32> = (0..200).map(|at| text * 1000 + at).collect();
        let own_end = u32::try_from(self.draws.below(3)).expect("small");
        tokens.extend((0..40).map(|at| 100_000 * (own_end + 1) + text * 1000 + at));
        tokens.truncate(100 + self.draws.below(140));
        let manager = &self.site.host.manager;
        let loading = Loading { deadline: soon(), recompute_tokens_per_s: None };
        let opened =
            self.site.hierarchy.open_prompt(manager, ("", &tokens), MAX_NEW, DEVICE, loading)?;
        let admitted = tokens.len() + MAX_NEW as usize;
        let cached = opened.cached_tokens as usize;
        let rest = tokens.split_off(cached);
        self.own.push(Own { sequence: opened.sequence, tokens, admitted, rests: false });
        let at = self.own.len() - 1;
        self.check(at);
        self.append(at, &rest)
    }

    fn append(&mut self, at: usize, more: &[u32]) -> Result<()> {
        let (manager, own) = (&self.site.host.manager, &mut self.own[at]);
        let count = u32::try_from(more.len()).expect("small");
        let start = manager.append(own.sequence, count)?;
        assert_eq!(start as usize, own.tokens.len());
        let pages = manager.host_pages(own.sequence)?;
        for (position, &token) in (start..).zip(more) {
            self.site.host.write_token(&pages, position, token.into());
        }
        for anchor in 0..NUM_ANCHORS {
            manager.advance_pooled(own.sequence, anchor, count)?;
        }
        own.tokens.extend_from_slice(more);
        manager.note_tokens(own.sequence, start, more)?;
        manager.publish(own.sequence)?;
        self.site.hierarchy.wake();
        self.check(at);
        Ok(())
    }

    fn grow(&mut self, at: usize) -> Result<()> {
        let left = self.own[at].admitted - self.own[at].tokens.len();
        let count = self.draws.below(left.min(70) + 1);
        let first = u32::try_from(self.draws.below(4)).expect("small") * 7_000_000;
        let more: Vec<u32> = (0..).map(|at| first + at).take(count).collect();
        if more.is_empty() { Ok(()) } else { self.append(at, &more) }
    }

    fn fork(&mut self, at: usize) -> Result<()> {
        let (manager, own) = (&self.site.host.manager, &self.own[at]);
        let (source, tokens) = (own.sequence, own.tokens.clone());
        let length = self.draws.below(tokens.len() + 1);
        let short = u32::try_from(length).expect("small");
        let deadline =
            if self.draws.below(2) == 0 { soon() } else { Deadline::after(Duration::ZERO) };
        self.site.hierarchy.make_room_to_fork(short, MAX_NEW, soon())?;
        let sequence =
            self.site.hierarchy.fork(manager, (source, short), MAX_NEW, DEVICE, deadline)?;
        let tokens = tokens[..length].to_vec();
        self.own.push(Own { sequence, tokens, admitted: length + MAX_NEW as usize, rests: false });
        self.check(self.own.len() - 1);
        Ok(())
    }

    fn cut(&mut self, at: usize) -> Result<()> {
        let length = self.draws.below(self.own[at].tokens.len() + 1);
        let own = &mut self.own[at];
        self.site.host.manager.truncate(own.sequence, u32::try_from(length).expect("small"))?;
        own.tokens.truncate(length);
        self.check(at);
        Ok(())
    }

    fn rest(&mut self, at: usize) -> Result<()> {
        self.site.host.manager.preempt(self.own[at].sequence)?;
        self.own[at].rests = true;
        self.site.hierarchy.wake();
        Ok(())
    }

    fn come_back(&mut self, at: usize) -> Result<()> {
        let Site { host, hierarchy } = self.site;
        let (manager, sequence) = (&host.manager, self.own[at].sequence);
        let length = if self.draws.below(2) == 0 {
            hierarchy.resume(manager, sequence, DEVICE, soon())?
        } else {
            let returning = hierarchy.bring_back(manager, sequence, soon())?;
            hierarchy.make_room_to_resume(manager, &returning, soon())?;
            thread::yield_now();
            let no_time = Deadline::after(Duration::ZERO);
            hierarchy.finish_resume(manager, &returning, DEVICE, no_time)?
        };
        let own = &mut self.own[at];
        own.rests = false;
        self.num_back += 1;
        let had = own.tokens.len();
        own.tokens.truncate(length as usize);
        assert_eq!(own.tokens.len(), length as usize);
        let is_whole = length as usize == had;
        let is_cut = self.tiers == Tiers::Failing && length.is_multiple_of(PAGE_TOKENS);
        assert!(is_whole || is_cut, "{length} of {had} tokens came back");
        self.check(at);
        Ok(())
    }

    fn close_one(&mut self) -> Result<()> {
        if self.own.is_empty() {
            return Ok(());
        }
        let at = self.draws.below(self.own.len());
        let own = self.own.swap_remove(at);
        self.site.host.manager.close(own.sequence)?;
        self.site.hierarchy.wake();
        Ok(())
    }

    fn check(&self, at: usize) {
        let own = &self.own[at];
        let manager = &self.site.host.manager;
        let length = manager.length(own.sequence).expect("it is open");
        assert_eq!(length as usize, own.tokens.len());
        let pages = manager.host_pages(own.sequence).expect("it is active");
        for (position, &token) in (0..).zip(&own.tokens) {
            assert_eq!(self.site.host.read_token(&pages, position), token.into());
        }
    }
}

fn live(tiers: Tiers, num_operations: usize, seed: u64) {
    let scratch = Scratch::new("threads");
    let site = Site::new(tiers, &scratch);
    let client = |number: u64| Client {
        site: &site,
        tiers,
        draws: Draws(seed * 1000 + number + 1),
        own: Vec::new(),
        num_refused: 0,
        num_back: 0,
    };
    let mut clients: Vec<Client<'_>> = (0..NUM_THREADS).map(client).collect();
    thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(move || client.run(num_operations));
        }
    });
    assert!(clients.iter().map(|client| client.num_back).sum::<u64>() > 0);
    let states = site.hierarchy.state().expect("nobody has panicked");
    assert!(states.iter().all(|state| state.counts.promoted > 0), "{states:?}");
    site.hierarchy.close();
    let manager = &site.host.manager;
    manager.check_integrity().expect("sound");
    let rest = manager.directory().stats().expect("nobody has panicked");
    let moving = (rest.leases, rest.pins, rest.holds, rest.demoting, rest.promoting);
    assert_eq!(moving, (0, 0, 0, 0, 0));
    manager.directory().evict(HOST_PAGES as usize).expect("nobody has panicked");
    assert_eq!(manager.stats().expect("sound").host_pages_free, u64::from(HOST_PAGES));
}

#[test]
fn threads_over_sound_tiers_lose_no_token() {
    (1..=2).for_each(|seed| live(Tiers::Sound, 250, seed));
}

#[test]
fn threads_over_failing_tiers_read_no_wrong_token_and_leave_nothing() {
    (1..=2).for_each(|seed| live(Tiers::Failing, 250, seed));
}

#[test]
#[ignore = "5,000 operations a thread, over tiers of both kinds; SEEDS of them, 4 without: a minute"]
fn threads_over_tiers_of_both_kinds_in_full() {
    let seeds = std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(4);
    for seed in 10..10 + seeds {
        live(Tiers::Sound, 5000, seed);
        live(Tiers::Failing, 5000, seed);
    }
}
