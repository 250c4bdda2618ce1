//! What the directory knows of one page.

use super::slab::SlabKey;
use crate::page::PageHandle;
use crate::tenants::TenantId;
use crate::tier::{PageHeader, PageIdentity};

/// A tier below the host pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LowerTier {
    /// Files of this host.
    File = 1,
    /// A store that other hosts share.
    Remote = 2,
}

/// The tiers below the host pool that have a copy of a page; none if all have lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct LowerTiers(u8);

impl LowerTiers {
    /// No tier.
    pub const NONE: Self = Self(0);

    /// Whether `tier` has a copy.
    pub const fn has(self, tier: LowerTier) -> bool {
        self.0 & tier as u8 != 0
    }

    /// Whether no tier has a copy.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// These and `tier`.
    #[must_use]
    pub const fn with(self, tier: LowerTier) -> Self {
        Self(self.0 | tier as u8)
    }

    /// These without `tier`.
    #[must_use]
    pub const fn without(self, tier: LowerTier) -> Self {
        Self(self.0 & !(tier as u8))
    }
}

/// Where a page is held: what a lease names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// In this page of the host pool, readable.
    Host(u32),
    /// On its way to this page of the host pool; not readable before that movement completes.
    Arriving(u32),
    /// Below the host pool only, in these tiers; empty if they have lost it since it was leased.
    Lower(LowerTiers),
}

/// The state of one page. Copies in lower tiers are counted beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the host pool.
    Resident(PageHandle),
    /// In the host pool and readable, while a copy is made in a lower tier.
    Demoting(PageHandle),
    /// In lower tiers only.
    Lower,
    /// In lower tiers, while it is copied to this host page.
    Promoting(PageHandle),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) identity: PageIdentity,
    pub(super) parent: PageIdentity,
    pub(super) parent_key: Option<Lineage>, // None = not held when this page came
    pub(super) num_children: u32,           // held pages whose `parent_key` names this one
    pub(super) num_pins: u32,               // leases that name this page
    pub(super) num_holds: u32,              // resting sequences that will want this page
    pub(super) place: Place,
    pub(super) tenant: Option<TenantId>, // None = found below, and matched by nobody yet
    pub(super) num_tokens: u8,
    pub(super) is_private: bool, // named so that no prompt can ask for it
    pub(super) lower: LowerTiers,
}

/// The key of a parent; its own type so that an absent one takes no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lineage {
    entry: u32,
    generation: std::num::NonZeroU32,
}

impl Lineage {
    pub(super) fn new(key: SlabKey) -> Option<Self> {
        let generation = std::num::NonZeroU32::new(key.generation)?;
        Some(Self { entry: key.entry, generation })
    }

    pub(super) fn key(self) -> SlabKey {
        SlabKey { entry: self.entry, generation: self.generation.get() }
    }
}

impl Entry {
    pub(super) fn held(&self) -> Held {
        match self.place {
            Place::Resident(page) | Place::Demoting(page) => Held::Host(page.page()),
            Place::Promoting(page) => Held::Arriving(page.page()),
            Place::Lower => Held::Lower(self.lower),
        }
    }

    /// Whether somebody counts on it: its entry stays, even without a copy in any tier.
    pub(super) fn is_kept(&self) -> bool {
        self.num_pins > 0 || self.num_holds > 0
    }

    /// What a tier has to be told of the page.
    pub(super) fn header(&self) -> PageHeader {
        let (identity, parent) = (self.identity, self.parent);
        PageHeader { identity, parent, num_tokens: self.num_tokens.into() }
    }

    /// Whether no tier has it any more.
    pub(super) fn is_lost(&self) -> bool {
        self.place == Place::Lower && self.lower.is_empty()
    }

    /// The host page that the directory has a reference to.
    pub(super) fn host_page(&self) -> Option<PageHandle> {
        match self.place {
            Place::Resident(page) | Place::Demoting(page) | Place::Promoting(page) => Some(page),
            Place::Lower => None,
        }
    }

    /// The host page, if its rows are all there.
    pub(super) fn readable_page(&self) -> Option<PageHandle> {
        match self.place {
            Place::Resident(page) | Place::Demoting(page) => Some(page),
            Place::Lower | Place::Promoting(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::identity_map::WORST_BYTES_PER_PAGE;
    use super::super::slab::Slab;
    use super::*;

    #[test]
    fn a_page_takes_200_bytes_of_metadata_at_most() {
        let (entry, own_order) = (Slab::<Entry>::ENTRY_BYTES, 2 * size_of::<u32>());
        let bytes = entry + own_order + WORST_BYTES_PER_PAGE;
        assert!(bytes <= 200, "{entry} + {own_order} + {WORST_BYTES_PER_PAGE} bytes");
    }

    #[test]
    fn tiers_are_a_set() {
        let both = LowerTiers::NONE.with(LowerTier::File).with(LowerTier::Remote);
        assert!(both.has(LowerTier::File) && both.has(LowerTier::Remote));
        let remote = both.without(LowerTier::File);
        assert!(!remote.has(LowerTier::File) && remote.has(LowerTier::Remote));
        assert!(remote.without(LowerTier::Remote).is_empty());
    }
}
