//! The one error type: what was found and what was needed, with both numbers.

/// Every call of this crate that can fail returns this; a failed call leaves its state unchanged.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller may do about an [`Error`]; bindings map each kind to one class or status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The call itself is wrong; repeating it fails again.
    InvalidArgument,
    /// Too few host pages are free now.
    HostPoolFull,
    /// Too few ids, or no range long enough, are free in a device arena now.
    DeviceArenaFull,
    /// The handle was never given out.
    UnknownSequence,
    /// The handle named something that has ended since.
    StaleHandle,
    /// The call does not fit the state that the object is in.
    WrongState,
    /// The operating system refused a call on a region.
    Region,
    /// A tier has no room for a page, or a tenant's share of it has none.
    TierFull,
    /// A tier does not answer: its device, its server or its network failed, or is being spared.
    TierDown,
    /// The call's deadline passed first.
    DeadlinePassed,
    /// An invariant does not hold: a bug of this crate.
    Corrupt,
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An argument lies outside of its range.
    #[error("{what}: found {found}, needed {min} to {max}")]
    OutOfRange {
        /// Name of the argument.
        what: &'static str,
        /// Value given.
        found: i128,
        /// Least value allowed.
        min: i128,
        /// Greatest value allowed.
        max: i128,
    },
    /// A count is not a whole number of units.
    #[error("{what}: found {found}, needed a multiple of {unit}")]
    NotAMultiple {
        /// Name of the argument.
        what: &'static str,
        /// Value given.
        found: u64,
        /// What it must be a multiple of.
        unit: u64,
    },
    /// An argument holds a character that the call cannot take.
    #[error("{what}: found byte {found} at {at}, needed bytes 1 to 255")]
    BadByte {
        /// Name of the argument.
        what: &'static str,
        /// Byte found.
        found: u8,
        /// Its offset.
        at: usize,
    },
    /// Too few host pages are free; reserved pages are not free.
    #[error("host pool full: need {need} pages, {free} free of {total}")]
    HostPoolFull {
        /// Pages that the call needs.
        need: u64,
        /// Pages neither used nor reserved.
        free: u64,
        /// Pages of the pool.
        total: u64,
    },
    /// A tenant may not have so many host pages more.
    #[error("share of tenant {tenant} full: need {need} pages, {free} free of {quota}")]
    ShareFull {
        /// Number of the tenant.
        tenant: u16,
        /// Pages that the call needs.
        need: u64,
        /// Pages of its quota that are not in use.
        free: u64,
        /// Pages that it may have.
        quota: u64,
    },
    /// No contiguous range of the asked length is free.
    #[error(
        "device arena full: need {need} {arena} in one range, {free} free of {total}, \
         longest free range {longest}"
    )]
    DeviceArenaFull {
        /// What the arena holds.
        arena: &'static str,
        /// Ids that the call needs.
        need: u64,
        /// Free ids.
        free: u64,
        /// Length of the longest free range.
        longest: u64,
        /// Ids of the arena.
        total: u64,
    },
    /// The slots that may be evicted are too few for the misses of one call.
    #[error("{num_slots} slots: {misses} misses need a victim each, {victims} may be evicted")]
    TooFewVictims {
        /// Items that need a slot.
        misses: usize,
        /// Slots that may be evicted.
        victims: usize,
        /// All slots.
        num_slots: usize,
    },
    /// The handle was never given out.
    #[error(
        "unknown sequence {handle:#x}: names entry {entry} generation {generation}, \
         {num_entries} entries exist"
    )]
    UnknownSequence {
        /// The handle.
        handle: u64,
        /// Its low half.
        entry: u32,
        /// Its high half.
        generation: u32,
        /// Entries of the table.
        num_entries: usize,
    },
    /// The handle named something that has ended since.
    #[error("stale {what} handle {id}: found generation {found}, needed {current}")]
    StaleHandle {
        /// What the handle names.
        what: &'static str,
        /// Its number.
        id: u32,
        /// Generation in the handle.
        found: u32,
        /// Generation that is live, or comes next.
        current: u32,
    },
    /// The owner was never registered, or has been given up since.
    #[error("unknown owner {owner:#x}: never registered, or given up; {num_live} live")]
    UnknownOwner {
        /// The owner's number.
        owner: u64,
        /// Owners that live.
        num_live: usize,
    },
    /// A tier that has what is needed does not give it out now; it may at the next try.
    #[error("{what}: found {found}, needed {needed}; a tier that has the others failed")]
    TierShort {
        /// What is missing.
        what: &'static str,
        /// How much there is.
        found: u64,
        /// How much the call needs.
        needed: u64,
    },
    /// No tenant of that name; names are not repeated, for whoever asks may not know them.
    #[error("unknown tenant: named 1, {num_known} known, none of that name")]
    UnknownTenant {
        /// Tenants that are known.
        num_known: usize,
    },
    /// The call does not fit the state that the object is in.
    #[error("{what}: found {found}, needed {needed}")]
    WrongState {
        /// What was counted.
        what: &'static str,
        /// The count found.
        found: u64,
        /// The count that the call needs.
        needed: u64,
    },
    /// The operating system refused a call on a region.
    #[error("region of {num_bytes} bytes: {call} failed: {text}")]
    Region {
        /// The system call.
        call: &'static str,
        /// Bytes of the region.
        num_bytes: u64,
        /// Number of the error.
        errno: i32,
        /// The system's words for it, with the number.
        text: String,
    },
    /// A region from another process may still shrink, grow or lose its seals.
    #[error("region seals: found {found:#x}, needed {needed:#x}")]
    RegionUnsealed {
        /// Seals found.
        found: u32,
        /// Seals needed.
        needed: u32,
    },
    /// A tier cannot take a page now.
    #[error("{tier} full: need {need} bytes, {free} free of {capacity}")]
    TierFull {
        /// Which tier, or whose share of it.
        tier: &'static str,
        /// Bytes that the page takes.
        need: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that it may hold.
        capacity: u64,
    },
    /// A tier is spared calls after too many failures.
    #[error("{tier} down: {failures} calls failed, {limit} permitted; next try in {retry_ms} ms")]
    TierDown {
        /// Which tier.
        tier: &'static str,
        /// Failures within the time that the breaker looks back.
        failures: u32,
        /// How many it permits.
        limit: u32,
        /// Until a call is let through.
        retry_ms: u64,
    },
    /// A tier's device, server or network refused a call.
    #[error("{tier}: {call} failed: {text}")]
    TierIo {
        /// Which tier.
        tier: &'static str,
        /// What was tried.
        call: &'static str,
        /// The system's or server's words.
        text: String,
    },
    /// A tier's store holds pages of another model or layout.
    #[error("{tier}: found pages of digest {found}, needed {needed}")]
    TierForeign {
        /// Which tier.
        tier: &'static str,
        /// Digest of the pages, in hexadecimal.
        found: String,
        /// Digest asked for.
        needed: String,
    },
    /// A tier's store is damaged, and the caller asked to be told.
    #[error("{tier}: {file} damaged at byte {at}: {what}")]
    TierDamaged {
        /// Which tier.
        tier: &'static str,
        /// The file.
        file: String,
        /// Where in it.
        at: u64,
        /// What is missing there.
        what: String,
    },
    /// The call's deadline passed before it was done.
    #[error("{call}: deadline passed")]
    DeadlinePassed {
        /// The call.
        call: &'static str,
    },
    /// An invariant does not hold: a bug of this crate.
    #[error("integrity: {what}: found {found}, expected {expected}")]
    Corrupt {
        /// The invariant.
        what: &'static str,
        /// Value found.
        found: u64,
        /// Value that the other records imply.
        expected: u64,
    },
    /// A thread panicked while it held the lock: a bug of this crate.
    #[error("integrity: 1 thread panicked under the lock, expected 0")]
    Poisoned,
}

impl Error {
    /// What a caller may do about this error.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. }
            | Self::NotAMultiple { .. }
            | Self::BadByte { .. }
            | Self::UnknownTenant { .. }
            | Self::TooFewVictims { .. } => ErrorKind::InvalidArgument,
            Self::HostPoolFull { .. } => ErrorKind::HostPoolFull,
            Self::DeviceArenaFull { .. } => ErrorKind::DeviceArenaFull,
            Self::UnknownSequence { .. } => ErrorKind::UnknownSequence,
            Self::StaleHandle { .. } | Self::UnknownOwner { .. } => ErrorKind::StaleHandle,
            Self::WrongState { .. } | Self::TierForeign { .. } | Self::TierDamaged { .. } => {
                ErrorKind::WrongState
            }
            Self::Region { .. } | Self::RegionUnsealed { .. } => ErrorKind::Region,
            Self::TierFull { .. } | Self::ShareFull { .. } => ErrorKind::TierFull,
            Self::TierDown { .. } | Self::TierIo { .. } | Self::TierShort { .. } => {
                ErrorKind::TierDown
            }
            Self::DeadlinePassed { .. } => ErrorKind::DeadlinePassed,
            Self::Corrupt { .. } | Self::Poisoned => ErrorKind::Corrupt,
        }
    }
}

/// Refuses `found` outside of `min..=max`, naming the argument.
pub(crate) fn check_range<T>(what: &'static str, found: T, min: T, max: T) -> Result<()>
where
    T: Copy + PartialOrd + TryInto<i128>,
{
    if min <= found && found <= max {
        return Ok(());
    }
    let wide = |value: T| value.try_into().unwrap_or(i128::MAX);
    Err(Error::OutOfRange { what, found: wide(found), min: wide(min), max: wide(max) })
}

/// Refuses a state in which two records of the same fact differ.
pub(crate) fn check_equal<T>(what: &'static str, found: T, expected: T) -> Result<()>
where
    T: Copy + PartialEq + TryInto<u64>,
{
    if found == expected {
        return Ok(());
    }
    let wide = |value: T| value.try_into().unwrap_or(u64::MAX);
    Err(Error::Corrupt { what, found: wide(found), expected: wide(expected) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_range_names_the_argument_and_both_numbers() {
        let error = check_range("num_slots", 9, 1, 8).unwrap_err();
        assert_eq!(error.to_string(), "num_slots: found 9, needed 1 to 8");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn check_equal_names_what_differs() {
        let error = check_equal("pages used", 3_usize, 4).unwrap_err();
        assert_eq!(error.to_string(), "integrity: pages used: found 3, expected 4");
    }
}
