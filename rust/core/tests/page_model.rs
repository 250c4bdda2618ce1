//! The page allocator against a map of references.

use std::collections::HashMap;

use hisparse_core::{Error, ErrorKind, PageAllocator, PageHandle, TenantId};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const NUM_PAGES: usize = 12;

#[derive(Debug, Clone)]
enum Op {
    Reserve(usize),
    Unreserve(usize),
    Take,
    Allocate(usize),
    Share(prop::sample::Index),
    Release(prop::sample::Index),
    UseStale(prop::sample::Index),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..8_usize).prop_map(Op::Reserve),
        1 => (0..4_usize).prop_map(Op::Unreserve),
        4 => Just(Op::Take),
        1 => (0..6_usize).prop_map(Op::Allocate),
        3 => any::<prop::sample::Index>().prop_map(Op::Share),
        5 => any::<prop::sample::Index>().prop_map(Op::Release),
        1 => any::<prop::sample::Index>().prop_map(Op::UseStale),
    ]
}

#[derive(Debug, Default)]
struct Model {
    refs: HashMap<PageHandle, u32>,
    order: Vec<PageHandle>, // the keys of `refs`, so that an index picks the same one each run
    reserved: usize,
    stale: Vec<PageHandle>,
}

impl Model {
    fn available(&self) -> usize {
        NUM_PAGES - self.refs.len() - self.reserved
    }

    fn insert(&mut self, page: PageHandle) {
        assert!(!self.stale.contains(&page), "a handle was given out twice: {page:?}");
        let same_page = |other: &&PageHandle| other.page() == page.page();
        assert_eq!(self.order.iter().find(same_page), None);
        self.refs.insert(page, 1);
        self.order.push(page);
    }

    fn release(&mut self, page: PageHandle) -> bool {
        let refs = self.refs.get_mut(&page).expect("the model holds it");
        *refs -= 1;
        let is_free = *refs == 0;
        if is_free {
            self.refs.remove(&page);
            self.order.retain(|&other| other != page);
            self.stale.push(page);
        }
        is_free
    }
}

fn apply(op: &Op, pages: &mut PageAllocator, model: &mut Model) {
    match op {
        Op::Reserve(count) => {
            let fits = *count <= model.available();
            assert_eq!(pages.reserve(TenantId::DEFAULT, *count).is_ok(), fits);
            model.reserved += if fits { *count } else { 0 };
        }
        Op::Unreserve(count) => {
            let fits = *count <= model.reserved;
            assert_eq!(pages.unreserve(TenantId::DEFAULT, *count).is_ok(), fits);
            model.reserved -= if fits { *count } else { 0 };
        }
        Op::Take if model.reserved == 0 => {
            assert_eq!(
                pages.take_reserved(TenantId::DEFAULT).map_err(|e| e.kind()),
                Err(ErrorKind::WrongState)
            );
        }
        Op::Take => {
            model.reserved -= 1;
            model.insert(
                pages
                    .take_reserved(TenantId::DEFAULT)
                    .expect("a reserved page never fails to appear"),
            );
        }
        Op::Allocate(count) => allocate(*count, pages, model),
        Op::Share(pick) if !model.order.is_empty() => {
            let page = *pick.get(&model.order);
            pages.share(page).expect("the page is in use");
            *model.refs.entry(page).or_default() += 1;
        }
        Op::Release(pick) if !model.order.is_empty() => {
            let page = *pick.get(&model.order);
            assert_eq!(pages.release(page), Ok(model.release(page)));
        }
        Op::UseStale(pick) if !model.stale.is_empty() => {
            let page = *pick.get(&model.stale);
            assert!(matches!(pages.share(page), Err(Error::StaleHandle { .. })));
            assert!(matches!(pages.release(page), Err(Error::StaleHandle { .. })));
        }
        Op::Share(_) | Op::Release(_) | Op::UseStale(_) => {}
    }
}

fn allocate(count: usize, pages: &mut PageAllocator, model: &mut Model) {
    let free = model.available();
    match pages.allocate(TenantId::DEFAULT, count) {
        Ok(handles) => handles.into_iter().for_each(|page| model.insert(page)),
        Err(error) => {
            let (need, free, total) = (count as u64, free as u64, NUM_PAGES as u64);
            assert!(need > free);
            assert_eq!(error, Error::HostPoolFull { need, free, total });
        }
    }
}

fn check_same(pages: &PageAllocator, model: &Model) {
    pages.check_integrity().expect("every step leaves a sound allocator");
    assert_eq!(pages.num_reserved(), model.reserved);
    assert_eq!(pages.num_available(), model.available());
    assert_eq!(pages.num_shared(), model.refs.values().filter(|&&refs| refs > 1).count());
    for (&page, &refs) in &model.refs {
        assert_eq!(pages.num_refs(page), Ok(refs));
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Default::default()
    })]

    #[test]
    fn the_allocator_equals_a_map_of_references(ops in prop::collection::vec(op(), 1..120)) {
        let mut pages = PageAllocator::new(12).expect("12 pages are legal");
        let mut model = Model::default();
        for op in &ops {
            apply(op, &mut pages, &mut model);
            check_same(&pages, &model);
        }
    }
}
