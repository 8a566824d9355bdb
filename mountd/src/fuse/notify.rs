//! What mountd tells the kernel unasked.
//!
//! Dropping pages waits for reads of the node that are under way, and those wait for us: so one
//! thread of its own does it, which holds no lock. Dropping attributes waits for nothing.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock, mpsc};

use fuser::{INodeNo, Notifier};
use p2pfs::net::remote::BoxFuture;
use tokio::sync::oneshot;

use crate::fs::Kernel;
use crate::guard::book::NodeBook;

/// `FUSE_NOTIFY_INVAL_INODE`
const INVAL_INODE: u32 = 2;

/// The way to the kernel; without a session, notices go nowhere.
pub struct KernelLink {
    notifier: Arc<OnceLock<Notifier>>,
    pages: mpsc::Sender<DropPages>,
    book: NodeBook,
}

/// Whose pages are dropped, and who waits for it.
type DropPages = (u64, Option<oneshot::Sender<()>>);

impl KernelLink {
    /// A link that a session is still to be connected to.
    pub fn new() -> io::Result<Arc<Self>> {
        let (pages, queue) = mpsc::channel();
        let notifier = Arc::new(OnceLock::new());
        let link = Self { notifier: Arc::clone(&notifier), pages, book: NodeBook::new()? };
        std::thread::Builder::new()
            .name("notify".to_owned())
            .spawn(move || drop_pages(&queue, &notifier))?;
        Ok(Arc::new(link))
    }

    pub(super) fn connect(&self, notifier: Notifier) {
        // one session per link
        let _ = self.notifier.set(notifier);
    }

    /// The nodes that the kernel knows.
    pub(crate) fn book(&self) -> &NodeBook {
        &self.book
    }
}

impl KernelLink {
    /// Drops all pages and attributes of these nodes, in this order, on a thread of its own; the
    /// receiver resolves when it is done. Pages that were changed through a mapping are written
    /// first, by requests that must be answered meanwhile.
    pub(crate) fn drop_everything(&self, nodes: Vec<u64>) -> io::Result<oneshot::Receiver<()>> {
        let (done, is_done) = oneshot::channel();
        let notifier = Arc::clone(&self.notifier);
        std::thread::Builder::new().name("wipe".to_owned()).spawn(move || {
            let Some(notifier) = notifier.get() else { return };
            for ino in nodes {
                // ENOENT: the kernel has let it go
                let _ = notifier.inval_inode(INodeNo(ino), 0, 0);
            }
            // nobody waits any more if it took too long
            let _ = done.send(());
        })?;
        Ok(is_done)
    }
}

fn drop_pages(queue: &mpsc::Receiver<DropPages>, notifier: &OnceLock<Notifier>) {
    while let Ok(first) = queue.recv() {
        let asked: Vec<DropPages> = std::iter::once(first).chain(queue.try_iter()).collect();
        let nodes: BTreeSet<u64> = asked.iter().map(|(ino, _)| *ino).collect();
        let Some(notifier) = notifier.get() else {
            continue;
        };
        for ino in nodes {
            if let Err(error) = notifier.inval_inode(INodeNo(ino), 0, 0) {
                tracing::debug!(ino, %error, "the kernel did not drop pages");
            }
        }
        for waits in asked.into_iter().filter_map(|(_, waits)| waits) {
            let _ = waits.send(());
        }
    }
}

/// Drops all pages and attributes of these nodes by a connection whose session is another process's
/// or none's. Waits for what holds pages.
pub(crate) fn drop_nodes(kernel: impl AsFd, nodes: &[u64]) {
    for ino in nodes {
        let message = inval_inode(*ino);
        // ENOENT: the kernel has let it go
        let _ = rustix::io::write(&kernel, &message);
    }
}

/// `fuse_out_header` and `fuse_notify_inval_inode_out` of `<linux/fuse.h>`: all of a node.
fn inval_inode(ino: u64) -> Vec<u8> {
    const LENGTH: u32 = 40;
    let mut message = Vec::with_capacity(LENGTH as usize);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(INVAL_INODE.to_ne_bytes());
    // no request is answered by it; offset and length 0 are the whole
    for word in [0, ino, 0, 0] {
        message.extend(u64::to_ne_bytes(word));
    }
    message
}

impl Kernel for KernelLink {
    fn knows(&self, ino: u64) {
        self.book.enter(ino);
    }

    fn forgot(&self, ino: u64) {
        self.book.strike(ino);
    }

    fn drop_attributes(&self, ino: u64) {
        if let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_inode(INodeNo(ino), -1, 0)
        {
            tracing::debug!(ino, %error, "the kernel did not drop attributes");
        }
    }

    fn drop_pages(&self, ino: u64) {
        // the thread lives as long as we do
        let _ = self.pages.send((ino, None));
    }

    fn pages_dropped(&self, ino: u64) -> BoxFuture<()> {
        let (done, dropped) = oneshot::channel();
        let _ = self.pages.send((ino, Some(done)));
        Box::pin(async move {
            let _ = dropped.await;
        })
    }
}

impl std::fmt::Debug for KernelLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelLink").finish_non_exhaustive()
    }
}
