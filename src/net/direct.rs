//! Connections that are driven by whoever sends.
//!
//! quinn leaves sending to a task of each connection. To wake the network's thread up for it takes
//! longer than to send a small call, so within [`directly`] the thread that has something to send
//! drives the connection itself.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::net::UdpSocket;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tokio::runtime::Handle;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// Within [`directly`]: the connections that have something to do.
    static KEPT: RefCell<Option<Vec<Arc<Driven>>>> = const { RefCell::new(None) };
}

/// quinn's view of tokio. For one endpoint.
#[derive(Debug)]
pub(crate) struct DirectRuntime {
    tokio: Handle,
    has_endpoint: AtomicBool,
}

impl DirectRuntime {
    /// Needs a runtime around it.
    pub(crate) fn current() -> Self {
        Self { tokio: Handle::current(), has_endpoint: AtomicBool::new(false) }
    }
}

impl Runtime for DirectRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _tokio = self.tokio.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Task) {
        // the first is the endpoint's own, which receives
        if self.has_endpoint.swap(true, Ordering::Relaxed) {
            self.tokio.spawn(Driven::run(task));
        } else {
            self.tokio.spawn(task);
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        TokioRuntime.now()
    }
}

/// Does `work`; if it says so beside its result, what it gave to connections is on the wire when
/// this returns. Otherwise the connections' own tasks send it.
pub(crate) fn directly<T>(work: impl FnOnce() -> (T, bool)) -> T {
    if KEPT.with_borrow(Option::is_some) {
        // the outer one sends
        return work().0;
    }
    KEPT.set(Some(Vec::new()));
    let kept = Kept;
    let (result, at_once) = work();
    let driven = kept.take();
    for driven in driven {
        match at_once {
            true => driven.drive(),
            false => driven.wake_task(),
        }
    }
    result
}

/// While [`directly`] is at work.
struct Kept;

impl Kept {
    fn take(self) -> Vec<Arc<Driven>> {
        let mut kept = KEPT.take().unwrap_or_default();
        kept.dedup_by(|a, b| Arc::ptr_eq(a, b));
        kept
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // after a panic: the tasks do it
        for driven in KEPT.take().into_iter().flatten() {
            driven.wake_task();
        }
    }
}

/// A connection's task, which any thread may poll.
struct Driven {
    /// Until it has ended.
    connection: Mutex<Option<Task>>,
    /// Wakes the task that polls it otherwise.
    task: Mutex<Option<Waker>>,
}

impl Driven {
    async fn run(connection: Task) {
        let driven =
            Arc::new(Self { connection: Mutex::new(Some(connection)), task: Mutex::default() });
        let _ends = Ends(Arc::clone(&driven));
        let waker = Waker::from(Arc::clone(&driven));
        poll_fn(|context| {
            let mut task = lock(&driven.task);
            if !task.as_ref().is_some_and(|task| task.will_wake(context.waker())) {
                *task = Some(context.waker().clone());
            }
            drop(task);
            poll(&mut lock(&driven.connection), &waker)
        })
        .await;
    }

    fn drive(self: Arc<Self>) {
        let waker = Waker::from(Arc::clone(&self));
        let polled = match self.connection.try_lock() {
            Ok(mut connection) => poll(&mut connection, &waker),
            Err(TryLockError::Poisoned(poisoned)) => poll(&mut poisoned.into_inner(), &waker),
            // whoever polls it may have looked for what is to be sent before
            Err(TryLockError::WouldBlock) => Poll::Ready(()),
        };
        if polled.is_ready() {
            self.wake_task();
        }
    }

    fn wake_task(&self) {
        if let Some(task) = &*lock(&self.task) {
            task.wake_by_ref();
        }
    }
}

impl Wake for Driven {
    fn wake(self: Arc<Self>) {
        Self::wake_by_ref(&self);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let is_kept = KEPT.with_borrow_mut(|kept| {
            kept.as_mut().map(|kept| kept.push(Arc::clone(self))).is_some()
        });
        if !is_kept {
            self.wake_task();
        }
    }
}

/// The connection refers to what wakes it, and that to the connection: the task's end undoes that.
struct Ends(Arc<Driven>);

impl Drop for Ends {
    fn drop(&mut self) {
        let connection = lock(&self.0.connection).take();
        drop(connection);
    }
}

fn poll(connection: &mut Option<Task>, waker: &Waker) -> Poll<()> {
    let Some(task) = connection else { return Poll::Ready(()) };
    let polled = task.as_mut().poll(&mut Context::from_waker(waker));
    if polled.is_ready() {
        *connection = None;
    }
    polled
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    /// A connection that counts how often it was polled, and by which threads.
    fn counted(polls: &Arc<AtomicUsize>, wakers: &Arc<Mutex<Option<Waker>>>) -> Task {
        let (polls, wakers) = (Arc::clone(polls), Arc::clone(wakers));
        Box::pin(poll_fn(move |context| {
            polls.fetch_add(1, Ordering::SeqCst);
            *lock(&wakers) = Some(context.waker().clone());
            Poll::Pending
        }))
    }

    fn wake(wakers: &Mutex<Option<Waker>>) {
        if let Some(waker) = lock(wakers).take() {
            waker.wake();
        }
    }

    #[tokio::test]
    async fn who_sends_drives_the_connection_himself_if_he_says_so() {
        let (polls, wakers) = (Arc::default(), Arc::default());
        let task = tokio::spawn(Driven::run(counted(&polls, &wakers)));
        tokio::task::yield_now().await;
        assert_eq!(polls.load(Ordering::SeqCst), 1);
        directly(|| {
            wake(&wakers);
            assert_eq!(polls.load(Ordering::SeqCst), 1, "not before the work is done");
            ((), true)
        });
        assert_eq!(polls.load(Ordering::SeqCst), 2);
        directly(|| (wake(&wakers), false));
        assert_eq!(polls.load(Ordering::SeqCst), 2);
        tokio::task::yield_now().await;
        assert_eq!(polls.load(Ordering::SeqCst), 3, "its own task does it");
        task.abort();
        assert!(task.await.is_err());
        assert!(lock(&wakers).take().is_some());
        assert_eq!((Arc::strong_count(&polls), Arc::strong_count(&wakers)), (1, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn nothing_is_missed_where_both_drive_at_once() {
        const WAKES: usize = 20_000;
        let (sent, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let wakers = Arc::new(Mutex::new(None::<Waker>));
        let connection: Task = Box::pin(poll_fn({
            let (sent, seen, wakers) = (sent.clone(), seen.clone(), wakers.clone());
            move |context| {
                let mut waker = lock(&wakers);
                seen.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }));
        let task = tokio::spawn(Driven::run(connection));
        let senders = (0..3).map(|at_once| {
            let (sent, wakers) = (sent.clone(), wakers.clone());
            tokio::task::spawn_blocking(move || {
                for _ in 0..WAKES {
                    directly(|| {
                        sent.fetch_add(1, Ordering::SeqCst);
                        wake(&wakers);
                        ((), at_once > 0)
                    });
                }
            })
        });
        for sender in senders.collect::<Vec<_>>() {
            sender.await.unwrap();
        }
        let all = async {
            while seen.load(Ordering::SeqCst) < 3 * WAKES {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), all).await.unwrap();
        task.abort();
    }
}
