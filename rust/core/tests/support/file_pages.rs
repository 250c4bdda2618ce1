//! Small file tiers in directories of their own, and pages whose bytes follow from their number.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hisparse_core::Result;
use hisparse_core::tier::file::{FileTier, FileTierOptions, Recovery};
use hisparse_core::tier::{Deadline, IDENTITY_BYTES, PageHeader, PageIdentity, PageTier, Stored};

pub(crate) const DIGEST: [u8; 32] = [0x5a; 32];
pub(crate) const SEGMENT_BYTES: u64 = 64 << 10;

/// A directory that goes when this is dropped, unless another process made it.
pub(crate) struct Scratch {
    path: PathBuf,
    is_ours: bool,
}

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let path = path.join(format!("{name}-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        Self { path, is_ours: true }
    }

    pub(crate) fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), is_ours: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Segments of 64 KiB, room for `segments` of them, two threads.
    pub(crate) fn options(&self, segments: u64) -> FileTierOptions {
        FileTierOptions {
            segment_bytes: SEGMENT_BYTES,
            io_threads: 2,
            ..FileTierOptions::new(&self.path, segments * SEGMENT_BYTES, DIGEST)
        }
    }

    pub(crate) fn open(&self, segments: u64) -> (FileTier, Recovery) {
        FileTier::open(self.options(segments)).expect("a sound directory")
    }

    /// The segments' files, oldest first.
    pub(crate) fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).expect("the directory exists");
        let paths = entries.map(|entry| entry.expect("it can be listed").path());
        let is_segment = |path: &PathBuf| path.to_string_lossy().contains("/segment-");
        let mut paths: Vec<_> = paths.filter(is_segment).collect();
        paths.sort();
        paths
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

pub(crate) fn identity(page: u64) -> PageIdentity {
    let mut bytes = [0xc3; IDENTITY_BYTES];
    bytes[..8].copy_from_slice(&page.to_le_bytes());
    PageIdentity::from_bytes(bytes)
}

pub(crate) fn header(page: u64) -> PageHeader {
    let parent = identity(page.wrapping_sub(1));
    let num_tokens = u32::try_from(page % 64).expect("small") + 1;
    PageHeader { identity: identity(page), parent, num_tokens }
}

/// 1 to 12,000 bytes: records of one to three blocks, with and without room at the end.
pub(crate) fn bytes_of(page: u64) -> Vec<u8> {
    let len = usize::try_from(page * 7919 % 12_000).expect("small") + 1;
    let mut word = page ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

pub(crate) fn put(tier: &FileTier, page: u64) -> Result<Stored> {
    tier.put(&header(page), &bytes_of(page), far())
}

/// What the tier has of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Got {
    Right,
    Wrong,
    Miss,
}

pub(crate) fn get(tier: &FileTier, page: u64) -> Result<Got> {
    let right = bytes_of(page);
    let mut into = vec![0xee; right.len()];
    if !tier.get(&identity(page), &mut into, far())? {
        return Ok(Got::Miss);
    }
    Ok(if into == right { Got::Right } else { Got::Wrong })
}

/// No test waits for as long.
pub(crate) fn far() -> Deadline {
    Deadline::after(Duration::from_secs(600))
}
