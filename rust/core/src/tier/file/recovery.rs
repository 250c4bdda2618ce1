//! Opening a directory: which segments there are, and which pages they hold.

use std::cmp::Ordering;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::{Error, Result};

use super::directory::{Directory, segment_name};
use super::draft::Purpose;
use super::error::{TIER, damaged, io_error};
use super::footer::{Entry, footer_at, read_footer};
use super::held::Held;
use super::index::{Index, Place};
use super::manifest::{BadManifest, Listed, Manifest};
use super::options::{FileTierOptions, Recovery, RecoveryMode};
use super::page_header::{BLOCK_BYTES, BLOCK_LEN, FORMAT_VERSION, Mark};
use super::scan::{Scanned, scan};
use super::segment::{FIRST_RECORD, Head, Segment};
use super::synced::{Synced, read_synced};

/// What a directory holds.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) report: Recovery,
    /// Number of the next segment: beyond those of the manifest, or of all files without one.
    pub(super) next_segment: u32,
    /// The manifest on the disk says less than what was found.
    pub(super) list_is_old: bool,
}

struct Reader<'a> {
    directory: &'a Directory,
    options: &'a FileTierOptions,
    found: Recovered,
}

/// Reads a directory; removes the files of segments that a crash left out of the manifest.
pub(super) fn recover(directory: &Directory, options: &FileTierOptions) -> Result<Recovered> {
    let files = directory.segments()?;
    let next_segment = files.last().map_or(0, |last| last.saturating_add(1));
    let (index, report) = (Index::default(), Recovery::default());
    let found = Recovered { index, report, next_segment, list_is_old: false };
    let mut reader = Reader { directory, options, found };
    let listed = reader.list(&files)?;
    for segment in &listed {
        reader.read_segment(segment)?;
    }
    reader.adopt_newest()?;
    reader.found.report.pages = reader.found.index.pages.len() as u64;
    reader.found.report.segments = reader.found.index.segments.len() as u64;
    reader.found.index.counts.corrupt = reader.found.report.skipped;
    Ok(reader.found)
}

impl Reader<'_> {
    /// Fails in strict mode, else counts.
    fn meet_damage(&mut self, file: &str, at: u64, what: &str) -> Result<()> {
        if self.options.recovery == RecoveryMode::Strict {
            return Err(damaged(file, at, what));
        }
        self.found.report.skipped += 1;
        Ok(())
    }

    /// The segments of the manifest, or of all files if it cannot be read.
    fn list(&mut self, files: &[u32]) -> Result<Vec<Listed>> {
        let bytes = self.directory.read_manifest()?;
        let manifest = bytes.as_deref().map(Manifest::from_bytes);
        self.found.list_is_old = !matches!(manifest, Some(Ok(_)));
        match manifest {
            Some(Ok(manifest)) => self.listed_in(manifest, files),
            Some(Err(BadManifest::OtherVersion(found))) => Err(Error::WrongState {
                what: "format version of the file tier's directory",
                found: found.into(),
                needed: FORMAT_VERSION.into(),
            }),
            None if files.is_empty() => Ok(Vec::new()),
            None | Some(Err(BadManifest::Damaged)) => {
                self.meet_damage("manifest", 0, "no sound manifest")?;
                self.listed_by_heads(files)
            }
        }
    }

    fn listed_in(&mut self, manifest: Manifest, files: &[u32]) -> Result<Vec<Listed>> {
        self.check_digest(&manifest.digest)?;
        let is_listed = |file: u32| manifest.segments.iter().any(|listed| listed.segment == file);
        for &orphan in files.iter().filter(|&&file| !is_listed(file)) {
            self.directory.unlink_segment(orphan).map_err(io_error("unlink"))?;
        }
        let last = manifest.segments.iter().map(|listed| listed.segment.saturating_add(1)).max();
        self.found.next_segment = last.unwrap_or(0); // no orphan's file is left
        Ok(manifest.segments)
    }

    fn listed_by_heads(&mut self, files: &[u32]) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for &segment in files {
            let file = self.directory.open_segment(segment)?;
            let head = file.as_ref().map(Segment::read_head).transpose();
            match head.map_err(io_error("pread"))?.flatten() {
                Some(head) if head.segment == segment => {
                    self.check_digest(&head.digest)?;
                    listed.push(Listed { segment, stamp: head.stamp, is_full: false });
                }
                _ => self.meet_damage(&segment_name(segment), 0, "no sound head")?,
            }
        }
        Ok(listed)
    }

    fn check_digest(&self, found: &[u8; 32]) -> Result<()> {
        if *found == self.options.digest {
            return Ok(());
        }
        let (found, needed) = (hex(found), hex(&self.options.digest));
        Err(Error::TierForeign { tier: TIER, found, needed })
    }

    fn read_segment(&mut self, listed: &Listed) -> Result<()> {
        let name = segment_name(listed.segment);
        let Some(file) = self.directory.open_segment(listed.segment)? else {
            return self.meet_damage(&name, 0, "no such file");
        };
        let Listed { segment, stamp, is_full } = *listed;
        let head = Head { segment, stamp, digest: self.options.digest };
        if Segment::read_head(&file).map_err(io_error("pread"))? != Some(head) {
            self.meet_damage(&name, 0, "no head of this segment")?;
        }
        if let Some((at, entries)) = read_end(&file, listed)? {
            let segment = Segment::opened(file, segment, stamp, Some(at));
            return self.hold(segment, is_full, at, &entries);
        }
        if is_full {
            self.meet_damage(&name, 0, "no sound footer")?;
        }
        self.scan_segment(file, &head, is_full)
    }

    fn scan_segment(&mut self, file: File, head: &Head, was_full: bool) -> Result<()> {
        let synced = self.synced(&file, head)?;
        let Scanned { entries, end, damage, first_gap, is_torn } = scan(&file, head, synced)?;
        for &at in &damage {
            self.meet_damage(&segment_name(head.segment), at, "no sound record")?;
        }
        self.found.report.scanned += 1;
        self.found.report.torn += u64::from(is_torn && !was_full);
        let segment = Segment::opened(file, head.segment, head.stamp, None);
        self.hold(segment, false, end, &entries)?;
        if let Some(scanned) = self.found.index.segments.get_mut(&head.segment) {
            scanned.entries = entries;
            scanned.is_suspect = !damage.is_empty() || was_full;
            if let Some(at) = first_gap {
                scanned.note_gap(at);
            }
        }
        Ok(())
    }

    /// Offset before which nothing but damage can have broken a record.
    fn synced(&mut self, file: &File, head: &Head) -> Result<u64> {
        if file.metadata().map_err(io_error("fstat"))?.len() < FIRST_RECORD {
            return Ok(0); // its head was missed already
        }
        match read_synced(file, head.stamp).map_err(io_error("pread"))? {
            Synced::Until(end) => Ok(end),
            Synced::Damaged => {
                self.meet_damage(&segment_name(head.segment), 0, "no sound note of syncs")?;
                Ok(0)
            }
        }
    }

    fn hold(&mut self, segment: Segment, full: bool, end: u64, entries: &[Entry]) -> Result<()> {
        if !full {
            segment.mark_dirty();
        }
        let id = segment.id;
        let mut held = Held::new(Arc::new(segment), end, Vec::new());
        held.is_full = full;
        self.found.index.segments.insert(id, held);
        for (ordinal, entry) in entries.iter().enumerate() {
            let ordinal = u32::try_from(ordinal).map_err(|_| damaged("footer", 0, "too long"))?;
            self.found.index.recall(id, ordinal, entry);
        }
        Ok(())
    }

    /// The newest segment is appended to again, if a crash or a close left it open.
    fn adopt_newest(&mut self) -> Result<()> {
        let Some((&id, held)) = self.found.index.segments.last_key_value() else { return Ok(()) };
        if !held.segment.has_footer()
            && !held.is_suspect
            && id.saturating_add(1) == self.found.next_segment
        {
            held.segment.file.set_len(held.end).map_err(io_error("ftruncate"))?;
            let num_segments = self.found.index.segments.len() as u64;
            let is_at_limit = num_segments >= self.options.max_segments();
            let purpose = if is_at_limit { Purpose::Move } else { Purpose::Put };
            self.found.index.aim(purpose, id);
        }
        Ok(())
    }
}

fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// Where a segment's footer begins and what it lists; None if it has no sound one.
fn read_end(file: &File, listed: &Listed) -> Result<Option<(u64, Vec<Entry>)>> {
    let refused = io_error("pread");
    let file_bytes = file.metadata().map_err(&refused)?.len();
    let Some(tail_at) = file_bytes.checked_sub(BLOCK_BYTES) else { return Ok(None) };
    let mut tail = vec![0; BLOCK_LEN];
    file.read_exact_at(&mut tail, tail_at).map_err(&refused)?;
    let Some(at) = footer_at(listed.segment, listed.stamp, file_bytes, &tail) else {
        return Ok(None);
    };
    let mut footer = vec![0; usize::try_from(file_bytes - at).unwrap_or(0)];
    file.read_exact_at(&mut footer, at).map_err(&refused)?;
    Ok(read_footer(listed.stamp, &footer).map(|entries| (at, entries)))
}

impl Index {
    /// Takes a record that was found; of two of one page, the later put counts, and of a record and
    /// its copy one that was read, or whose footer is durable: else the copy may be no more than an
    /// entry of a list.
    fn recall(&mut self, segment: u32, ordinal: u32, entry: &Entry) {
        self.next_sequence = self.next_sequence.max(entry.sequence.saturating_add(1));
        let identity = entry.page.identity;
        let known = self.pages.get(&identity);
        if entry.mark == Mark::Dead || known.is_some_and(|known| self.outlasts(known, entry)) {
            return;
        }
        self.hide(&identity);
        let Entry { page, sequence, block, num_bytes, .. } = *entry;
        let (num_tokens, parent) = (page.num_tokens, page.parent);
        let place = Place { segment, block, ordinal, num_bytes, num_tokens, sequence, parent };
        if let Some(held) = self.segments.get_mut(&segment) {
            held.live_bytes += place.record_bytes();
            self.pages.insert(identity, place);
        }
    }

    fn outlasts(&self, known: &Place, found: &Entry) -> bool {
        match known.sequence.cmp(&found.sequence) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => {
                let held = self.segments.get(&known.segment);
                held.is_some_and(|held| held.is_full || !held.segment.has_footer())
            }
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;
    use crate::tier::{PageHeader, PageIdentity};

    /// The segment that a page is found in: a record in the first, and its copy in the second.
    fn found_in(footers: [Option<u64>; 2], full: usize) -> u32 {
        let mut index = Index::default();
        let identity = PageIdentity::from_bytes([2; 32]);
        let page = PageHeader { identity, parent: identity, num_tokens: 64 };
        let entry = Entry { page, sequence: 7, block: 1, num_bytes: 100, mark: Mark::Live };
        for (id, footer) in (0..).zip(footers) {
            let file = File::open("/dev/null").expect("it exists");
            let mut held = Held::new(Arc::new(Segment::opened(file, id, 5, footer)), 8192, vec![]);
            held.is_full = id as usize == full;
            index.segments.insert(id, held);
            index.recall(id, 0, &entry);
        }
        index.pages[&identity].segment
    }

    #[test]
    fn a_copy_that_is_only_listed_takes_no_page_from_a_record_that_is_known_to_be_whole() {
        let (read, listed, none) = (None, Some(8192), 2);
        assert_eq!(found_in([listed, listed], 0), 0, "the first footer is durable");
        assert_eq!(found_in([read, listed], none), 0, "the first was read");
        assert_eq!(found_in([listed, read], none), 1);
        assert_eq!(found_in([listed, listed], 1), 1);
    }
}
