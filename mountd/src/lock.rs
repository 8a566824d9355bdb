//! Locks without poison: a panic ends the process (`fuse::abort_on_panic`), so nobody sees one.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks for a few instructions; never across an await.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
