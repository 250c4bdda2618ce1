//! Damaged files: every page is then right or a miss, never wrong, and the tier goes on.
//!
//! `cargo test --release --test file_tier_corruption -- --ignored --nocapture` makes 10,000
//! mutations and prints what came of them.

#[path = "support/draws.rs"]
mod draws;
#[path = "support/file_pages.rs"]
mod file_pages;

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use draws::Draws;
use file_pages::{Got, Scratch, far, get, put};
use hisparse_core::Error;
use hisparse_core::tier::PageTier;
use hisparse_core::tier::file::{FileTier, FileTierOptions, RecoveryMode};

const NUM_PAGES: u64 = 40;
const SEGMENTS: u64 = 32;
const BLOCK: usize = 4096;

/// Every file of a sound directory of full segments and an open one.
struct Sound {
    scratch: Scratch,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Sound {
    fn new(name: &str) -> Self {
        let scratch = Scratch::new(name);
        let (tier, _) = scratch.open(SEGMENTS);
        (0..NUM_PAGES).for_each(|page| assert!(put(&tier, page).is_ok()));
        tier.flush(far()).expect("a sound disk");
        drop(tier);
        let mut paths = scratch.segments();
        assert!(paths.len() > 3, "swapping takes two full segments");
        paths.push(scratch.path().join("manifest"));
        let read = |path: PathBuf| (path.clone(), fs::read(path).expect("it exists"));
        Self { files: paths.into_iter().map(read).collect(), scratch }
    }

    fn restore(&self) {
        for path in self.scratch.segments() {
            fs::remove_file(path).expect("it is ours");
        }
        for (path, bytes) in &self.files {
            fs::write(path, bytes).expect("there is space");
        }
    }

    fn write(&self, file: usize, bytes: &[u8]) {
        fs::write(&self.files[file].0, bytes).expect("there is space");
    }

    fn num_segments(&self) -> usize {
        self.files.len() - 1
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutation {
    FlipBit { file: usize, bit: usize },
    ZeroBlock { file: usize, block: usize },
    Truncate { file: usize, len: usize },
    Swap { first: usize, second: usize },
    OldVersion { segment: usize, block: usize },
}

impl Mutation {
    fn draw(sound: &Sound, draws: &mut Draws) -> Self {
        let file = draws.below(sound.files.len());
        let len = sound.files[file].1.len();
        let segment = draws.below(sound.num_segments());
        match draws.below(5) {
            0 => Self::FlipBit { file, bit: draws.below(len * 8) },
            1 => Self::ZeroBlock { file, block: draws.below(len.div_ceil(BLOCK)) },
            2 => Self::Truncate { file, len: draws.below(len) },
            3 => {
                let step = 1 + draws.below(sound.num_segments() - 1);
                Self::Swap { first: segment, second: (segment + step) % sound.num_segments() }
            }
            _ => {
                let heads = page_heads(&sound.files[segment].1);
                Self::OldVersion { segment, block: heads[draws.below(heads.len())] }
            }
        }
    }

    /// Writes over the files in place: a tier that has them open sees it, too.
    fn apply(self, sound: &Sound) {
        let file = match self {
            Self::FlipBit { file, .. }
            | Self::ZeroBlock { file, .. }
            | Self::Truncate { file, .. }
            | Self::OldVersion { segment: file, .. } => file,
            Self::Swap { first, second } => {
                sound.write(first, &sound.files[second].1);
                return sound.write(second, &sound.files[first].1);
            }
        };
        let mut bytes = sound.files[file].1.clone();
        match self {
            Self::FlipBit { bit, .. } => bytes[bit / 8] ^= 1 << (bit % 8),
            Self::ZeroBlock { block, .. } => {
                let end = bytes.len().min((block + 1) * BLOCK);
                bytes[block * BLOCK..end].fill(0);
            }
            Self::Truncate { len, .. } => bytes.truncate(len),
            Self::OldVersion { block, .. } => make_old(&mut bytes[block * BLOCK..][..192]),
            Self::Swap { .. } => {}
        }
        sound.write(file, &bytes);
    }
}

/// The blocks of a segment at which a page's header lies.
fn page_heads(bytes: &[u8]) -> Vec<usize> {
    let blocks = bytes.chunks(BLOCK).enumerate();
    blocks.filter(|(_, block)| block.starts_with(b"hispPAGE")).map(|(number, _)| number).collect()
}

/// Gives a header version 0, and the checksum that belongs to it.
fn make_old(header: &mut [u8]) {
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header[16..188]);
    header[188..].copy_from_slice(&crc.to_le_bytes());
}

#[derive(Debug, Default)]
struct Tally {
    mutations: u64,
    pages_read: u64,
    misses: u64,
    wrong: u64,
    /// Mutations after which a page was missing and nothing was counted.
    unnoticed: u64,
}

impl Tally {
    /// Reads every page, and puts those again that are missing.
    fn check(&mut self, tier: &FileTier, noticed: u64, mutation: Mutation) {
        let mut missing = Vec::new();
        for page in 0..NUM_PAGES {
            match get(tier, page).expect("a damaged page is a miss, not an error") {
                Got::Right => {}
                Got::Miss => missing.push(page),
                Got::Wrong => self.wrong += 1,
            }
        }
        let noticed = noticed + tier.usage().corrupt;
        // a file that ends where a record did shows nothing
        let shows = !matches!(mutation, Mutation::Truncate { len, .. } if len % BLOCK == 0);
        self.unnoticed += u64::from(!missing.is_empty() && noticed == 0 && shows);
        self.mutations += 1;
        self.pages_read += NUM_PAGES;
        self.misses += missing.len() as u64;
        for page in missing {
            assert_eq!(get(tier, page), Ok(Got::Miss), "not looked for again");
            put(tier, page).expect("the tier goes on");
            assert_eq!(get(tier, page), Ok(Got::Right));
        }
    }
}

fn mutate(num_mutations: u64, seed: u64) -> Tally {
    let sound = Sound::new("mutate");
    let mut tally = Tally::default();
    for number in 0..num_mutations {
        let mut draws = Draws(seed ^ (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mutation = Mutation::draw(&sound, &mut draws);
        sound.restore();
        let under_an_open_tier = number % 2 == 1;
        if under_an_open_tier {
            let (tier, _) = sound.scratch.open(SEGMENTS);
            mutation.apply(&sound);
            tally.check(&tier, 0, mutation);
        } else {
            mutation.apply(&sound);
            let (tier, found) = sound.scratch.open(SEGMENTS);
            tally.check(&tier, found.skipped + found.torn, mutation);
        }
    }
    tally
}

#[test]
fn no_mutation_of_300_gives_a_wrong_byte() {
    let tally = mutate(300, 1);
    assert_eq!((tally.mutations, tally.wrong, tally.unnoticed), (300, 0, 0), "{tally:?}");
    assert!(tally.misses > 300, "the mutations hit something: {tally:?}");
}

#[test]
#[ignore = "about a minute"]
fn no_mutation_of_10_000_gives_a_wrong_byte() {
    let tally = mutate(10_000, 2);
    let Tally { mutations, pages_read, misses, wrong, unnoticed } = tally;
    let line = format!(
        r#"{{"case": "corruptions", "mutations": {mutations}, "pages_read": {pages_read}, "misses": {misses}, "wrong_bytes": {wrong}, "unnoticed": {unnoticed}}}"#
    );
    writeln!(std::io::stdout(), "{line}").expect("stdout is open");
    assert_eq!((mutations, wrong, unnoticed), (10_000, 0, 0));
}

#[test]
fn a_strict_recovery_names_the_damage_or_there_is_none() {
    let sound = Sound::new("strict");
    let mut num_refused = 0;
    for number in 1..=100 {
        let mutation = Mutation::draw(&sound, &mut Draws(number * 77_777));
        sound.restore();
        mutation.apply(&sound);
        let recovery = RecoveryMode::Strict;
        match FileTier::open(FileTierOptions { recovery, ..sound.scratch.options(SEGMENTS) }) {
            Err(Error::TierDamaged { .. }) => num_refused += 1,
            Err(error) => panic!("{mutation:?}: {error}"),
            Ok((tier, _)) => {
                for page in 0..NUM_PAGES {
                    assert_ne!(get(&tier, page), Ok(Got::Wrong), "{mutation:?}");
                }
            }
        }
    }
    assert!(num_refused > 20, "{num_refused} of 100");
}
