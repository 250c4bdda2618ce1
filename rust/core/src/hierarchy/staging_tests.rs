//! Case 5, the staging half: whichever allocation of it fails, no pin and no page is lost.

use std::sync::Arc as StdArc;
use std::time::Duration;

use super::{Hierarchy, HierarchyLimits, Loading, LowerStore};
use crate::admission::{DeviceCapacity, DeviceSlots};
use crate::error::ErrorKind;
use crate::eviction::LeafFirst;
use crate::layout::{HostLayout, LayoutShape};
use crate::manager::Manager;
use crate::page::{PAGE_TOKENS, PageAllocator};
use crate::prefix::{
    LowerTier, OwnerId, OwnerLimits, PrefixDirectory, PrefixLimits, PrefixTable, TenantId,
};
use crate::region::{HostRegion, RegionOptions};
use crate::sharing::SharingOptions;
use crate::sync::Arc;
use crate::tier::{Deadline, MemoryTier, PageHeader, PageIdentity};

const NUM_PAGES: u32 = 64;
const SHAPE: LayoutShape = LayoutShape {
    num_layers: 1,
    num_anchors: 1,
    kv_row_bytes: 3,
    index_row_bytes: 2,
    num_pages: NUM_PAGES,
};
const DEVICE: DeviceSlots = DeviceSlots { slots: 1, window_slots: 1 };
const CAPACITY: DeviceCapacity = DeviceCapacity {
    slots: 8,
    window_slots: 8,
    table_tokens: 4096,
    table_blocks: 64,
    pooled_keys: 128,
    sequences: 4,
};

struct Host {
    hierarchy: Hierarchy,
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
    chain: Vec<PageIdentity>,
}

/// A hierarchy whose 64 pages have all gone down.
fn host() -> Host {
    let layout = HostLayout::new(SHAPE).expect("legal, and room");
    let region =
        HostRegion::create(layout.num_bytes(), &RegionOptions::default()).expect("legal, and room");
    let limits = PrefixLimits { max_pages: 128, page_bytes: 1, max_decisions: 64 };
    let table = PrefixTable::new(limits, |keys| Ok(Box::new(LeafFirst::new(keys)?)))
        .expect("legal, and room");
    let pool = PageAllocator::new(NUM_PAGES).expect("legal, and room");
    let directory =
        PrefixDirectory::new(pool, table, OwnerLimits::with_seed(1)).expect("legal, and room");
    let tenant = directory.add_tenant(u64::from(NUM_PAGES)).expect("legal, and room");
    let owner = directory.register(0).expect("legal, and room");
    let name = |number: u32| {
        PageIdentity::from_bytes([u8::try_from(number).expect("legal, and room"); 32])
    };
    let pages: Vec<PageHeader> = (1..=NUM_PAGES)
        .map(|number| PageHeader {
            identity: name(number),
            parent: name(number - 1),
            num_tokens: PAGE_TOKENS,
        })
        .collect();
    let mut taken = directory.take(tenant, pages.len()).expect("legal, and room");
    taken.publish(0, &pages).expect("legal, and room");
    drop(taken);
    let store = StdArc::new(MemoryTier::new(1 << 20));
    let below = vec![LowerStore { tier: LowerTier::File, store }];
    let limits = HierarchyLimits { num_threads: 2, ..HierarchyLimits::default() };
    let hierarchy = Hierarchy::new(Arc::new(region), layout, directory.clone(), below, limits)
        .expect("legal, and room");
    assert_eq!(hierarchy.make_room(pages.len(), far()), Ok(pages.len()));
    let chain = pages.iter().map(|page| page.identity).collect();
    Host { hierarchy, directory, tenant, owner, chain }
}

fn far() -> Deadline {
    Deadline::after(Duration::from_secs(600))
}

#[test]
fn no_pin_and_no_page_is_lost_whichever_staging_allocation_fails() {
    let host = host();
    let staging = &host.hierarchy.mover.staging;
    for nth in 1..=200 {
        staging.fail_in(nth);
        let lease =
            host.directory.match_prefix(&host.chain, host.tenant, host.owner, u64::MAX).unwrap();
        let loaded = host.hierarchy.load(&lease, 0..64, 0, far());
        match nth {
            1..=64 => assert_eq!(loaded.unwrap_err().kind(), ErrorKind::TierFull, "n = {nth}"),
            _ => assert_eq!(loaded.unwrap().pages, 64, "n = {nth}"),
        }
        staging.fail_in(0);
        drop(lease);
        assert_eq!(staging.used_bytes(), 0);
        let stats = host.directory.stats().unwrap();
        assert_eq!((stats.pins, stats.promoting, stats.pages), (0, 0, 64), "n = {nth}");
        host.directory.check_integrity().unwrap();
        let lease =
            host.directory.match_prefix(&host.chain, host.tenant, host.owner, u64::MAX).unwrap();
        assert_eq!(host.hierarchy.load(&lease, 0..64, 0, far()).unwrap().pages, 64);
        drop(lease);
        host.hierarchy.make_room(64, far()).unwrap();
        assert_eq!(host.directory.take(host.tenant, 64).unwrap().len(), 64);
    }
}

#[test]
fn a_demotion_without_staging_leaves_its_page_where_it_was() {
    let host = host();
    let lease =
        host.directory.match_prefix(&host.chain, host.tenant, host.owner, u64::MAX).unwrap();
    host.hierarchy.load(&lease, 0..64, 0, far()).unwrap();
    for identity in &host.chain {
        host.directory.lost_below(identity, LowerTier::File).unwrap();
    }
    drop(lease);
    for nth in 1..=8 {
        host.hierarchy.mover.staging.fail_in(nth);
        assert_eq!(host.hierarchy.make_room(64, far()), Ok(64), "the next round takes the rest");
        let lease =
            host.directory.match_prefix(&host.chain, host.tenant, host.owner, u64::MAX).unwrap();
        assert_eq!(host.hierarchy.load(&lease, 0..64, 0, far()).unwrap().pages, 64);
        for identity in &host.chain {
            host.directory.lost_below(identity, LowerTier::File).unwrap();
        }
    }
}

/// A manager and a hierarchy without threads; 16 full pages of `tokens` have gone down.
fn host_of_prompt(tokens: &[u32]) -> (Manager, Hierarchy) {
    let layout = HostLayout::new(SHAPE).expect("legal, and room");
    let region =
        HostRegion::create(layout.num_bytes(), &RegionOptions::default()).expect("legal, and room");
    let region = Arc::new(region);
    let options = SharingOptions::default();
    let manager = Manager::sharing(Arc::clone(&region), layout, CAPACITY, 128, &options)
        .expect("legal, and room");
    let below =
        vec![LowerStore { tier: LowerTier::File, store: StdArc::new(MemoryTier::new(1 << 20)) }];
    let limits = HierarchyLimits { num_threads: 0, ..HierarchyLimits::default() };
    let hierarchy = Hierarchy::new(region, layout, manager.directory(), below, limits)
        .expect("legal, and room");
    let opened = open(&manager, &hierarchy, tokens);
    let count = u32::try_from(tokens.len()).expect("legal, and room");
    manager.append(opened.sequence, count).expect("legal, and room");
    manager.advance_pooled(opened.sequence, 0, count).expect("legal, and room");
    manager.note_tokens(opened.sequence, 0, tokens).expect("legal, and room");
    assert_eq!(manager.publish(opened.sequence), Ok(16));
    manager.close(opened.sequence).expect("legal, and room");
    assert_eq!(hierarchy.drain(far()).expect("legal, and room").moved, 16);
    (manager, hierarchy)
}

fn open(manager: &Manager, hierarchy: &Hierarchy, tokens: &[u32]) -> super::OpenedPrompt {
    let loading = Loading { deadline: far(), recompute_tokens_per_s: None };
    hierarchy.open_prompt(manager, ("", tokens), 0, DEVICE, loading).expect("legal, and room")
}

#[test]
fn a_prompt_begins_with_what_has_come_before_staging_ran_out() {
    let tokens: Vec<u32> = (0..=16 * PAGE_TOKENS).collect();
    let (manager, hierarchy) = host_of_prompt(&tokens);
    for nth in 1..=16 {
        hierarchy.mover.staging.fail_in(nth as usize);
        let opened = open(&manager, &hierarchy, &tokens);
        assert_eq!(opened.cached_tokens, (nth - 1) * PAGE_TOKENS);
        manager.close(opened.sequence).unwrap();
        assert_eq!(hierarchy.drain(far()).unwrap().left, 0);
        assert_eq!(manager.directory().stats().unwrap().pins, 0);
    }
}
