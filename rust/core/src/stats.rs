//! Counts of what is in use and of what has happened, taken at one moment.

/// What a manager holds, and what it has done since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Open sequences.
    pub sequences: u64,
    /// Pages of the host pool.
    pub host_pages_total: u64,
    /// Pages that are neither used nor reserved.
    pub host_pages_free: u64,
    /// Pages promised to open sequences and not picked yet.
    pub host_pages_reserved: u64,
    /// Pages with two holders or more: sequences, and the directory of what prompts may find.
    pub host_pages_shared: u64,
    /// Pages out on leases.
    pub host_pages_leased: u64,
    /// Slots of the hot-buffer arena.
    pub slots_total: u64,
    /// Slots held by open sequences.
    pub slots_used: u64,
    /// Slots of the block-window arena.
    pub window_slots_total: u64,
    /// Window slots held by open sequences.
    pub window_slots_used: u64,
    /// Entries of the slot-table arena.
    pub table_tokens_total: u64,
    /// Slot-table entries held by open sequences.
    pub table_tokens_used: u64,
    /// Entries of the block-table arena.
    pub table_blocks_total: u64,
    /// Block-table entries held by open sequences.
    pub table_blocks_used: u64,
    /// Pooled keys of the arena.
    pub pooled_keys_total: u64,
    /// Pooled keys held by open sequences.
    pub pooled_keys_used: u64,
    /// Rows of the per-sequence state.
    pub state_rows_total: u64,
    /// State rows held by open sequences.
    pub state_rows_used: u64,
    /// Sequences opened, forks not counted.
    pub opened: u64,
    /// Sequences closed.
    pub closed: u64,
    /// Sequences forked.
    pub forked: u64,
    /// Truncations.
    pub truncated: u64,
    /// Calls refused because the pool or an arena was full.
    pub refused: u64,
    /// Tokens appended.
    pub appended_tokens: u64,
    /// Partial pages copied, by forks and before appends.
    pub copied_pages: u64,
}

/// The part of [`Stats`] that only grows.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) forked: u64,
    pub(crate) truncated: u64,
    pub(crate) refused: u64,
    pub(crate) appended_tokens: u64,
    pub(crate) copied_pages: u64,
}
