//! The core of `hisparse_sidecar`: integers and host bytes, no Python, no CUDA, no async runtime.
//!
//! [`Manager`] admits sequences and owns every page and every device range; [`HostRegion`] is the
//! memory that the pages lie in; [`HotBuffer`] and [`BlockWindow`] are the executable model of the
//! device's LRU.

mod admission;
mod arena;
mod block_window;
mod error;
pub mod eviction;
pub mod hierarchy;
mod hot_buffer;
mod layout;
mod lease;
mod ledger;
mod manager;
mod names;
mod page;
mod page_loan;
pub mod page_ops;
mod page_table;
mod pooled_keys;
pub mod prefix;
mod region;
mod region_memory;
mod sequence;
mod sharing;
mod slot_lru;
mod split_mix;
mod stats;
mod step_plan;
pub mod sync;
mod tenant_names;
mod tenants;
pub mod tier;

pub use admission::{DeviceCapacity, DeviceSlots};
pub use arena::{IdRange, RangeArena};
pub use block_window::BlockWindow;
pub use error::{Error, ErrorKind, Result};
pub use hot_buffer::HotBuffer;
pub use layout::{HostLayout, LayoutShape};
pub use lease::PageLease;
pub use manager::Manager;
pub use page::{MAX_PAGES, PAGE_TOKENS, PageAllocator, PageHandle};
pub use page_loan::PageLoan;
pub use pooled_keys::{ClosedBlocks, PooledKeys};
pub use region::{HostRegion, RegionOptions};
pub use region_memory::PageKind;
pub use sequence::{SequenceHandle, SequenceRanges};
pub use sharing::{MatchedPrompt, SharingOptions};
pub use slot_lru::{MAX_SLOTS, Resolution, SlotLru, StepStamps};
pub use stats::Stats;
pub use step_plan::{StepPlan, StepRows, Table};
pub use tenants::{TenantId, TenantUsage};

/// Version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
