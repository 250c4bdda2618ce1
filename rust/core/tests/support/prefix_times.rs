//! Leases and owners of a run that end, and those that live on.

use std::collections::BTreeSet;

use hisparse_core::ErrorKind;
use hisparse_core::prefix::{LeaseKey, OwnerId};
use hisparse_core::tier::PageIdentity;

use crate::prefix_pages::{FOREVER, TIMEOUT_MS};
use crate::prefix_run::{Leased, Run};

impl Run {
    pub(crate) fn register(&mut self) {
        let owner = self.directory.register(self.now_ms).expect("numbers are left");
        assert!(self.all_owners.insert(owner), "a number was given out twice");
        self.owners.insert(owner, self.now_ms);
    }

    pub(crate) fn end_lease(&mut self, lease: usize, by_drop: bool) {
        let leased = self.leases.swap_remove(lease);
        let key = leased.lease.key();
        if by_drop {
            drop(leased.lease);
        } else {
            leased.lease.release().expect("the lease lives");
        }
        self.note_end(key, &leased.pages);
    }

    pub(crate) fn use_ended(&mut self, pick: usize) {
        if let Some(&key) = self.ended.get(pick % self.ended.len().max(1)) {
            let error = self.directory.end_lease(key).expect_err("it has ended");
            assert_eq!(error.kind(), ErrorKind::StaleHandle);
        }
    }

    /// Lets time pass; some owners say that they live, and the sweeps run.
    pub(crate) fn advance(&mut self, by_ms: u64, beats: usize) {
        self.now_ms += by_ms;
        let beating: Vec<OwnerId> = self.owners.keys().copied().skip(beats % 3).collect();
        for owner in beating {
            self.directory.heartbeat(owner, self.now_ms).expect("it lives");
            self.owners.insert(owner, self.now_ms);
        }
        let now_ms = self.now_ms;
        let expired = self.end_where(|leased| leased.deadline_ms <= now_ms);
        assert_eq!(self.directory.sweep(now_ms), Ok(expired.len()));
        self.drop_ended(expired);
        self.reap();
    }

    pub(crate) fn reap(&mut self) {
        let mut dead = BTreeSet::new();
        if self.now_ms >= self.next_scan_ms {
            self.next_scan_ms = self.now_ms + TIMEOUT_MS / 4;
            let is_dead = |seen: &u64| self.now_ms - seen > TIMEOUT_MS;
            dead =
                self.owners.iter().filter(|(_, seen)| is_dead(seen)).map(|(id, _)| *id).collect();
        }
        let ended = self.end_where(|leased| dead.contains(&leased.owner));
        let reaped = self.directory.reap(self.now_ms).expect("no lock is poisoned");
        assert_eq!((reaped.owners, reaped.leases), (dead.len(), ended.len()));
        self.owners.retain(|owner, _| !dead.contains(owner));
        for owner in dead {
            assert!(self.directory.heartbeat(owner, self.now_ms).is_err());
            assert!(self.directory.match_prefix(&[], self.tenants[0], owner, FOREVER).is_err());
        }
        self.drop_ended(ended);
    }

    /// Takes the leases that the directory is about to end out of the model.
    pub(crate) fn end_where(&mut self, is_over: impl Fn(&Leased) -> bool) -> Vec<Leased> {
        let (over, live) = std::mem::take(&mut self.leases).into_iter().partition(is_over);
        self.leases = live;
        over
    }

    pub(crate) fn drop_ended(&mut self, ended: Vec<Leased>) {
        for leased in ended {
            let error = leased.lease.pages(self.now_ms).expect_err("the lease has ended");
            assert_eq!(error.kind(), ErrorKind::StaleHandle);
            self.note_end(leased.lease.key(), &leased.pages);
        }
    }

    pub(crate) fn note_end(&mut self, key: LeaseKey, pages: &[PageIdentity]) {
        self.ended.push(key);
        self.forget_lost(pages);
    }
}
