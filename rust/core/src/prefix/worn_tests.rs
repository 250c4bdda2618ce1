//! Case 4: names of leases and pages whose generations are nearly used up.

use super::leases::LeaseKey;
use super::movement::Demotion;
use super::owners::{OwnerId, OwnerLimits};
use super::shelf::{HostShelf, Shelf, ShelfRef};
use super::{Held, LowerTier, PrefixDirectory, PrefixLimits, PrefixTable, TenantId};
use crate::error::{Error, ErrorKind};
use crate::eviction::Lru;
use crate::page::{PAGE_TOKENS, PageAllocator};
use crate::sync::{Arc, Mutex};
use crate::tier::{PageHeader, PageIdentity};

struct Worn {
    shelf: Arc<Mutex<dyn Shelf>>,
    directory: PrefixDirectory,
    tenant: TenantId,
    owner: OwnerId,
}

fn worn() -> Worn {
    let limits = PrefixLimits { max_pages: 4, page_bytes: 1, max_decisions: 8 };
    let table = PrefixTable::new(limits, |keys| Ok(Box::new(Lru::new(keys)?))).unwrap();
    let pool = PageAllocator::new(4).unwrap();
    let shelf: Arc<Mutex<dyn Shelf>> = Arc::new(Mutex::new(HostShelf::new(pool, table)));
    let directory = PrefixDirectory::over(Arc::clone(&shelf), OwnerLimits::with_seed(1)).unwrap();
    let (tenant, owner) = (directory.add_tenant(4).unwrap(), directory.register(0).unwrap());
    Worn { shelf, directory, tenant, owner }
}

impl Worn {
    fn with<R>(&self, work: impl FnOnce(&mut PageAllocator, &mut PrefixTable) -> R) -> R {
        super::shelf::with(&*self.shelf, |pool, table| Ok(work(pool, table))).unwrap()
    }

    fn keep(&self, name: u8) -> PageHeader {
        let [identity, parent] = [name, 0].map(|byte| PageIdentity::from_bytes([byte; 32]));
        let page = PageHeader { identity, parent, num_tokens: PAGE_TOKENS };
        self.directory.take(self.tenant, 1).unwrap().publish(0, &[page]).unwrap();
        page
    }
}

fn assert_stale(error: &Error) {
    assert_eq!(error.kind(), ErrorKind::StaleHandle, "{error}");
}

#[test]
fn the_last_lease_of_an_entry_is_freed_once_and_the_entry_retired() {
    let worn = worn();
    let page = worn.keep(1);
    let first =
        worn.directory.match_prefix(&[page.identity], worn.tenant, worn.owner, u64::MAX).unwrap();
    let last = LeaseKey::from_bits(u64::from(u32::MAX) << 32);
    worn.with(|_, table| table.leases.age(0, u32::MAX));
    assert_stale(&first.pages(0).unwrap_err());
    assert_eq!(worn.directory.end_lease(last), Ok(()));
    for name in [last, first.key(), LeaseKey::from_bits(0)] {
        assert_stale(&worn.directory.end_lease(name).unwrap_err());
    }
    let next =
        worn.directory.match_prefix(&[page.identity], worn.tenant, worn.owner, u64::MAX).unwrap();
    assert_eq!(next.key(), LeaseKey::from_bits(1 << 32 | 1), "entry 1, generation 1");
    drop(first);
    assert_eq!(worn.directory.stats().unwrap().pins, 1);
    worn.directory.check_integrity().unwrap();
}

#[test]
fn a_movement_cannot_follow_a_page_into_its_next_life() {
    let worn = worn();
    let (page, shelf) = (worn.keep(1), ShelfRef::new(&worn.shelf));
    let begun = worn.with(|pool, table| table.begin_demotions(pool, 1)).unwrap().1[0];
    let demotion = worn.with(|_, table| Demotion::new(&shelf, table, begun)).unwrap().enqueued();
    let last = worn.with(|_, table| table.entries.age(0, u32::MAX));
    let refused = demotion.completed(LowerTier::File).unwrap_err();
    assert_stale(&refused.error);
    drop(refused.guard);
    let demotion = worn.with(|_, table| Demotion::new(&shelf, table, last)).unwrap().enqueued();
    assert!(matches!(demotion.completed(LowerTier::File), Ok(Held::Lower(_))));
    assert_eq!(worn.directory.lost_below(&page.identity, LowerTier::File), Ok(true));
    worn.keep(2);
    assert_stale(&worn.with(|pool, table| table.complete_promotion(pool, last)).unwrap_err());
    assert_eq!(worn.with(|_, table| table.find(&PageIdentity::from_bytes([2; 32]))), Some(1));
    worn.directory.check_integrity().unwrap();
}
