//! A sealed memfd and its mapping: every unsafe call on host memory that the system must answer.

use std::ffi::{CString, c_void};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::{NonNull, null_mut};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::error::{Error, Result, check_range};

const HUGE_PAGE_BYTES: usize = 2 << 20;
const BASE_PAGE_BYTES: usize = 4096;
/// Unmapping goes in steps of this size, so that other threads' page faults get their turn.
const RELEASE_CHUNK_BYTES: usize = 1 << 30;
const MAX_NUMA_NODE: u32 = 1023;

/// Neither the length nor the seals may change: whoever maps the region cannot be made to fault.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The pages that a mapping got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// 4 KiB pages; huge ones were not asked for, or neither kind is to be had.
    Normal,
    /// 4 KiB pages that the kernel has agreed to merge into 2 MiB ones where it can.
    Transparent,
    /// 2 MiB pages out of the system's reserve.
    Huge,
}

/// A mapped memfd. Dropping it unmaps in chunks and closes the descriptor.
#[derive(Debug)]
pub(crate) struct RegionMemory {
    fd: OwnedFd,
    address: NonNull<c_void>,
    num_bytes: usize,
    mapped_bytes: usize,
    page_kind: PageKind,
    numa_node: Option<u32>,
}

// SAFETY: the struct owns its mapping, and the address stays valid until it is dropped; bytes are
// reached through raw pointers only, whose users answer for their own races.
unsafe impl Send for RegionMemory {}

impl RegionMemory {
    /// A new sealed memfd; falls back to normal pages and to no binding.
    pub(crate) fn create(
        num_bytes: usize,
        huge_pages: bool,
        numa_node: Option<u32>,
        name: &str,
    ) -> Result<Self> {
        check_range("numa_node", numa_node.unwrap_or(0), 0, MAX_NUMA_NODE)?;
        let name = c_name(name)?;
        let huge = huge_pages.then(|| Self::create_with(num_bytes, true, &name)).transpose();
        let mut memory = match huge {
            Ok(Some(memory)) => memory,
            Ok(None) | Err(_) => Self::create_with(num_bytes, false, &name)?,
        };
        if huge_pages && memory.page_kind == PageKind::Normal {
            memory.advise_huge_pages();
        }
        memory.numa_node = numa_node.filter(|&node| memory.bind(node));
        Ok(memory)
    }

    /// Maps a region that another process made; the descriptor is duplicated.
    pub(crate) fn attach(fd: RawFd) -> Result<Self> {
        check_range("fd", fd, 0, RawFd::MAX)?;
        // SAFETY: used for one fcntl, which answers EBADF if the number is not open.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let fd = rustix::io::fcntl_dupfd_cloexec(borrowed, 3).map_err(os("fcntl(dup)", 0))?;
        let found = rustix::fs::fcntl_get_seals(&fd).map_err(os("fcntl(seals)", 0))?;
        if !found.contains(SEALS) {
            return Err(Error::RegionUnsealed { found: found.bits(), needed: SEALS.bits() });
        }
        let stat = rustix::fs::fstat(&fd).map_err(os("fstat", 0))?;
        let num_bytes = usize::try_from(stat.st_size).unwrap_or(0);
        check_range("bytes of the region", num_bytes, 1, isize::MAX.unsigned_abs())?;
        let file_system = rustix::fs::fstatfs(&fd).map_err(os("fstatfs", num_bytes))?;
        let is_huge = file_system.f_type == libc::HUGETLBFS_MAGIC;
        let unit = usize::try_from(stat.st_blksize).unwrap_or(0).max(BASE_PAGE_BYTES);
        let kind = if is_huge { PageKind::Huge } else { PageKind::Normal };
        Self::map(fd, num_bytes, num_bytes.next_multiple_of(unit), kind)
    }

    fn create_with(num_bytes: usize, huge: bool, name: &CString) -> Result<Self> {
        let unit = if huge { HUGE_PAGE_BYTES } else { BASE_PAGE_BYTES };
        let mapped_bytes = num_bytes.next_multiple_of(unit);
        let file_bytes = if huge { mapped_bytes } else { num_bytes };
        let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        flags.set(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB, huge);
        let fd = rustix::fs::memfd_create(name, flags).map_err(os("memfd_create", num_bytes))?;
        rustix::fs::ftruncate(&fd, file_bytes as u64).map_err(os("ftruncate", num_bytes))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(os("fcntl(seals)", num_bytes))?;
        let kind = if huge { PageKind::Huge } else { PageKind::Normal };
        Self::map(fd, num_bytes, mapped_bytes, kind)
    }

    fn map(fd: OwnedFd, num_bytes: usize, mapped_bytes: usize, kind: PageKind) -> Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing of ours.
        let address =
            unsafe { rustix::mm::mmap(null_mut(), mapped_bytes, access, MapFlags::SHARED, &fd, 0) };
        let address = address.map_err(os("mmap", num_bytes))?;
        let address = NonNull::new(address).ok_or_else(|| os("mmap", num_bytes)(Errno::FAULT))?;
        let memory =
            Self { fd, address, num_bytes, mapped_bytes, page_kind: kind, numa_node: None };
        memory.advise(Advice::LinuxDontDump).map_err(os("madvise(dontdump)", num_bytes))?;
        Ok(memory)
    }

    fn advise_huge_pages(&mut self) {
        if self.advise(Advice::LinuxHugepage).is_ok() && kernel_merges_shared_pages() {
            self.page_kind = PageKind::Transparent;
        }
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the range is this mapping, and neither advice in use changes its bytes.
        unsafe { rustix::mm::madvise(self.address.as_ptr(), self.mapped_bytes, advice) }
    }

    /// Binds pages not touched yet; false where the system has no such node or no such call.
    fn bind(&self, node: u32) -> bool {
        let mut mask = [0_u64; (MAX_NUMA_NODE as usize + 1) / 64];
        mask[node as usize / 64] = 1 << (node % 64);
        // SAFETY: the range is this mapping, and the mask outlives the call; only placement changes.
        let status = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                self.address.as_ptr(),
                self.mapped_bytes,
                libc::MPOL_BIND,
                mask.as_ptr(),
                u64::from(MAX_NUMA_NODE) + 2, // the kernel counts one bit less than it is told
                0,
            )
        };
        status == 0
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.fd.as_fd().as_raw_fd()
    }

    pub(crate) fn address(&self) -> NonNull<u8> {
        self.address.cast()
    }

    pub(crate) fn num_bytes(&self) -> usize {
        self.num_bytes
    }

    pub(crate) fn page_kind(&self) -> PageKind {
        self.page_kind
    }

    pub(crate) fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    /// Copies bytes inside the mapping; the caller has checked that neither range leaves it.
    pub(crate) fn copy_within(&self, src: usize, dst: usize, num_bytes: usize) {
        debug_assert!(src.max(dst) + num_bytes <= self.num_bytes);
        // SAFETY: `src` is an offset inside the mapping.
        let src = unsafe { self.address().as_ptr().add(src) };
        // SAFETY: `dst` is an offset inside the mapping.
        let dst = unsafe { self.address().as_ptr().add(dst) };
        // SAFETY: both ranges lie inside the mapping; `copy` allows them to overlap.
        unsafe { std::ptr::copy(src, dst, num_bytes) };
    }

    /// Whether `num_bytes` bytes at two offsets, both inside the mapping, are the same.
    pub(crate) fn equal_within(&self, a: usize, b: usize, num_bytes: usize) -> bool {
        debug_assert!(a.max(b) + num_bytes <= self.num_bytes);
        let bytes = |offset: usize| {
            // SAFETY: `offset` lies inside the mapping.
            let start = unsafe { self.address().as_ptr().add(offset) };
            // SAFETY: the range lies inside the mapping, and nobody writes pages that are compared.
            unsafe { std::slice::from_raw_parts(start, num_bytes) }
        };
        bytes(a) == bytes(b)
    }
}

impl Drop for RegionMemory {
    fn drop(&mut self) {
        let mut start = 0;
        while start < self.mapped_bytes {
            let chunk = RELEASE_CHUNK_BYTES.min(self.mapped_bytes - start);
            // SAFETY: `start` is an offset inside the mapping.
            let address = unsafe { self.address().as_ptr().add(start) };
            // SAFETY: the range is still mapped, is unmapped once, and nobody holds its address.
            let outcome = unsafe { rustix::mm::munmap(address.cast(), chunk) };
            debug_assert!(outcome.is_ok());
            start += chunk;
        }
    }
}

/// Whether the kernel may back shared memory with transparent huge pages at all.
fn kernel_merges_shared_pages() -> bool {
    let setting = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let setting = std::fs::read_to_string(setting).unwrap_or_default();
    ["[always]", "[within_size]", "[advise]", "[force]"].iter().any(|&on| setting.contains(on))
}

fn c_name(name: &str) -> Result<CString> {
    check_range("bytes of the name", name.len(), 1, 249)?; // 249: the kernel's own bound
    CString::new(name).map_err(|error| {
        let at = error.nul_position();
        Error::BadByte { what: "name", found: 0, at }
    })
}

fn os(call: &'static str, num_bytes: usize) -> impl Fn(Errno) -> Error {
    move |errno| Error::Region {
        call,
        num_bytes: num_bytes as u64,
        errno: errno.raw_os_error(),
        text: errno.to_string(),
    }
}
