//! Each tenant's resident pages by last use: a tenant at its quota gives up its own, and a policy
//! that orders everybody's would have to be searched for them.

use crate::tenants::TenantId;

const NONE: u32 = u32::MAX;

/// One list a tenant, linked by entry number. Of two pages that came one after the other, the later
/// one of the sequence goes first.
#[derive(Debug)]
pub(super) struct OwnOrder {
    links: Vec<Link>,
    ends: Vec<Link>, // of each tenant's list: its newest page is `older` than the end, and so on
}

#[derive(Debug, Clone, Copy)]
struct Link {
    older: u32,
    newer: u32,
}

impl OwnOrder {
    pub(super) fn new(max_pages: u32) -> Self {
        let link = Link { older: NONE, newer: NONE };
        Self { links: vec![link; max_pages as usize], ends: Vec::new() }
    }

    /// Adds a page as its tenant's newest, or just older than the page before it in its sequence.
    pub(super) fn push(&mut self, tenant: TenantId, entry: u32, parent: Option<u32>) {
        let newer = parent.unwrap_or(NONE);
        let older = self.link(tenant, newer).older;
        self.links[entry as usize] = Link { older, newer };
        self.link(tenant, newer).older = entry;
        self.link(tenant, older).newer = entry;
    }

    /// Takes out a page that was pushed.
    pub(super) fn unlink(&mut self, tenant: TenantId, entry: u32) {
        let Link { older, newer } = self.links[entry as usize];
        self.link(tenant, newer).older = older;
        self.link(tenant, older).newer = newer;
    }

    /// Undoes the last [`unlink`](Self::unlink).
    pub(super) fn relink(&mut self, tenant: TenantId, entry: u32) {
        let Link { older, newer } = self.links[entry as usize];
        self.link(tenant, newer).older = entry;
        self.link(tenant, older).newer = entry;
    }

    /// A tenant's pages, the one that should go first first.
    pub(super) fn iter(&self, tenant: TenantId) -> impl Iterator<Item = u32> {
        let end = self.ends.get(usize::from(tenant.number()));
        let held = |&entry: &u32| entry != NONE;
        let first = end.map(|end| end.newer).filter(held);
        std::iter::successors(first, move |&entry| {
            Some(self.links[entry as usize].newer).filter(held)
        })
    }

    /// The link of a page, or the end of the tenant's list.
    fn link(&mut self, tenant: TenantId, entry: u32) -> &mut Link {
        if entry != NONE {
            return &mut self.links[entry as usize];
        }
        let tenant = usize::from(tenant.number());
        if self.ends.len() <= tenant {
            self.ends.resize(tenant + 1, Link { older: NONE, newer: NONE });
        }
        &mut self.ends[tenant]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_have_lists_of_their_own_and_children_go_before_parents() {
        let [a, b] = [3, 0].map(TenantId::from_number);
        let mut order = OwnOrder::new(8);
        for (tenant, entry, parent) in
            [(a, 5, None), (b, 4, None), (a, 6, Some(5)), (a, 7, Some(6)), (a, 0, None)]
        {
            order.push(tenant, entry, parent);
        }
        assert_eq!(order.iter(a).collect::<Vec<_>>(), [7, 6, 5, 0]);
        order.unlink(a, 6);
        order.unlink(a, 0);
        order.push(a, 6, None);
        assert_eq!(order.iter(a).collect::<Vec<_>>(), [7, 5, 6]);
        order.unlink(b, 4);
        assert_eq!(order.iter(b).next(), None);
        assert_eq!(order.iter(TenantId::from_number(9)).next(), None);
    }
}
