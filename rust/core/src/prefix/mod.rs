//! Which pages are held, where, and by whom: the directory that lets sequences share prefixes.
//!
//! A page has one identity, which covers its KV rows, index rows and pooled keys together. Life of
//! a page: `Resident -> Demoting -> Lower -> Promoting -> Resident`, and gone from any of them but
//! those in motion. The host pool stays the only owner of host pages: the directory holds one
//! reference for each page that it has there, as a sequence would.
//!
//! # Invariants
//! 1. A page that a lease pins is never forgotten, and its host page never given to another.
//! 2. Whatever is begun ends: a guard that is dropped gives back all that it held.
//! 3. What a tenant has in the host pool never exceeds its quota.
//! 4. A page that a resting sequence holds is not forgotten while a tier has it; it may move.
//!
//! # Lock order
//! The owners' lock and the shelf's lock are both leaves: no call holds one and takes the other.

mod decisions;
mod directory;
mod entry;
mod evict;
mod hold;
mod host_pages;
mod identity_map;
mod integrity;
mod lease;
mod leases;
mod movement;
mod moves;
mod own_order;
mod owners;
mod publish;
mod shelf;
mod slab;
mod table;
#[cfg(test)]
mod worn_tests;

pub use crate::tenants::{TenantId, TenantUsage};
pub use decisions::{Decision, Verdict};
pub use directory::{HostRoom, PrefixDirectory};
pub use entry::{Held, LowerTier, LowerTiers};
pub use evict::Pressure;
pub(crate) use hold::RestingPage;
pub use host_pages::HostPages;
pub use lease::PrefixLease;
pub use leases::{Elsewhere, LeaseKey};
pub use movement::{Demotion, Enqueued, Promotion, Refused, Started};
pub use owners::{OwnerId, OwnerLimits, Reaped};
pub use publish::Published;
pub use shelf::{HostShelf, Shelf};
pub use table::{PrefixLimits, PrefixStats, PrefixTable};
