//! The lender's side.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::{Ask, Loan, Taken};
use crate::limits::BRANCHES_MAX;
use crate::net::daemon::random;
use crate::net::rendezvous::link::{receive, receive_bytes, send, send_bytes};
use crate::wire::branch::Branch;
use crate::wire::rendezvous::ToServer;

/// How long a borrower may take to prove itself.
const PROOF: Duration = Duration::from_secs(1);
/// How long until it is tried again where another process lends.
const NEXT: Duration = Duration::from_millis(500);
/// After `accept` failed, for want of file descriptors mostly.
const PAUSE: Duration = Duration::from_millis(100);
/// Messages on their way, to the server from all borrowers, and to one of them.
const ON_THEIR_WAY: usize = 64;

/// Lends one connection as long as it lives; dropped with it.
pub(in super::super) struct Lender {
    loans: Loans,
    outgoing: mpsc::Receiver<ToServer>,
    /// Aborted with us.
    _task: JoinSet<()>,
}

/// Who takes what the server says to a borrower.
#[derive(Clone, Default)]
pub(in super::super) struct Loans(Arc<Mutex<BTreeMap<u32, mpsc::Sender<Vec<u8>>>>>);

/// The socket's name is ours as long as the lock is held, however we end.
struct Socket {
    listener: UnixListener,
    path: PathBuf,
    _lock: File,
}

impl Lender {
    /// Lends the connection to `server` whenever `lending` says so; what it says to borrowers is
    /// for [`Self::loans`].
    pub(in super::super) fn start(
        loan: Arc<Loan>,
        server: SocketAddr,
        lending: watch::Receiver<bool>,
    ) -> Self {
        let loans = Loans::default();
        let (out, outgoing) = mpsc::channel(ON_THEIR_WAY);
        let mut task = JoinSet::new();
        task.spawn(lend(loan, server, lending, loans.clone(), out));
        Self { loans, outgoing, _task: task }
    }

    pub(in super::super) fn loans(&self) -> Loans {
        self.loans.clone()
    }

    /// What is to be sent for a borrower; never ends.
    pub(in super::super) async fn next(&mut self) -> ToServer {
        match self.outgoing.recv().await {
            Some(message) => message,
            None => std::future::pending().await,
        }
    }
}

impl Loans {
    /// The server says something to a borrower; one who is too slow for it loses the loan.
    pub(in super::super) fn put(&self, Branch { branch, bytes }: Branch) {
        let mut all = self.lock();
        if all.get(&branch).is_some_and(|borrower| borrower.try_send(bytes).is_err()) {
            all.remove(&branch);
        }
    }

    /// The server has ended a borrower's registration.
    pub(in super::super) fn end(&self, branch: u32) {
        self.lock().remove(&branch);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, mpsc::Sender<Vec<u8>>>> {
        // changed in whole steps: whoever panicked left nothing half done
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Socket {
    fn open(loan: &Loan) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&loan.dir)?;
        let path = loan.socket();
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = options.open(path.with_extension("lock"))?;
        lock.try_lock()?;
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        Ok(Self { listener, path, _lock: lock })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // left behind it is stale, and the next lender replaces it
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn lend(
    loan: Arc<Loan>,
    server: SocketAddr,
    mut lending: watch::Receiver<bool>,
    loans: Loans,
    out: mpsc::Sender<ToServer>,
) {
    let mut borrowers = JoinSet::new();
    let mut last = 0;
    // with its sender gone, the registration ends
    while lending.wait_for(|lends| *lends).await.is_ok() {
        let socket = match Socket::open(&loan) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(%error, "another process lends, or nobody can");
                let _ = timeout(NEXT, lending.wait_for(|lends| !*lends)).await;
                continue;
            }
        };
        loop {
            let accepted = tokio::select! {
                accepted = socket.listener.accept() => accepted,
                Some(_) = borrowers.join_next() => continue,
                _ = lending.wait_for(|lends| !*lends) => break,
            };
            match accepted {
                Ok((stream, _)) if borrowers.len() < BRANCHES_MAX && is_ours(&stream) => {
                    last += 1;
                    let ends = lending.clone();
                    let (loan, loans, out) = (loan.clone(), loans.clone(), out.clone());
                    borrowers.spawn(serve(stream, loan, server, last, loans, out, ends));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot lend");
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Whether this user has connected: whoever else could, may not.
fn is_ours(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own)
}

/// One borrower, until either side ends it.
async fn serve(
    stream: UnixStream,
    loan: Arc<Loan>,
    server: SocketAddr,
    branch: u32,
    loans: Loans,
    out: mpsc::Sender<ToServer>,
    mut ends: watch::Receiver<bool>,
) {
    let (mut read, mut write) = stream.into_split();
    let proved = async {
        let ask: Ask = receive(&mut read).await?;
        let offer = loan.offer(&ask, random(), server);
        send(&mut write, &offer).await?;
        let taken: Taken = receive(&mut read).await?;
        Ok(loan.is_taken(&ask, &offer, &taken))
    };
    let proved = timeout(PROOF, proved).await;
    if !matches!(proved, Ok(io::Result::Ok(true))) {
        tracing::debug!("somebody asked for our registration who has not the key");
        return;
    }
    let (arrived_in, mut arrived) = mpsc::channel(ON_THEIR_WAY);
    loans.lock().insert(branch, arrived_in);
    let reading = async {
        while let Ok(bytes) = receive_bytes(&mut read).await {
            let wrapped = Branch { branch, bytes };
            if !wrapped.is_bounded() || out.send(ToServer::Branch(wrapped)).await.is_err() {
                return;
            }
        }
    };
    let writing = async {
        while let Some(bytes) = arrived.recv().await {
            if send_bytes(&mut write, &bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        _ = ends.wait_for(|lends| !*lends) => {}
    }
    loans.end(branch);
    // with the connection gone, so is the branch
    let _ = out.send(ToServer::EndBranch { branch }).await;
}
