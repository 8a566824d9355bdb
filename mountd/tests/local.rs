//! A host in the same process: `Remote` straight on an `Export`, entries in the order of their
//! numbers.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use p2pfs::id::Seq;
use p2pfs::net::remote::{BoxFuture, Remote, Submitted};
use p2pfs::net::serve::Export;
use p2pfs::proto::redo::execute::How;
use p2pfs::wire::call::{Call, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::{Change, Outcome};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

struct Entry {
    seq: Seq,
    change: Change,
    body: Bytes,
    applied: oneshot::Sender<Result<Outcome, Errno>>,
}

pub(crate) struct LocalHost {
    export: Arc<dyn Export>,
    log: Mutex<(Seq, mpsc::UnboundedSender<Entry>)>,
    applied: watch::Receiver<Seq>,
    runtime: Handle,
}

impl LocalHost {
    pub(crate) fn new(export: Arc<dyn Export>, runtime: Handle) -> Self {
        let (entries, mut log) = mpsc::unbounded_channel::<Entry>();
        let (cursor, applied) = watch::channel(Seq::ZERO);
        let host = Arc::clone(&export);
        runtime.spawn_blocking(move || {
            while let Some(entry) = log.blocking_recv() {
                let (epoch, how) = (host.epoch(), How::First);
                let outcome = host.apply(epoch, entry.seq, &entry.change, &entry.body, &how, false);
                let outcome = outcome.map_err(|refused| refused.errno);
                cursor.send_replace(entry.seq);
                let _ = entry.applied.send(outcome);
            }
        });
        Self { export, log: Mutex::new((Seq::ZERO, entries)), applied, runtime }
    }
}

impl Remote for LocalHost {
    fn call(&self, call: Call) -> BoxFuture<Result<(Reply, Bytes), Errno>> {
        let export = Arc::clone(&self.export);
        let mut applied = self.applied.clone();
        let runtime = self.runtime.clone();
        Box::pin(async move {
            if let Call::Sync { upto, .. } | Call::SyncAll { upto } | Call::Release { upto, .. } =
                call
            {
                applied.wait_for(|cursor| *cursor >= upto).await.map_err(|_| Errno::ENOTCONN)?;
            }
            let answered = runtime.spawn_blocking(move || export.call(call)).await;
            answered.map_err(|_| Errno::EIO)?
        })
    }

    fn submit(&self, change: Change, body: Bytes) -> Submitted {
        let (done, applied) = oneshot::channel();
        let mut log = self.log.lock().unwrap();
        let seq = log.0.next();
        log.0 = seq;
        let _ = log.1.send(Entry { seq, change, body, applied: done });
        Submitted { seq, applied }
    }

    fn room(&self, _bytes: usize) -> BoxFuture<Result<(), Errno>> {
        Box::pin(async { Ok(()) })
    }

    fn given_up(&self) -> BoxFuture<Errno> {
        Box::pin(std::future::pending())
    }
}
