//! The system's errors in the words of a tier.

use std::io;

use crate::error::Error;

/// What this tier is called in errors.
pub(super) const TIER: &str = "file tier";

/// A refused call on a file that takes no space.
pub(super) fn io_error(call: &'static str) -> impl Fn(io::Error) -> Error {
    move |error| Error::TierIo { tier: TIER, call, text: error.to_string() }
}

/// A refused write of `need` bytes: no space left is a full tier, whatever the tier may hold.
pub(super) fn write_error(
    call: &'static str,
    need: u64,
    capacity: u64,
) -> impl Fn(io::Error) -> Error {
    move |error| match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => {
            Error::TierFull { tier: TIER, need, free: 0, capacity }
        }
        _ => io_error(call)(error),
    }
}

/// Something on the disk that a strict recovery will not pass over.
pub(super) fn damaged(file: &str, at: u64, what: &str) -> Error {
    Error::TierDamaged { tier: TIER, file: file.to_owned(), at, what: what.to_owned() }
}
