//! A share in which reads of one file hang until they are let go, as on a disk that fails.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use p2pfs::id::{Epoch, HandleId, Seq};
use p2pfs::net::serve::{Export, Notices};
use p2pfs::proto::PeerMisbehaved;
use p2pfs::proto::redo::execute::How;
use p2pfs::proto::redo::record::{Begun, Recovered, Slot};
use p2pfs::wire::call::{Call, Reply};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::lease::LeaseRequest;
use p2pfs::wire::log::{Change, Outcome, Refused};
use p2pfs_hostd::export::View;

pub(crate) struct Stall {
    view: Arc<View>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Whose reads hang.
    ino: Option<u64>,
    handles: HashSet<HandleId>,
    hanging: usize,
}

impl Stall {
    pub(crate) fn new(view: Arc<View>) -> Arc<Self> {
        Arc::new(Self { view, state: Mutex::default(), changed: Condvar::new() })
    }

    pub(crate) fn hold_reads_of(&self, ino: u64) {
        self.state.lock().unwrap().ino = Some(ino);
    }

    /// Returns when reads hang.
    pub(crate) fn wait_for_reads(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.hanging == 0).unwrap());
    }

    pub(crate) fn let_go(&self) {
        self.state.lock().unwrap().ino = None;
        self.changed.notify_all();
    }

    fn hang(&self, handle: HandleId) {
        let mut state = self.state.lock().unwrap();
        if !state.handles.contains(&handle) {
            return;
        }
        state.hanging += 1;
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| state.ino.is_some()).unwrap());
    }
}

impl Export for Stall {
    fn call(&self, call: Call) -> Result<(Reply, Bytes), Errno> {
        match call {
            Call::Open { node, handle, .. } | Call::OpenRead { node, handle, .. } => {
                let mut state = self.state.lock().unwrap();
                if state.ino == Some(node.ino) {
                    state.handles.insert(handle);
                }
            }
            Call::Read { handle, .. } | Call::ReadVersion { handle, .. } => self.hang(handle),
            _ => {}
        }
        self.view.call(call)
    }

    fn apply(
        &self,
        epoch: Epoch,
        seq: Seq,
        change: &Change,
        body: &Bytes,
        how: &How,
        poisons: bool,
    ) -> Result<Outcome, Refused> {
        self.view.apply(epoch, seq, change, body, how, poisons)
    }

    fn sync_all(&self) -> Result<(), Errno> {
        self.view.sync_all()
    }

    fn epoch(&self) -> Epoch {
        self.view.epoch()
    }

    fn recover(&self) -> Option<Recovered> {
        self.view.recover()
    }

    fn begin(&self, begun: Begun, done: &[(Seq, Slot)]) -> Result<(), Errno> {
        self.view.begin(begun, done)
    }

    fn note_stable(&self, upto: Seq) {
        self.view.note_stable(upto);
    }
    fn attend_locks(&self, notices: Notices) {
        self.view.attend_locks(notices);
    }

    fn ask_lock(&self, request: LeaseRequest) -> Result<(), PeerMisbehaved> {
        self.view.ask_lock(request)
    }

    fn leave(&self) {
        self.view.leave();
    }

    fn end(&self) {
        self.view.end();
    }
}
