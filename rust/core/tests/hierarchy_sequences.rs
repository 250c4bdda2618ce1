//! Sequences over all tiers: admitted by what may move, opened on what is below, back from rest.

#[path = "support/file_pages.rs"]
mod file_pages;
mod support;

use std::sync::Arc as StdArc;
use std::time::Duration;

use file_pages::Scratch;
use hisparse_core::hierarchy::{
    Hierarchy, HierarchyLimits, LoadTable, Loading, LowerStore, OpenedPrompt, TierSpeed,
};
use hisparse_core::prefix::LowerTier;
use hisparse_core::sync::Arc;
use hisparse_core::tier::file::{FileTier, FileTierOptions};
use hisparse_core::tier::{Deadline, MemoryTier, PageTier};
use hisparse_core::{ErrorKind, HostLayout, HostRegion, Manager, RegionOptions, SequenceHandle};
use hisparse_core::{PAGE_TOKENS, SharingOptions};
use support::{BLOCK_TOKENS, CAPACITY, DEVICE, Host, NUM_ANCHORS, SHAPE};

const LOADING: fn() -> Loading = || Loading { deadline: far(), recompute_tokens_per_s: None };

fn far() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

fn options() -> SharingOptions {
    SharingOptions { max_pages: 200, model: "m".into(), secret: [5; 32] }
}

/// A directory that may know so few pages.
fn narrow(max_pages: u32) -> SharingOptions {
    SharingOptions { max_pages, ..options() }
}

/// A host with a hierarchy over `below`.
struct Site {
    host: Host,
    hierarchy: Hierarchy,
}

impl Site {
    fn new(below: Vec<LowerStore>) -> Self {
        Self::sharing(below, &options())
    }

    fn sharing(below: Vec<LowerStore>, options: &SharingOptions) -> Self {
        let layout = HostLayout::new(SHAPE).expect("legal, and room");
        let region = HostRegion::create(layout.num_bytes(), &RegionOptions::default());
        let region = Arc::new(region.expect("legal, and room"));
        let shared = Arc::clone(&region);
        let manager = Manager::sharing(shared, layout, CAPACITY, BLOCK_TOKENS, options)
            .expect("legal, and room");
        let (own, directory) = (Arc::clone(&region), manager.directory());
        let limits = HierarchyLimits { num_threads: 1, ..HierarchyLimits::default() };
        let hierarchy =
            Hierarchy::new(own, layout, directory, below, limits).expect("legal, and room");
        hierarchy.recover(far()).expect("legal, and room");
        Self { host: Host { region, layout, manager }, hierarchy }
    }

    fn open(&self, tokens: &[u32], max_new: u32) -> hisparse_core::Result<OpenedPrompt> {
        self.hierarchy.open_prompt(&self.host.manager, ("", tokens), max_new, DEVICE, LOADING())
    }

    /// Writes the tokens that the sequence does not have yet, and shares its full pages.
    fn prefill(&self, opened: OpenedPrompt, tokens: &[u32]) {
        let (manager, sequence) = (&self.host.manager, opened.sequence);
        let start = opened.cached_tokens;
        let rest = &tokens[start as usize..];
        let count = u32::try_from(rest.len()).expect("legal, and room");
        assert_eq!(manager.append(sequence, count), Ok(start));
        let pages = manager.host_pages(sequence).expect("legal, and room");
        for (position, &token) in (start..).zip(rest) {
            self.host.write_token(&pages, position, token.into());
        }
        (0..NUM_ANCHORS).for_each(|anchor| {
            manager.advance_pooled(sequence, anchor, count).expect("legal, and room");
        });
        manager.note_tokens(sequence, start, rest).expect("legal, and room");
        manager.publish(sequence).expect("legal, and room");
        self.check(sequence, tokens);
    }

    fn check(&self, sequence: SequenceHandle, tokens: &[u32]) {
        let pages = self.host.manager.host_pages(sequence).expect("legal, and room");
        for (position, &token) in (0..).zip(tokens) {
            assert_eq!(self.host.read_token(&pages, position), token.into());
        }
        self.host.manager.check_integrity().expect("legal, and room");
    }

    fn run_once(&self, tokens: &[u32]) -> u32 {
        let opened = self.open(tokens, 1).expect("legal, and room");
        self.prefill(opened, tokens);
        self.host.manager.close(opened.sequence).expect("legal, and room");
        opened.cached_tokens
    }
}

fn tokens(seed: u32, count: u32) -> Vec<u32> {
    (0..count).map(|at| seed * 10_000 + at).collect()
}

fn file(scratch: &Scratch) -> LowerStore {
    let digest = options().digest(&HostLayout::new(SHAPE).expect("legal, and room"), BLOCK_TOKENS);
    let mut options = FileTierOptions::new(scratch.path(), 1 << 22, digest);
    options.segment_bytes = 1 << 18;
    let (store, _) = FileTier::open(options).expect("legal, and room");
    LowerStore { tier: LowerTier::File, store: StdArc::new(store) }
}

#[test]
fn a_prompt_is_found_again_after_a_restart_by_its_own_model_and_tenant_only() {
    let scratch = Scratch::new("restart");
    let prompt = tokens(1, 300);
    let site = Site::new(vec![file(&scratch)]);
    assert_eq!((site.run_once(&prompt), site.run_once(&prompt)), (0, 256));
    let drained = site.hierarchy.drain(far()).unwrap();
    assert_eq!((drained.moved, drained.left), (4, 0));
    drop(site);

    let site = Site::new(vec![file(&scratch)]);
    site.host.manager.add_tenant("other", 24).unwrap();
    let theirs =
        site.hierarchy.open_prompt(&site.host.manager, ("other", &prompt), 1, DEVICE, LOADING());
    assert_eq!(theirs.unwrap().cached_tokens, 0, "another tenant's prompt");
    assert_eq!(site.run_once(&prompt), 256);
    assert_eq!(site.hierarchy.state().unwrap()[0].counts.promoted, 4);
    let unknown =
        site.hierarchy.open_prompt(&site.host.manager, ("nobody", &prompt), 1, DEVICE, LOADING());
    let error = unknown.unwrap_err();
    assert_eq!(error.to_string(), "unknown tenant: named 1, 2 known, none of that name");
}

#[test]
fn resting_sequences_make_room_and_come_back_byte_for_byte() {
    let scratch = Scratch::new("rest");
    let site = Site::new(vec![file(&scratch)]);
    let manager = &site.host.manager;
    let open: Vec<_> = (0..4)
        .map(|seed| {
            let prompt = tokens(seed, 300); // four full pages, and one that nobody could share
            let opened = site.open(&prompt, 20).unwrap();
            site.prefill(opened, &prompt);
            (opened.sequence, prompt)
        })
        .collect();
    let all = SHAPE.num_pages;
    let refused = manager.open_sequence(all * PAGE_TOKENS, 0, DEVICE).unwrap_err();
    assert!(matches!(refused.kind(), ErrorKind::HostPoolFull | ErrorKind::DeviceArenaFull));
    for (sequence, _) in &open {
        manager.preempt(*sequence).unwrap();
        assert_eq!(manager.append(*sequence, 1).unwrap_err().kind(), ErrorKind::WrongState);
    }
    let whole = manager.open_sequence(all * PAGE_TOKENS, 0, DEVICE).unwrap_err();
    assert_eq!(whole.kind(), ErrorKind::HostPoolFull, "held pages are not lost");
    let tokens = (all * PAGE_TOKENS, 0);
    let whole = site.hierarchy.open_sequence(manager, tokens, DEVICE, far()).unwrap();
    assert_eq!(manager.stats().unwrap().host_pages_free, 0);
    let device = DEVICE;
    let error = site.hierarchy.resume(manager, open[0].0, device, far()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::HostPoolFull);
    manager.close(whole).unwrap();
    for (sequence, prompt) in &open {
        assert_eq!(site.hierarchy.resume(manager, *sequence, device, far()), Ok(300));
        site.check(*sequence, prompt);
        assert_eq!(manager.append(*sequence, 20), Ok(300), "what it was admitted for");
        manager.close(*sequence).unwrap();
    }
    manager.directory().evict(99).unwrap();
    assert_eq!(manager.stats().unwrap().host_pages_free, u64::from(all));
}

#[test]
fn idle_pages_go_down_for_an_admission_that_would_drop_them() {
    let scratch = Scratch::new("idle");
    let site = Site::new(vec![file(&scratch)]);
    let (manager, prompt, all) = (&site.host.manager, tokens(7, 300), SHAPE.num_pages);
    assert_eq!(site.run_once(&prompt), 0);
    let tokens = (all * PAGE_TOKENS, 0);
    let whole = site.hierarchy.open_sequence(manager, tokens, DEVICE, far()).unwrap();
    manager.close(whole).unwrap();
    assert_eq!(site.run_once(&prompt), 256);
    let wide = vec![tokens.0; all as usize * PAGE_TOKENS as usize];
    let opened = site.open(&wide, 0).unwrap();
    manager.close(opened.sequence).unwrap();
    assert_eq!((opened.cached_tokens, site.run_once(&prompt)), (0, 256));
    let much = site.hierarchy.open_sequence(manager, (tokens.0 + 1, 0), DEVICE, far());
    assert!(matches!(
        much.unwrap_err().kind(),
        ErrorKind::HostPoolFull | ErrorKind::DeviceArenaFull
    ));
    let stats = manager.directory().stats().unwrap();
    assert!(stats.resident > 0, "pages have gone down for a call that could not be served");
}

#[test]
fn a_sequence_that_has_lost_pages_below_comes_back_shorter_and_says_so() {
    let memory = StdArc::new(MemoryTier::new(1 << 22));
    let below = LowerStore { tier: LowerTier::File, store: memory.clone() };
    let site = Site::new(vec![below]);
    let (manager, prompt) = (&site.host.manager, tokens(3, 300));
    let opened = site.open(&prompt, 0).unwrap();
    site.prefill(opened, &prompt);
    manager.preempt(opened.sequence).unwrap();
    site.hierarchy.drain(far()).unwrap();
    let third = manager.match_prompt("", &prompt).unwrap().chain()[2];
    assert_eq!(memory.remove(&third, far()), Ok(true));
    assert_eq!(site.hierarchy.resume(manager, opened.sequence, DEVICE, far()), Ok(128));
    site.check(opened.sequence, &prompt[..128]);
    manager.close(opened.sequence).unwrap();
}

/// Two calls may bring a sequence back at once: the slower one's pages are those of a rest that is
/// over, though there may be as many of them.
#[test]
fn a_lease_of_an_earlier_rest_gives_a_sequence_none_of_its_old_pages() {
    let site = Site::new(Vec::new());
    let (manager, mut prompt) = (&site.host.manager, tokens(8, 300));
    let opened = site.open(&prompt, 20).unwrap();
    site.prefill(opened, &prompt);
    let sequence = opened.sequence;
    manager.preempt(sequence).unwrap();
    let old = manager.lease_resting(sequence).unwrap();
    assert_eq!(site.hierarchy.resume(manager, sequence, DEVICE, far()), Ok(300));
    manager.truncate(sequence, 290).unwrap();
    prompt.truncate(290);
    prompt.extend(tokens(9, 5));
    site.prefill(OpenedPrompt { sequence, cached_tokens: 290 }, &prompt);
    manager.preempt(sequence).unwrap();

    let refused = manager.resume(sequence, &old, 5, DEVICE).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WrongState);
    drop(old);
    assert_eq!(site.hierarchy.resume(manager, sequence, DEVICE, far()), Ok(295));
    site.check(sequence, &prompt);
    manager.close(sequence).unwrap();
    assert_eq!(manager.directory().stats().unwrap().pins, 0);
}

#[test]
fn a_store_that_another_host_has_filled_is_asked_for_what_the_directory_does_not_know() {
    let shared: StdArc<dyn PageTier> = StdArc::new(MemoryTier::new(1 << 22));
    let remote = || LowerStore { tier: LowerTier::Remote, store: StdArc::clone(&shared) };
    let (one, other) = (Site::new(vec![remote()]), Site::new(vec![remote()]));
    let prompt = tokens(4, 513);
    assert_eq!(one.run_once(&prompt), 0);
    assert_eq!(one.hierarchy.drain(far()).unwrap().moved, 8);
    assert_eq!(other.run_once(&prompt[..300]), 256);
    assert_eq!(other.run_once(&prompt), 512);
}

#[test]
fn a_prompt_longer_than_the_directory_begins_with_as_much_as_fits_and_leaves_no_lease() {
    let shared: StdArc<dyn PageTier> = StdArc::new(MemoryTier::new(1 << 22));
    let remote = || LowerStore { tier: LowerTier::Remote, store: StdArc::clone(&shared) };
    let (one, prompt) = (Site::new(vec![remote()]), tokens(6, 900));
    one.run_once(&prompt);
    assert_eq!(one.hierarchy.drain(far()).unwrap().moved, 14);
    for max_pages in [1, 5, 13, 14, 15] {
        let other = Site::sharing(vec![remote()], &narrow(max_pages));
        let manager = &other.host.manager;
        let opened = other.open(&prompt, 1).unwrap();
        let num_pages = max_pages.min(14);
        assert_eq!(opened.cached_tokens, num_pages * PAGE_TOKENS);
        other.check(opened.sequence, &prompt[..opened.cached_tokens as usize]);
        let refused = other.open(&prompt, 620).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::HostPoolFull);
        manager.close(opened.sequence).unwrap();
        let stats = manager.directory().stats().unwrap();
        assert_eq!((stats.leases, stats.pins, stats.pages), (0, 0, num_pages.into()));
    }
}

#[test]
fn a_tier_that_is_slower_than_computing_is_left_alone() {
    let memory = StdArc::new(MemoryTier::new(1 << 22));
    let site = Site::new(vec![LowerStore { tier: LowerTier::File, store: memory }]);
    let prompt = tokens(5, 513);
    site.run_once(&prompt);
    site.hierarchy.drain(far()).unwrap();
    let speed = TierSpeed { latency_us: 1000, bytes_per_s: 1 << 20 };
    let table = LoadTable { speeds: vec![(LowerTier::File, speed)] };
    site.hierarchy.adopt(table, 1).unwrap();
    let open = |rate| {
        let loading = Loading { deadline: far(), recompute_tokens_per_s: Some(rate) };
        let manager = &site.host.manager;
        let opened =
            site.hierarchy.open_prompt(manager, ("", &prompt), 1, DEVICE, loading).unwrap();
        manager.close(opened.sequence).unwrap();
        opened.cached_tokens
    };
    // 8 pages of 2,112 bytes take 17 ms, 512 tokens at a million a second half a millisecond
    assert_eq!((open(1e6), open(1e3)), (0, 512));
}
