//! Requests that wait for an answer, without a task each.
//!
//! A task for a request that waits would wake the network's thread up just to wait in it. A parked
//! one costs nothing until its answer is there, and becomes a task then; or when it has waited for
//! long, and who asks must be looked after.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::lock::lock;

/// How long a request may be parked, about.
const PARKED: Duration = Duration::from_millis(100);

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Where requests are parked.
#[derive(Debug)]
pub(super) struct Parking {
    parked: Mutex<VecDeque<(Instant, Arc<Parked>)>>,
    /// The first one since there was none.
    first: Notify,
}

/// A request that waits.
struct Parked {
    /// Until it is a task.
    work: Mutex<Option<Work>>,
    state: Arc<State>,
    runtime: Handle,
}

#[derive(Debug, Default)]
struct State {
    /// It can go on.
    is_ready: AtomicBool,
    is_task: AtomicBool,
}

/// Whether a request has become a task.
#[derive(Clone, Debug)]
pub(super) struct Tasked(Arc<State>);

impl Tasked {
    /// `work`, but not before the request is a task: for what needs timers.
    pub(super) async fn then<T>(self, work: impl Future<Output = T>) -> T {
        // polled again when it is one
        poll_fn(|_| match self.0.is_task.load(Ordering::SeqCst) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
        work.await
    }
}

impl Parking {
    /// Needs the runtime around it, for as long as it is used.
    pub(super) fn new() -> Arc<Self> {
        let parking = Arc::new(Self { parked: Mutex::default(), first: Notify::new() });
        tokio::spawn(attend(Arc::downgrade(&parking)));
        parking
    }

    /// Goes as far as `work` can here and now; the rest is a task when it can go on, or when it has
    /// waited for long.
    pub(super) fn run<F>(&self, runtime: &Handle, work: impl FnOnce(Tasked) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let state = Arc::<State>::default();
        let work: Work = Box::pin(work(Tasked(Arc::clone(&state))));
        let work = Mutex::new(Some(work));
        let parked = Arc::new(Parked { work, state, runtime: runtime.clone() });
        if parked.is_done() {
            return;
        }
        let mut queue = lock(&self.parked);
        let was_empty = queue.is_empty();
        queue.push_back((Instant::now(), parked));
        drop(queue);
        if was_empty {
            self.first.notify_one();
        }
    }

    fn overdue(&self) -> Vec<Arc<Parked>> {
        let mut queue = lock(&self.parked);
        let now = Instant::now();
        let count = queue.iter().take_while(|(since, _)| now - *since >= PARKED).count();
        queue.drain(..count).map(|(_, parked)| parked).collect()
    }
}

async fn attend(parking: Weak<Parking>) {
    loop {
        let Some(parked) = parking.upgrade() else { return };
        for overdue in parked.overdue() {
            overdue.start();
        }
        if lock(&parked.parked).is_empty() {
            parked.first.notified().await;
        }
        drop(parked);
        tokio::time::sleep(PARKED).await;
    }
}

impl Parked {
    /// Polls it, here; whether there is nothing left to wait for.
    fn is_done(self: &Arc<Self>) -> bool {
        let waker = Waker::from(Arc::clone(self));
        let mut work = lock(&self.work);
        let polled = work.as_mut().map(|work| work.as_mut().poll(&mut Context::from_waker(&waker)));
        if !matches!(polled, Some(Poll::Pending)) {
            *work = None;
            return true;
        }
        drop(work);
        // while it was looked at
        let is_ready = self.state.is_ready.load(Ordering::SeqCst);
        if is_ready {
            self.start();
        }
        is_ready
    }

    fn start(&self) {
        self.spawn(lock(&self.work).take());
    }

    fn spawn(&self, work: Option<Work>) {
        if let Some(work) = work {
            self.state.is_task.store(true, Ordering::SeqCst);
            self.runtime.spawn(work);
        }
    }
}

impl std::fmt::Debug for Parked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parked").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.state.is_ready.store(true, Ordering::SeqCst);
        // else whoever looks at it sees that it is ready
        let work = self.work.try_lock().ok().and_then(|mut work| work.take());
        self.spawn(work);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_need_not_wait_is_done_at_once() {
        let parking = Parking::new();
        let (done, mut is_done) = oneshot::channel();
        parking.run(&Handle::current(), |_| async move { done.send(()).unwrap() });
        assert!(is_done.try_recv().is_ok());
    }

    #[tokio::test]
    async fn what_waits_goes_on_when_it_can() {
        let parking = Parking::new();
        let (done, is_done) = oneshot::channel();
        let (answer, answered) = oneshot::channel();
        let look_after = Arc::new(AtomicBool::new(false));
        let looked_after = Arc::clone(&look_after);
        parking.run(&Handle::current(), |task| async move {
            tokio::select! {
                biased;
                word = answered => done.send(word.unwrap()).unwrap(),
                () = task.then(async { looked_after.store(true, Ordering::SeqCst) }) => {}
            }
        });
        answer.send("word").unwrap();
        assert_eq!(is_done.await, Ok("word"));
        assert!(!look_after.load(Ordering::SeqCst), "it had its answer soon enough");
    }

    #[tokio::test]
    async fn what_waits_for_long_is_looked_after() {
        let parking = Parking::new();
        for _ in 0..2 {
            let (done, is_done) = oneshot::channel();
            parking.run(&Handle::current(), |task| async move {
                let nothing = std::future::pending::<()>();
                tokio::select! {
                    () = nothing => {}
                    () = task.then(std::future::ready(())) => done.send(()).unwrap(),
                }
            });
            assert_eq!(is_done.await, Ok(()));
        }
    }
}
