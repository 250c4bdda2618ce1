//! The host region: shared memory of a fixed size that may be closed only while nobody borrows it.

use std::os::fd::RawFd;
use std::ptr::NonNull;

use crate::error::{Error, Result, check_range};
use crate::layout::{HostLayout, PagedArray};
use crate::region_memory::{PageKind, RegionMemory};
use crate::sync::{Mutex, lock};

/// What to ask the system for; what it gave is read from the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RegionOptions<'a> {
    /// Ask for 2 MiB pages.
    pub huge_pages: bool,
    /// Ask for memory of this NUMA node.
    pub numa_node: Option<u32>,
    /// Shown in `/proc/PID/maps`; 1 to 249 bytes.
    pub name: &'a str,
}

impl Default for RegionOptions<'_> {
    fn default() -> Self {
        Self { huge_pages: false, numa_node: None, name: "hisparse" }
    }
}

/// A sealed memfd, mapped readable and writable, left out of core dumps.
#[derive(Debug)]
pub struct HostRegion {
    num_bytes: usize,
    page_kind: PageKind,
    numa_node: Option<u32>,
    open: Mutex<OpenRegion>,
}

#[derive(Debug)]
struct OpenRegion {
    memory: Option<RegionMemory>, // None once closed
    num_exports: usize,
}

impl HostRegion {
    /// Makes a region of `num_bytes` zero bytes; pages come into being when first touched.
    pub fn create(num_bytes: usize, options: &RegionOptions<'_>) -> Result<Self> {
        check_range("num_bytes", num_bytes, 1, isize::MAX.unsigned_abs() / 2)?;
        RegionMemory::create(num_bytes, options.huge_pages, options.numa_node, options.name)
            .map(Self::from_memory)
    }

    /// Maps a region received from another process; refused unless its size is sealed.
    pub fn attach(fd: RawFd) -> Result<Self> {
        RegionMemory::attach(fd).map(Self::from_memory)
    }

    fn from_memory(memory: RegionMemory) -> Self {
        Self {
            num_bytes: memory.num_bytes(),
            page_kind: memory.page_kind(),
            numa_node: memory.numa_node(),
            open: Mutex::new(OpenRegion { memory: Some(memory), num_exports: 0 }),
        }
    }

    /// Bytes of the region.
    pub fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    /// The pages that the system gave.
    pub fn page_kind(&self) -> PageKind {
        self.page_kind
    }

    /// The NUMA node that the system bound the region to.
    pub fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    /// The descriptor, owned by the region.
    pub fn fd(&self) -> Result<RawFd> {
        self.with_memory(RegionMemory::fd)
    }

    /// Where the region is mapped; valid until it is closed.
    pub fn address(&self) -> Result<NonNull<u8>> {
        self.with_memory(RegionMemory::address)
    }

    /// Lends the mapping: it stays until [`end_export`](Self::end_export).
    pub fn begin_export(&self) -> Result<NonNull<u8>> {
        let mut open = lock(&self.open)?;
        let address = open.memory.as_ref().map(RegionMemory::address).ok_or(CLOSED)?;
        open.num_exports += 1;
        Ok(address)
    }

    /// Ends one [`begin_export`](Self::begin_export).
    pub fn end_export(&self) -> Result<()> {
        let mut open = lock(&self.open)?;
        check_range("exports of the region", open.num_exports, 1, usize::MAX)?;
        open.num_exports -= 1;
        Ok(())
    }

    /// Unmaps in chunks and closes the descriptor; refused while exports last, legal when closed.
    pub fn close(&self) -> Result<()> {
        let memory = {
            let mut open = lock(&self.open)?;
            if open.num_exports > 0 {
                let found = open.num_exports as u64;
                return Err(Error::WrongState { what: "exports of the region", found, needed: 0 });
            }
            open.memory.take()
        };
        drop(memory); // outside of the lock: unmapping takes its time
        Ok(())
    }

    /// Copies one page of every array of `layout`, which the region is known to hold.
    pub(crate) fn copy_page(&self, layout: &HostLayout, src: u32, dst: u32) -> Result<()> {
        self.with_pages(layout, src.max(dst), |memory| {
            for array in layout.arrays() {
                memory.copy_within(array.at(src), array.at(dst), array.page_bytes);
            }
        })
    }

    /// Whether two pages have the same bytes in every array of `layout`.
    pub(crate) fn same_page(&self, layout: &HostLayout, a: u32, b: u32) -> Result<bool> {
        self.with_pages(layout, a.max(b), |memory| {
            let is_same =
                |array: PagedArray| memory.equal_within(array.at(a), array.at(b), array.page_bytes);
            layout.arrays().all(is_same)
        })
    }

    /// Uses pages of the layout up to `last_page`, which have to lie in the region.
    fn with_pages<T>(
        &self,
        layout: &HostLayout,
        last_page: u32,
        use_pages: impl FnOnce(&RegionMemory) -> T,
    ) -> Result<T> {
        check_range("bytes of the layout", layout.num_bytes(), 1, self.num_bytes)?;
        check_range("page", last_page, 0, layout.shape().num_pages - 1)?;
        self.with_memory(use_pages)
    }

    fn with_memory<T>(&self, use_memory: impl FnOnce(&RegionMemory) -> T) -> Result<T> {
        lock(&self.open)?.memory.as_ref().map(use_memory).ok_or(CLOSED)
    }
}

const CLOSED: Error =
    Error::WrongState { what: "open mappings of the region", found: 0, needed: 1 };

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn region(num_bytes: usize) -> HostRegion {
        HostRegion::create(num_bytes, &RegionOptions::default()).unwrap()
    }

    fn write(region: &HostRegion, at: usize, byte: u8) {
        assert!(at < region.num_bytes());
        // SAFETY: `at` lies inside the mapping.
        let place = unsafe { region.address().unwrap().add(at) };
        // SAFETY: the byte is mapped writable, and no other thread uses it.
        unsafe { place.write(byte) };
    }

    fn read(region: &HostRegion, at: usize) -> u8 {
        assert!(at < region.num_bytes());
        // SAFETY: `at` lies inside the mapping.
        let place = unsafe { region.address().unwrap().add(at) };
        // SAFETY: the byte is mapped readable, and no other thread uses it.
        unsafe { place.read() }
    }

    #[test]
    fn an_attached_region_shows_the_same_bytes() {
        let ours = region(5000);
        let theirs = HostRegion::attach(ours.fd().unwrap()).unwrap();
        write(&ours, 4999, 7);
        assert_eq!(read(&theirs, 4999), 7);
        ours.close().unwrap();
        write(&theirs, 0, 3);
        assert_eq!((read(&theirs, 0), read(&theirs, 4999)), (3, 7));
    }

    #[test]
    fn an_unsealed_descriptor_is_refused_with_both_seal_sets() {
        let flags = rustix::fs::MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("loose", flags).unwrap();
        let error = HostRegion::attach(std::os::fd::AsRawFd::as_raw_fd(&fd)).unwrap_err();
        assert_eq!(error.to_string(), "region seals: found 0x0, needed 0x7");
        assert_eq!(HostRegion::attach(-1).unwrap_err().kind(), ErrorKind::InvalidArgument);
        assert_eq!(HostRegion::attach(1 << 20).unwrap_err().kind(), ErrorKind::Region);
    }

    #[test]
    fn an_exported_region_cannot_be_closed() {
        let region = region(1);
        region.begin_export().unwrap();
        let error = region.close().unwrap_err();
        assert_eq!(error.to_string(), "exports of the region: found 1, needed 0");
        region.end_export().unwrap();
        region.close().unwrap();
        region.close().unwrap();
        assert_eq!(region.address().unwrap_err(), CLOSED);
        assert_eq!(region.begin_export().unwrap_err(), CLOSED);
        assert_eq!(region.end_export().unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn what_the_system_does_not_give_is_reported() {
        let options = RegionOptions { huge_pages: true, numa_node: Some(1000), name: "t" };
        let region = HostRegion::create(3 << 20, &options).unwrap();
        assert_eq!(region.numa_node(), None);
        assert_eq!(region.num_bytes(), 3 << 20);
        write(&region, (3 << 20) - 1, 1);
    }

    #[test]
    fn bad_options_are_refused_with_both_numbers() {
        let error =
            |options: RegionOptions<'_>| HostRegion::create(1, &options).unwrap_err().to_string();
        let options = RegionOptions::default();
        let far = RegionOptions { numa_node: Some(1024), ..options };
        assert_eq!(error(far), "numa_node: found 1024, needed 0 to 1023");
        let nul = RegionOptions { name: "a\0", ..options };
        assert_eq!(error(nul), "name: found byte 0 at 1, needed bytes 1 to 255");
        let huge = HostRegion::create(1 << 61, &options).unwrap_err();
        assert_eq!(huge.kind(), ErrorKind::Region);
    }
}
