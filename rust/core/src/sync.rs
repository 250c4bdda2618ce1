//! The locks of this crate: std's, or shuttle's when the feature lets it explore schedules.
//!
//! # Lock order
//! A manager's ledger before a region's mapping; a region never takes the ledger.

#[cfg(feature = "shuttle")]
pub use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
#[cfg(not(feature = "shuttle"))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};

use crate::error::{Error, Result};

/// Locks; a panic under the lock is reported to every later caller instead of spreading.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> Result<MutexGuard<'_, T>> {
    mutex.lock().map_err(|_| Error::Poisoned)
}

/// Locks what is whole at every step, so that a panic under the lock leaves it sound. A lock of std
/// always: schedules of what it guards are not explored.
pub(crate) fn lock_whole<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
