//! Between the kernel's requests and the file system: lets them through, holds them, or refuses.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::sync::Notify;

const OPEN: u8 = 0;
const FROZEN: u8 = 1;
const SHUT: u8 = 2;

/// The valve of one mount.
#[derive(Debug, Default)]
pub struct Valve {
    state: AtomicU8,
    changed: Notify,
    inside: AtomicUsize,
    left: Notify,
}

/// A request that is being answered; it has left when this is dropped.
#[derive(Debug)]
pub(crate) struct Pass(Arc<Valve>);

/// The key is pulled.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Shut;

impl Valve {
    /// Lets a request in if it need not wait.
    pub(crate) fn try_enter(self: &Arc<Self>) -> Option<Result<Pass, Shut>> {
        // in before the look: who shuts the valve waits for those who are in
        let pass = self.enter_anyway();
        match self.state.load(Ordering::SeqCst) {
            OPEN => Some(Ok(pass)),
            SHUT => Some(Err(Shut)),
            _ => None,
        }
    }

    /// Lets a request in, after it has waited for the key if it must.
    pub(crate) async fn enter(self: &Arc<Self>) -> Result<Pass, Shut> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(entered) = self.try_enter() {
                return entered;
            }
            changed.await;
        }
    }

    /// Lets a request in that brings what was accepted before, or lets something go.
    pub(crate) fn enter_anyway(self: &Arc<Self>) -> Pass {
        self.inside.fetch_add(1, Ordering::SeqCst);
        Pass(Arc::clone(self))
    }

    /// Requests wait from now on.
    pub(crate) fn freeze(&self) {
        self.set(FROZEN);
    }

    /// Those that wait go on.
    pub(crate) fn thaw(&self) {
        self.set(OPEN);
    }

    /// Requests are refused from now on.
    pub(crate) fn shut(&self) {
        self.set(SHUT);
    }

    /// Waits until nobody is in any more.
    pub(crate) async fn empty(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            left.as_mut().enable();
            if self.inside.load(Ordering::SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let before = self.0.inside.fetch_sub(1, Ordering::SeqCst);
        if before == 1 && self.0.state.load(Ordering::Relaxed) == SHUT {
            self.0.left.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_frozen_valve_holds_and_a_shut_one_refuses() {
        let valve = Arc::new(Valve::default());
        let inside = valve.try_enter().unwrap().unwrap();
        valve.freeze();
        assert!(valve.try_enter().is_none());
        let waits = tokio::spawn({
            let valve = Arc::clone(&valve);
            async move { valve.enter().await.map(drop) }
        });
        valve.thaw();
        assert_eq!(waits.await.unwrap(), Ok(()));
        valve.shut();
        assert_eq!(valve.enter().await.map(drop), Err(Shut));
        let empty = tokio::spawn({
            let valve = Arc::clone(&valve);
            async move { valve.empty().await }
        });
        drop(inside);
        empty.await.unwrap();
    }
}
