//! Where work for the disk is done.
//!
//! On threads that may wait, each call costs two hand-overs between threads, which is more than a
//! disk that has everything in memory takes for it. So brief work is done on the network's own
//! thread as long as the disk is quick; if it is not for once, a thread that was kept in reserve
//! serves the network meanwhile, and the disk is left alone for a while.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

/// Brief work that takes longer than this has stalled; looked at as often.
const STALL: Duration = Duration::from_millis(5);
/// How long all work is done elsewhere after a stall.
const REST: Duration = Duration::from_secs(1);
/// The watch sleeps when there was nothing to watch for so many looks.
const LOOKS_IDLE: u32 = 20;

/// Does work for the disk.
#[derive(Clone, Debug)]
pub(super) struct Work(Option<Arc<Here>>);

/// What brief work on the network's threads needs.
#[derive(Debug)]
struct Here {
    began: Instant,
    /// When the work began that is being done, in microseconds since `began`; 0: none is.
    since: AtomicU64,
    /// Until when all work is done elsewhere, in microseconds since `began`.
    rests: AtomicU64,
    /// There was work since the last look.
    used: AtomicBool,
    asleep: AtomicBool,
    ended: AtomicBool,
    bell: Arc<Bell>,
    reserve: Arc<Reserve>,
}

/// Wakes the watch.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    changed: Condvar,
}

/// Where one of the runtime's threads waits until it is needed. Meanwhile the runtime is as one
/// that has a thread less: it wakes nobody for what can be done after what is being done.
#[derive(Debug, Default)]
struct Reserve {
    kept: Mutex<Kept>,
    needed: Condvar,
}

#[derive(Debug, Default)]
struct Kept {
    /// A thread is to wait.
    wanted: bool,
    /// One waits, or will soon. Never two: nobody would be left.
    waits: bool,
}

impl Work {
    /// All work is done on threads that may wait.
    pub(super) fn elsewhere() -> Self {
        Self(None)
    }

    /// Brief work is done on the threads of `runtime`, one of which is kept in reserve; all is done
    /// elsewhere if there is no other.
    pub(super) fn here(runtime: &Handle) -> Self {
        if runtime.metrics().num_workers() < 2 {
            return Self::elsewhere();
        }
        let (bell, reserve) = (Arc::<Bell>::default(), Arc::<Reserve>::default());
        let here = Arc::new(Here {
            began: Instant::now(),
            since: AtomicU64::new(0),
            rests: AtomicU64::new(0),
            used: AtomicBool::new(false),
            asleep: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            bell: Arc::clone(&bell),
            reserve: Arc::clone(&reserve),
        });
        reserve.enter(runtime);
        let (watched, runtime) = (Arc::downgrade(&here), runtime.clone());
        let watch = move || watch(&watched, &bell, &reserve, &runtime);
        match thread::Builder::new().name("disk watch".to_owned()).spawn(watch) {
            Ok(_) => Self(Some(here)),
            Err(error) => {
                tracing::warn!(%error, "no thread to watch the disk: all work is done elsewhere");
                here.reserve.leave();
                Self::elsewhere()
            }
        }
    }

    /// Nothing is kept in reserve any more: the runtime can end.
    pub(super) fn end(&self) {
        if let Some(here) = &self.0 {
            here.ended.store(true, Ordering::Relaxed);
            here.rests.store(u64::MAX, Ordering::Relaxed);
            here.bell.ring();
        }
    }

    /// Does `work` some time. `brief`: it is, unless the disk makes it wait. Within a runtime.
    pub(super) fn run(&self, brief: bool, work: impl FnOnce() + Send + 'static) {
        match &self.0 {
            Some(here) if brief && !here.is_resting() => {
                let here = Arc::clone(here);
                tokio::spawn(async move {
                    match here.begin() {
                        Some(_busy) => {
                            leave_the_rest_to_others();
                            work();
                        }
                        None => drop(tokio::task::spawn_blocking(work)),
                    }
                });
            }
            _ => drop(tokio::task::spawn_blocking(work)),
        }
    }
}

impl Here {
    /// One at a time: whatever happens to it, the network has a thread.
    fn begin(&self) -> Option<Busy<'_>> {
        let now = self.now();
        if now < self.rests.load(Ordering::Relaxed) {
            return None;
        }
        self.since.compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        if !self.used.load(Ordering::Relaxed) {
            self.used.store(true, Ordering::SeqCst);
            if self.asleep.swap(false, Ordering::SeqCst) {
                self.bell.ring();
            }
        }
        Some(Busy(self))
    }

    fn is_resting(&self) -> bool {
        let rests = self.rests.load(Ordering::Relaxed);
        rests != 0 && self.now() < rests
    }

    fn has_stalled(&self) -> bool {
        let since = self.since.load(Ordering::Acquire);
        since != 0 && self.now().saturating_sub(since) >= micros(STALL)
    }

    /// Never 0.
    fn now(&self) -> u64 {
        micros(self.began.elapsed()) + 1
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.bell.ring();
    }
}

/// While brief work is done.
struct Busy<'a>(&'a Here);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::Release);
    }
}

/// Looks whether the work that is done here goes on.
fn watch(here: &Weak<Here>, bell: &Bell, reserve: &Arc<Reserve>, runtime: &Handle) {
    let mut idle = 0;
    while let Some(here) = here.upgrade().filter(|here| !here.ended.load(Ordering::Relaxed)) {
        if here.has_stalled() {
            tracing::debug!("the disk is slow: it is not waited for on the network's threads");
            here.rests.store(here.now() + micros(REST), Ordering::Relaxed);
            reserve.leave();
        } else if !here.is_resting() && here.since.load(Ordering::Acquire) == 0 {
            reserve.enter(runtime);
        }
        let was_used = here.used.swap(false, Ordering::SeqCst);
        idle = if was_used || !reserve.is_kept() { 0 } else { idle + 1 };
        let mut sleeps = idle > LOOKS_IDLE;
        if sleeps {
            here.asleep.store(true, Ordering::SeqCst);
            sleeps = !here.used.load(Ordering::SeqCst);
        }
        drop(here);
        bell.wait((!sleeps).then_some(STALL));
    }
    reserve.leave();
}

impl Bell {
    fn ring(&self) {
        *lock(&self.rung) = true;
        self.changed.notify_one();
    }

    /// Until it rings, or for so long.
    fn wait(&self, most: Option<Duration>) {
        let mut rung = lock(&self.rung);
        match most {
            Some(most) if !*rung => {
                let waited = self.changed.wait_timeout_while(rung, most, |rung| !*rung);
                rung = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            Some(_) => {}
            None => {
                let waited = self.changed.wait_while(rung, |rung| !*rung);
                rung = waited.unwrap_or_else(PoisonError::into_inner);
            }
        }
        *rung = false;
    }
}

impl Reserve {
    /// One of the runtime's threads waits here from some time on. A task that comes from another
    /// thread has woken one of those that sleep, so one of those that are left looks after the
    /// network, whichever takes the task.
    fn enter(self: &Arc<Self>, runtime: &Handle) {
        let mut kept = self.lock();
        kept.wanted = true;
        if !std::mem::replace(&mut kept.waits, true) {
            let reserve = Arc::clone(self);
            runtime.spawn(async move {
                leave_the_rest_to_others();
                reserve.wait();
            });
        }
    }

    fn wait(&self) {
        let kept = self.needed.wait_while(self.lock(), |kept| kept.wanted);
        kept.unwrap_or_else(PoisonError::into_inner).waits = false;
    }

    fn leave(&self) {
        self.lock().wanted = false;
        self.needed.notify_all();
    }

    fn is_kept(&self) -> bool {
        self.lock().wanted
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For a task that may hold up its thread. What a thread of tokio's has woken last it keeps for
/// itself, and it may have begun something else since (a task from outside, every so often):
/// another task in that place lets everybody have it.
fn leave_the_rest_to_others() {
    tokio::spawn(async {});
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn lock(mutex: &Mutex<bool>) -> MutexGuard<'_, bool> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tokio::runtime::{Builder, Runtime};
    use tokio::sync::oneshot;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn two_threads() -> (Runtime, Work) {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let work = Work::here(runtime.handle());
        assert!(work.0.is_some());
        (runtime, work)
    }

    /// The thread that does it.
    async fn done(work: &Work, brief: bool) -> thread::ThreadId {
        let (tell, told) = oneshot::channel();
        work.run(brief, move || {
            let _ = tell.send(thread::current().id());
        });
        tokio::time::timeout(LIMIT, told).await.unwrap().unwrap()
    }

    #[test]
    fn brief_work_is_done_where_it_is_given() {
        let (runtime, work) = two_threads();
        let given = work.clone();
        let task = runtime.spawn(async move {
            let mut same = 0;
            for _ in 0..100 {
                same += usize::from(done(&given, true).await == thread::current().id());
                assert_ne!(done(&given, false).await, thread::current().id());
            }
            same
        });
        // not all where a busy machine takes it for stalled
        assert!(runtime.block_on(task).unwrap() > 0);
        work.end();
    }

    #[test]
    fn the_network_goes_on_while_the_disk_makes_brief_work_wait() {
        let (runtime, work) = two_threads();
        let (release, released) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let given = work.clone();
        let task = runtime.spawn(async move {
            given.run(true, move || {
                let _ = begin.send(());
                let _ = released.recv_timeout(LIMIT);
            });
        });
        runtime.block_on(task).unwrap();
        begun.recv_timeout(LIMIT).unwrap();
        let given = work.clone();
        let others = runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            for _ in 0..100 {
                done(&given, true).await;
            }
        });
        runtime.block_on(others).unwrap();
        release.send(()).unwrap();
        work.end();
    }

    /// The network's task is woken by the driver, and its thread may take the reserve's task first.
    #[test]
    fn no_task_stays_behind_with_the_reserve() {
        const ROUNDS: usize = 20_000;
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (here, there) = std::os::unix::net::UnixDatagram::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let echo = thread::spawn(move || {
            for _ in 0..ROUNDS {
                there.recv(&mut [0]).and_then(|_| there.send(b".")).unwrap();
            }
        });
        let (tell, told) = mpsc::channel();
        runtime.spawn(async move {
            let here = tokio::net::UnixDatagram::from_std(here).unwrap();
            for _ in 0..ROUNDS {
                here.send(b".").await.unwrap();
                here.recv(&mut [0]).await.unwrap();
                tell.send(()).unwrap();
            }
        });
        let reserve = Arc::<Reserve>::default();
        for round in 0..ROUNDS {
            reserve.enter(runtime.handle());
            let went_on = told.recv_timeout(LIMIT);
            reserve.leave();
            assert!(went_on.is_ok(), "round {round}");
        }
        echo.join().unwrap();
    }

    #[test]
    fn a_runtime_ends_with_its_reserve() {
        let (runtime, work) = two_threads();
        runtime.block_on(async { runtime.spawn(async {}).await }).unwrap();
        work.end();
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            drop(runtime);
            let _ = tell.send(());
        });
        told.recv_timeout(LIMIT).unwrap();
    }

    #[test]
    fn with_one_thread_all_is_done_elsewhere() {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let work = Work::here(runtime.handle());
        assert!(work.0.is_none());
        let task = runtime.spawn(async move { (done(&work, true).await, thread::current().id()) });
        let (at, network) = runtime.block_on(task).unwrap();
        assert_ne!(at, network);
    }
}
