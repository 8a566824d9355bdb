//! Carrying an entry out, so that a kill at any step is known afterwards.
//!
//! ```text
//!  look      who has the names, how long the file is
//!  decide    after-state: done; before-state: go on; neither: conflict
//!  intent    what was seen goes into the record
//!  perform   the system calls
//!  done      the result goes into the record
//! ```

use crate::id::{NodeId, Seq};
use crate::wire::errno::Errno;
use crate::wire::log::{Change, Outcome, Refused};

/// Whether an entry may have been carried out before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum How {
    /// It was not.
    First,
    /// By this machine since it last booted: this is what was seen before.
    Resumed {
        /// What the intent says.
        before: Seen,
    },
    /// Perhaps, by a machine that may have forgotten it.
    Again {
        /// What was answered then, if it is known.
        told: Option<Outcome>,
    },
}

/// What the entry's names and files are like before it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Seen {
    /// Who has the (old) name.
    pub name: Option<NodeId>,
    /// Who has the new name (rename).
    pub new_name: Option<NodeId>,
    /// Who waits under cover to be given the name (creations): its identity is known before.
    pub made: Option<NodeId>,
    /// How long the file is, bytes (append, and what moves data).
    pub size: Option<u64>,
}

/// A share's tree, as one session may change it. Methods may block.
pub trait Tree<B> {
    /// What `change`'s names and files are like; makes, under cover, the node that it creates if
    /// this tree does so.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn look(&self, change: &Change) -> Result<Seen, Errno>;

    /// Carries the change out.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn perform(&self, seq: Seq, change: &Change, body: &B, seen: &Seen) -> Result<Outcome, Errno>;

    /// What the answer would have been, for a change that was carried out before.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn outcome(&self, seq: Seq, change: &Change, body: &B, seen: &Seen) -> Result<Outcome, Errno>;

    /// Whether the file holds `body` at `offset`.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn holds(&self, node: NodeId, offset: u64, body: &B) -> Result<bool, Errno>;

    /// Puts everything on the disk.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn sync(&self) -> Result<(), Errno>;
}

/// Where intents and results are kept for a host that is killed.
pub trait Recorder {
    /// Before the system calls.
    ///
    /// # Errors
    ///
    /// What the system says: then the entry is not carried out.
    fn intent(&self, seq: Seq, seen: &Seen) -> Result<(), Errno>;

    /// After them.
    fn done(&self, seq: Seq, result: &Result<Outcome, Refused>, poisons: bool);
}

/// What is to be done about an entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Carry it out.
    Perform,
    /// It was carried out before.
    Done,
    /// It must not be carried out.
    Refuse(Refused),
}

/// Decides by what is seen now.
pub fn decide(change: &Change, how: &How, now: &Seen) -> Step {
    let _ = (change, how, now);
    unimplemented!()
}

/// Carries an entry out.
///
/// # Errors
///
/// What the system says, or a conflict.
pub fn execute<B>(
    tree: &impl Tree<B>,
    recorder: &impl Recorder,
    seq: Seq,
    change: &Change,
    body: &B,
    how: &How,
    poisons: bool,
) -> Result<Outcome, Refused> {
    let _ = (tree, recorder, seq, change, body, how, poisons);
    unimplemented!()
}
