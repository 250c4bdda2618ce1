//! The manager against plain lists of tokens, whose bytes are read back through the page tables.

mod support;

use hisparse_core::{Error, PAGE_TOKENS, PageLease, SequenceHandle};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::RngSeed;
use support::{BLOCK_TOKENS, CAPACITY, DEVICE, Host, NUM_ANCHORS, SHAPE};

#[derive(Debug, Clone)]
enum Op {
    Open { prompt: u32, max_new: u32 },
    Append { pick: Index, num_tokens: u32 },
    Advance { pick: Index, anchor: usize, num_tokens: u32 },
    Truncate { pick: Index, length: Index },
    RollBack { pick: Index, num_tokens: u32 },
    Fork { pick: Index, length: Index, max_new: u32 },
    Close { pick: Index },
    Lease { num_pages: u32 },
    DropLease { pick: Index },
    UseClosed { pick: Index },
}

fn op() -> impl Strategy<Value = Op> {
    let pick = any::<Index>;
    prop_oneof![
        3 => (0..400_u32, 0..200_u32).prop_map(|(prompt, max_new)| Op::Open { prompt, max_new }),
        6 => (pick(), 1..180_u32).prop_map(|(pick, num_tokens)| Op::Append { pick, num_tokens }),
        3 => (pick(), 0..NUM_ANCHORS, 1..180_u32)
            .prop_map(|(pick, anchor, num_tokens)| Op::Advance { pick, anchor, num_tokens }),
        2 => (pick(), pick()).prop_map(|(pick, length)| Op::Truncate { pick, length }),
        2 => (pick(), 1..6_u32).prop_map(|(pick, num_tokens)| Op::RollBack { pick, num_tokens }),
        4 => (pick(), pick(), 0..150_u32)
            .prop_map(|(pick, length, max_new)| Op::Fork { pick, length, max_new }),
        2 => pick().prop_map(|pick| Op::Close { pick }),
        1 => (1..12_u32).prop_map(|num_pages| Op::Lease { num_pages }),
        1 => pick().prop_map(|pick| Op::DropLease { pick }),
        1 => pick().prop_map(|pick| Op::UseClosed { pick }),
    ]
}

#[derive(Debug, Clone)]
struct Sequence {
    handle: SequenceHandle,
    tokens: Vec<u64>,
    admitted: u32,
    folded: [u32; NUM_ANCHORS],
}

impl Sequence {
    fn length(&self) -> u32 {
        u32::try_from(self.tokens.len()).expect("a short sequence")
    }

    fn cut(&mut self, length: u32) {
        self.tokens.truncate(length as usize);
        self.folded = self.folded.map(|folded| folded.min(length));
    }
}

struct Run {
    host: Host,
    open: Vec<Sequence>,
    closed: Vec<SequenceHandle>,
    leases: Vec<PageLease>,
    next_token: u64,
    num_refused: u64,
}

impl Run {
    fn new() -> Self {
        let (open, closed, leases) = (Vec::new(), Vec::new(), Vec::new());
        Self { host: Host::new(), open, closed, leases, next_token: 1, num_refused: 0 }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Open { prompt, max_new } => self.open_sequence(prompt, max_new),
            Op::Lease { num_pages } => self.lease(num_pages),
            Op::DropLease { pick } if !self.leases.is_empty() => {
                self.leases.swap_remove(pick.index(self.leases.len()));
            }
            Op::UseClosed { pick } if !self.closed.is_empty() => {
                let error = self.host.manager.append(*pick.get(&self.closed), 1);
                assert!(matches!(error, Err(Error::StaleHandle { .. })));
            }
            _ if self.open.is_empty() => {}
            Op::Append { pick, num_tokens } => self.append(pick.index(self.open.len()), num_tokens),
            Op::Advance { pick, anchor, num_tokens } => {
                self.advance(pick.index(self.open.len()), anchor, num_tokens);
            }
            Op::Truncate { pick, length } => {
                let sequence = pick.index(self.open.len());
                let length = length.index(self.open[sequence].tokens.len() + 1);
                self.truncate(sequence, u32::try_from(length).expect("short"));
            }
            Op::RollBack { pick, num_tokens } => {
                let sequence = pick.index(self.open.len());
                let length = self.open[sequence].length().saturating_sub(num_tokens);
                self.truncate(sequence, length);
            }
            Op::Fork { pick, length, max_new } => {
                self.fork(pick.index(self.open.len()), length, max_new);
            }
            Op::Close { pick } => {
                let sequence = self.open.swap_remove(pick.index(self.open.len()));
                self.host.manager.close(sequence.handle).expect("the sequence is open");
                self.closed.push(sequence.handle);
            }
            Op::DropLease { .. } | Op::UseClosed { .. } => {}
        }
    }

    fn open_sequence(&mut self, prompt: u32, max_new: u32) {
        let found = self.host.manager.open_sequence(prompt, max_new, DEVICE);
        if prompt + max_new == 0 {
            assert!(matches!(found, Err(Error::OutOfRange { .. })));
            return;
        }
        let need = (prompt + max_new).div_ceil(PAGE_TOKENS);
        let sequence = Sequence {
            handle: SequenceHandle::from_bits(0),
            tokens: Vec::new(),
            admitted: prompt + max_new,
            folded: [0; NUM_ANCHORS],
        };
        self.admit(sequence, need, found);
    }

    fn fork(&mut self, parent: usize, length: Index, max_new: u32) {
        let mut sequence = self.open[parent].clone();
        let length = u32::try_from(length.index(sequence.tokens.len() + 1)).expect("short");
        let found = self.host.manager.fork(sequence.handle, length, max_new, DEVICE);
        if length + max_new == 0 {
            assert!(matches!(found, Err(Error::OutOfRange { .. })));
            return;
        }
        sequence.cut(length);
        sequence.admitted = length + max_new;
        let need = sequence.admitted.div_ceil(PAGE_TOKENS) - length / PAGE_TOKENS;
        self.admit(sequence, need, found);
    }

    /// A refusal has to be true of the state before it, and leaves that state.
    fn admit(
        &mut self,
        mut sequence: Sequence,
        need_pages: u32,
        found: Result<SequenceHandle, Error>,
    ) {
        match found {
            Ok(handle) => {
                sequence.handle = handle;
                self.open.push(sequence);
            }
            Err(Error::HostPoolFull { need, free, .. }) => {
                assert_eq!(need, u64::from(need_pages));
                assert!(need > free);
                assert_eq!(free, self.stats().host_pages_free);
                self.num_refused += 1;
            }
            Err(Error::DeviceArenaFull { need, longest, .. }) => {
                assert!(need > longest);
                self.num_refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn append(&mut self, sequence: usize, num_tokens: u32) {
        let Self { host, open, next_token, .. } = self;
        let sequence = &mut open[sequence];
        let found = host.manager.append(sequence.handle, num_tokens);
        if sequence.length() + num_tokens > sequence.admitted {
            assert!(matches!(found, Err(Error::OutOfRange { .. })));
            return;
        }
        assert_eq!(found, Ok(sequence.length()), "an admitted append never fails");
        let pages = host.manager.host_pages(sequence.handle).expect("the sequence is open");
        for _ in 0..num_tokens {
            host.write_token(&pages, sequence.length(), *next_token);
            sequence.tokens.push(*next_token);
            *next_token += 1;
        }
    }

    fn advance(&mut self, sequence: usize, anchor: usize, num_tokens: u32) {
        let sequence = &mut self.open[sequence];
        let found = self.host.manager.advance_pooled(sequence.handle, anchor, num_tokens);
        let end = sequence.folded[anchor] + num_tokens;
        assert_eq!(found.is_ok(), end <= sequence.length());
        if let Ok(closed) = found {
            assert_eq!(closed.first_block + closed.num_blocks, end / BLOCK_TOKENS);
            sequence.folded[anchor] = end;
        }
    }

    fn truncate(&mut self, sequence: usize, length: u32) {
        let free = self.stats().host_pages_free;
        let sequence = &mut self.open[sequence];
        match self.host.manager.truncate(sequence.handle, length) {
            Ok(()) => sequence.cut(length),
            Err(Error::HostPoolFull { need, .. }) => {
                assert!(need > free);
                self.num_refused += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn lease(&mut self, num_pages: u32) {
        let free = self.stats().host_pages_free;
        match self.host.manager.lease_pages(num_pages) {
            Ok(lease) => self.leases.push(lease),
            Err(error) => {
                let (need, total) = (u64::from(num_pages), u64::from(SHAPE.num_pages));
                assert_eq!(error, Error::HostPoolFull { need, free, total });
                self.num_refused += 1;
            }
        }
    }

    fn stats(&self) -> hisparse_core::Stats {
        self.host.manager.stats().expect("nobody has panicked")
    }

    fn check_same(&self) {
        let manager = &self.host.manager;
        manager.check_integrity().expect("every step leaves a sound manager");
        for sequence in &self.open {
            self.check_sequence(sequence);
        }
        let stats = self.stats();
        let leased: usize = self.leases.iter().map(|lease| lease.pages().len()).sum();
        assert_eq!(stats.host_pages_leased, leased as u64);
        assert_eq!(stats.sequences, self.open.len() as u64);
        assert_eq!(stats.refused, self.num_refused);
        let admitted: u32 = self.open.iter().map(|sequence| sequence.admitted).sum();
        assert_eq!(stats.table_tokens_used, u64::from(admitted));
    }

    fn check_sequence(&self, sequence: &Sequence) {
        let (manager, handle) = (&self.host.manager, sequence.handle);
        assert_eq!(manager.length(handle), Ok(sequence.length()));
        assert_eq!(manager.admitted_tokens(handle), Ok(sequence.admitted));
        let pages = manager.host_pages(handle).expect("the sequence is open");
        for (position, &token) in (0..).zip(&sequence.tokens) {
            assert_eq!(self.host.read_token(&pages, position), token, "position {position}");
        }
        for (anchor, folded) in sequence.folded.iter().enumerate() {
            let expected = (folded / BLOCK_TOKENS, folded % BLOCK_TOKENS);
            assert_eq!(manager.pooled_state(handle, anchor), Ok(expected));
        }
    }

    fn close_all(mut self) {
        self.leases.clear();
        for sequence in &self.open {
            self.host.manager.close(sequence.handle).expect("the sequence is open");
        }
        self.host.manager.check_integrity().expect("an empty manager is sound");
        let stats = self.stats();
        assert_eq!(stats.host_pages_free, u64::from(SHAPE.num_pages), "pages leaked");
        let used = [stats.slots_used, stats.window_slots_used, stats.table_tokens_used];
        assert_eq!(used, [0; 3], "device ranges leaked");
        assert_eq!(stats.state_rows_total, u64::from(CAPACITY.sequences));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 150, rng_seed: RngSeed::Fixed(5), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_manager_equals_lists_of_tokens(ops in prop::collection::vec(op(), 1..80)) {
        let mut run = Run::new();
        for op in &ops {
            run.apply(op);
            run.check_same();
        }
        run.close_all();
    }
}
