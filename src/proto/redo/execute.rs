//! Carrying an entry out, so that a kill at any step is known afterwards.
//!
//! ```text
//!  look      who has the names, how long the file is
//!  decide    after-state: done; before-state: go on; neither: conflict
//!  intent    what was seen goes into the record
//!  perform   the system calls
//!  done      the result goes into the record
//! ```

mod decide;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use self::decide::decide;
pub(super) use self::decide::moves_data;
use self::decide::node_of;
use crate::id::{NodeId, Seq};
use crate::wire::call::{Attr, Entry, Time};
use crate::wire::errno::Errno;
use crate::wire::log::{Change, Mutation, Occupant, Outcome, Reason, Refused, RenameMode};

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
    /// The same, and later entries of the session take its nodes or names further.
    Passed {
        /// What was answered then, if it is known.
        told: Option<Outcome>,
    },
    /// It was not, and must not be: what it comes after has failed, or did not make what it names.
    /// This only goes into the record.
    Refused(Refused),
}

/// What the entry's names and files are like before it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
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

/// What a file holds where data may have been appended before.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Held {
    /// All of the data.
    All,
    /// The beginning of the data, perhaps nothing of it, and then the file ends.
    Start,
    /// Something else.
    Other,
}

/// A share's tree, as one session may change it. Methods may block.
pub trait Tree<B> {
    /// What `change`'s names and files are like; makes, under cover, the node that it creates if
    /// this tree does so and the name is free. A name in a directory that is gone is free. A node
    /// under cover that no intent names was not needed.
    ///
    /// # Errors
    ///
    /// What the system says; ESTALE for a node that is gone.
    fn look(&self, change: &Change) -> Result<Seen, Errno>;

    /// Carries the change out.
    ///
    /// # Errors
    ///
    /// What the system says; ESTALE for a node that is gone.
    fn perform(&self, seq: Seq, change: &Change, body: &B, seen: &Seen) -> Result<Outcome, Errno>;

    /// What the answer would have been, for a change that was carried out before; opens what the
    /// change opens. A file that it made, and that has no name, is given the mode that it was made
    /// with: it may never have got so far. `seen` tells whom it concerned: `made` is the node that
    /// it created, `name` who had the name.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn outcome(&self, seq: Seq, change: &Change, body: &B, seen: &Seen) -> Result<Outcome, Errno>;

    /// How much of `body` the file holds at `offset`.
    ///
    /// # Errors
    ///
    /// What the system says.
    fn holds(&self, node: NodeId, offset: u64, body: &B) -> Result<Held, Errno>;

    /// Whether the node has a name, not only one under cover.
    ///
    /// # Errors
    ///
    /// What the system says, but not that the node is gone.
    fn is_named(&self, node: NodeId) -> Result<bool, Errno>;

    /// Puts everything on the disk. A failure is also the beginning of another epoch: the tree's
    /// owner sees to that.
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

/// Carries an entry out.
///
/// Whatever was killed in between, the state and the record tell what to do:
///
/// * before the intent: nothing was changed;
/// * after the intent: the state is as the intent says, or as the entry leaves it;
/// * after the result: the record answers.
///
/// What moves data leaves no bytes to repeat it with: it is synced before its result is written, so
/// what comes after it never reaches the disk without it.
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
    let attempt = Attempt { tree, recorder, seq, change, body, how };
    let result = attempt.run();
    recorder.done(seq, &result, poisons);
    result
}

/// The attributes of what is no longer there.
pub(super) const GONE: Attr = Attr {
    size: 0,
    blocks: 0,
    atime: Time { seconds: 0, nanos: 0 },
    mtime: Time { seconds: 0, nanos: 0 },
    ctime: Time { seconds: 0, nanos: 0 },
    btime: Time { seconds: 0, nanos: 0 },
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
};

/// What [`execute`] was given.
struct Attempt<'a, B, T, R> {
    tree: &'a T,
    recorder: &'a R,
    seq: Seq,
    change: &'a Change,
    body: &'a B,
    how: &'a How,
}

/// Where appended data is, or goes.
enum Place {
    /// Behind the end, wherever that is.
    End,
    /// Here: this is where it went, or would have gone, before.
    At(u64),
    /// It is here.
    Found(u64),
}

impl<B, T: Tree<B>, R: Recorder> Attempt<'_, B, T, R> {
    fn run(&self) -> Result<Outcome, Refused> {
        match (&self.change.mutation, self.how) {
            (_, How::Refused(refused)) => return Err(*refused),
            // struck, after it was carried out
            (
                Mutation::Nothing,
                How::Again { told: Some(told) } | How::Passed { told: Some(told) },
            ) => return Ok(*told),
            (Mutation::Nothing, _) => return Ok(Outcome::Done),
            _ => {}
        }
        let now = match self.tree.look(&self.looked_at()) {
            Ok(now) => now,
            // a full disk takes no node under cover, and this one needs none
            Err(_) if self.made_before_is_elsewhere(&Seen::default())? => Seen::default(),
            Err(errno) => return self.failed(errno),
        };
        if let Mutation::Append { node, size, .. } = &self.change.mutation {
            let node = node_of(node).ok_or_else(|| Refused::conflict(Errno::ESTALE))?;
            return self.append(node, *size, &now);
        }
        let mut step = decide(self.change, self.how, &now);
        if step != Step::Done && self.made_before_is_elsewhere(&now)? {
            step = Step::Done;
        }
        if let How::Passed { told: Some(Outcome::Removed { node, .. }) } = self.how
            && now.made == Some(*node)
        {
            // it is there without a name, and that is how it ends
            step = Step::Done;
        }
        if self.left_behind(&step, &now) || self.still_replaced(&step, &now) {
            step = Step::Perform;
        }
        let outcome = match step {
            Step::Refuse(refused) => return Err(refused),
            Step::Done => self.done_before(&now)?,
            Step::Perform => self.carry_out(&now)?,
        };
        // what was answered before was on the disk then
        let answered = step == Step::Done && self.told().is_some();
        if moves_data(&self.change.mutation) && !answered {
            let unknown = Refused { errno: Errno::EIO, reason: Reason::Unknown };
            self.tree.sync().map_err(|_| unknown)?;
        }
        Ok(outcome)
    }

    /// The change as it is looked at: what it made before, and is under cover, is what it makes.
    fn looked_at(&self) -> Change {
        let mut change = self.change.clone();
        if let Mutation::Create { premade, .. } | Mutation::Mkdir { premade, .. } =
            &mut change.mutation
            && let Some(made) = self.made_before()[1]
        {
            *premade = Some(made);
        }
        change
    }

    /// The change as it is carried out: flags that ask for a state before it mean nothing to a
    /// change that may have been carried out.
    fn adapted(&self, now: &Seen) -> Change {
        let mut change = self.change.clone();
        if *self.how == How::First {
            return change;
        }
        match &mut change.mutation {
            // it may only have opened what was there, and gets its name back
            Mutation::Create { mode, exclusive: false, premade: None, .. } => {
                if let Some(Outcome::Entry(entry)) = self.told() {
                    *mode = entry.attr.mode & 0o7777;
                }
            }
            Mutation::SetXattr { flags, .. } => *flags = 0,
            Mutation::Rename { new_parent, new_name, .. }
                if self.still_replaced(&Step::Done, now) =>
            {
                let (parent, name) = (*new_parent, new_name.clone());
                change.mutation = Mutation::Unlink { parent, name, occupant: Occupant::Any };
            }
            // it has moved, and a link to the old name was made again: a rename between two names
            // of one node does nothing
            Mutation::Rename { parent, name, new_parent, new_name, new_occupant, mode, .. }
                if *mode != RenameMode::Exchange
                    && (&*parent, &*name) != (&*new_parent, &*new_name)
                    && (self.left_behind(&Step::Done, now)
                        || now.name.is_some()
                            && now.name == now.new_name
                            && *new_occupant != Occupant::Any
                            && expected(new_occupant) != now.name) =>
            {
                let (parent, name, occupant) = (*parent, name.clone(), Occupant::Any);
                change.mutation = Mutation::Unlink { parent, name, occupant };
            }
            _ => {}
        }
        change
    }

    /// Whether it finds at the old name what had to be made again only because it is gone: it had
    /// moved to where somebody else is now, and was removed there.
    fn left_behind(&self, step: &Step, now: &Seen) -> bool {
        let Mutation::Rename { occupant, .. } = &self.change.mutation else { return false };
        let How::Passed { told: Some(Outcome::Renamed { node: told, .. }) } = self.how else {
            return false;
        };
        let moved = expected(occupant);
        *step == Step::Done
            && moved != Some(*told)
            && now.name.is_some()
            && now.name == moved
            && now.new_name.is_some()
    }

    /// Whether whom it replaced is still there, though the one that took its place has no name any
    /// more.
    fn still_replaced(&self, step: &Step, now: &Seen) -> bool {
        let Mutation::Rename { occupant, new_occupant, mode, .. } = &self.change.mutation else {
            return false;
        };
        matches!(self.how, How::Passed { .. })
            && *mode != RenameMode::Exchange
            && *step == Step::Done
            && now.name != expected(occupant)
            && now.new_name.is_some()
            && now.new_name == expected(new_occupant)
    }

    fn carry_out(&self, now: &Seen) -> Result<Outcome, Refused> {
        let outcome = match self.perform(&self.adapted(now), now) {
            // a directory that is not empty stays
            Err(_)
                if self.left_behind(&Step::Done, now) || self.still_replaced(&Step::Done, now) =>
            {
                return Ok(self.told().unwrap_or(Outcome::Done));
            }
            outcome => outcome?,
        };
        match (&self.change.mutation, outcome, now.name) {
            (Mutation::Rename { .. }, Outcome::Removed { .. }, Some(node)) => {
                Ok(Outcome::Renamed { node, replaced: None })
            }
            _ => Ok(outcome),
        }
    }

    fn perform(&self, change: &Change, seen: &Seen) -> Result<Outcome, Refused> {
        self.recorder.intent(self.seq, seen).map_err(Refused::by_system)?;
        self.tree.perform(self.seq, change, self.body, seen).or_else(|errno| self.failed(errno))
    }

    /// What an error means. What was carried out before and is gone now was removed since: by a
    /// later entry, or by somebody who saw it.
    fn failed(&self, errno: Errno) -> Result<Outcome, Refused> {
        let gone = matches!(errno, Errno::ENOENT | Errno::ESTALE);
        let removes_xattr = matches!(self.change.mutation, Mutation::RemoveXattr { .. });
        match self.how {
            How::Passed { told } if gone => Ok(told.unwrap_or_else(|| self.assumed())),
            How::Again { told: Some(told) } if gone => Ok(*told),
            How::Again { .. } | How::Passed { .. } | How::Resumed { .. }
                if removes_xattr && errno == Errno::ENODATA =>
            {
                Ok(Outcome::Done)
            }
            _ if errno == Errno::ESTALE => Err(Refused::conflict(errno)),
            _ => Err(Refused::by_system(errno)),
        }
    }

    fn told(&self) -> Option<Outcome> {
        match self.how {
            How::Again { told } | How::Passed { told } => *told,
            How::First | How::Resumed { .. } | How::Refused(_) => None,
        }
    }

    /// The answer to what was carried out, and left nothing to look at.
    fn assumed(&self) -> Outcome {
        let made = self.made_before().into_iter().flatten().last();
        made.map_or(Outcome::Done, |node| Outcome::Entry(Entry { node, attr: GONE }))
    }

    /// Whom this creation may have made before.
    fn made_before(&self) -> [Option<NodeId>; 2] {
        let premade = match &self.change.mutation {
            Mutation::Create { premade, .. } | Mutation::Mkdir { premade, .. } => *premade,
            Mutation::Mknod { .. } | Mutation::Symlink { .. } => None,
            _ => return [None, None],
        };
        match self.how {
            How::First | How::Refused(_) => [None, None],
            How::Resumed { before } => [premade, before.made],
            How::Again { told: Some(Outcome::Entry(entry)) }
            | How::Passed { told: Some(Outcome::Entry(entry)) } => [premade, Some(entry.node)],
            // it was made, and removed
            How::Passed { told: Some(Outcome::Removed { node, .. }) } => [premade, Some(*node)],
            How::Again { .. } | How::Passed { .. } => [premade, None],
        }
    }

    /// Whether what it made before has got another name since.
    fn made_before_is_elsewhere(&self, now: &Seen) -> Result<bool, Refused> {
        for node in self.made_before().into_iter().flatten() {
            let waits = now.made == Some(node);
            if !waits && self.tree.is_named(node).map_err(Refused::by_system)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The answer to what was carried out before.
    fn done_before(&self, now: &Seen) -> Result<Outcome, Refused> {
        let removes =
            matches!(self.change.mutation, Mutation::Unlink { .. } | Mutation::Rmdir { .. });
        let told = self.told().filter(|told| removes || !matches!(told, Outcome::Removed { .. }));
        let before = match self.how {
            How::Resumed { before } => *before,
            How::First | How::Again { .. } | How::Passed { .. } | How::Refused(_) => *now,
        };
        let mut seen = before;
        match (&self.change.mutation, told) {
            // names and lengths do not change afterwards
            (_, Some(told)) if !matches!(told, Outcome::Entry(_) | Outcome::Attr(_)) => {
                return Ok(told);
            }
            (Mutation::Rename { occupant, new_occupant, .. }, _) => {
                return Ok(self.renamed_before(occupant, new_occupant, now));
            }
            (Mutation::Unlink { occupant, .. } | Mutation::Rmdir { occupant, .. }, _) => {
                seen.name = match (self.how, occupant) {
                    (How::Resumed { before }, _) => before.name,
                    (_, Occupant::Node(node)) => node_of(node),
                    // nobody has the name, as wanted; who had it is not known
                    (_, Occupant::Any | Occupant::Nobody) => return Ok(Outcome::Done),
                };
            }
            _ => seen.made = self.whom_it_made(now)?,
        }
        let outcome = self.tree.outcome(self.seq, self.change, self.body, &seen);
        match (outcome, told) {
            (Ok(outcome), _) => Ok(outcome),
            (Err(_), Some(told)) => Ok(told),
            (Err(Errno::ENOENT | Errno::ESTALE), None)
                if matches!(self.how, How::Passed { .. }) =>
            {
                Ok(self.assumed())
            }
            // it had no other name, and nobody had it open
            (Err(Errno::ENOENT | Errno::ESTALE), None) if removes && seen.name.is_some() => {
                Ok(seen.name.map_or(Outcome::Done, |node| Outcome::Removed { node, linked: false }))
            }
            (Err(errno), None) => Err(Refused::by_system(errno)),
        }
    }

    /// The node that a creation is about: the one at the name, or the one that it made and that has
    /// another name now.
    fn whom_it_made(&self, now: &Seen) -> Result<Option<NodeId>, Refused> {
        let candidates = self.made_before();
        if now.name.is_some() && candidates.contains(&now.name) {
            return Ok(now.name);
        }
        for node in candidates.into_iter().flatten() {
            if self.tree.is_named(node).map_err(Refused::by_system)? {
                return Ok(Some(node));
            }
        }
        let passed = matches!(self.how, How::Passed { .. });
        // whoever has the name now is another one
        Ok(candidates.into_iter().flatten().last().filter(|_| passed).or(now.name))
    }

    fn renamed_before(&self, occupant: &Occupant, new: &Occupant, now: &Seen) -> Outcome {
        let (moved, replaced) = match self.how {
            How::Resumed { before } => (before.name, before.new_name),
            How::First | How::Again { .. } | How::Passed { .. } | How::Refused(_) => {
                (expected(occupant), expected(new))
            }
        };
        match moved.or(now.new_name) {
            Some(node) => Outcome::Renamed { node, replaced },
            None => Outcome::Done,
        }
    }

    /// An append that may have been carried out must be neither lost nor doubled.
    fn append(&self, node: NodeId, size: u64, now: &Seen) -> Result<Outcome, Refused> {
        let place = match self.place(node, size, now) {
            Err(Refused { errno: Errno::ESTALE, .. }) => return self.failed(Errno::ESTALE),
            place => place?,
        };
        match place {
            Place::End => self.perform(self.change, now),
            Place::At(offset) => {
                let seen = Seen { size: Some(offset), ..*now };
                Ok(appended(offset, self.perform(&self.written_at(offset), &seen)?))
            }
            Place::Found(offset) => {
                let write = self.written_at(offset);
                let outcome = self.tree.outcome(self.seq, &write, self.body, now);
                outcome.map(|outcome| appended(offset, outcome)).map_err(Refused::by_system)
            }
        }
    }

    fn place(&self, node: NodeId, size: u64, now: &Seen) -> Result<Place, Refused> {
        let (base, told) = match self.how {
            How::Refused(refused) => return Err(*refused),
            How::First => return Ok(Place::End),
            How::Resumed { before } => (before.size.unwrap_or(size), false),
            How::Again { told: Some(Outcome::Appended { offset, .. }) }
            | How::Passed { told: Some(Outcome::Appended { offset, .. }) } => (*offset, true),
            How::Again { .. } | How::Passed { .. } => (size, false),
        };
        let held = match self.tree.holds(node, base, self.body) {
            Ok(held) => held,
            Err(Errno::ESTALE) => return Err(Refused::conflict(Errno::ESTALE)),
            Err(errno) => return Err(Refused::by_system(errno)),
        };
        match held {
            Held::All => Ok(Place::Found(base)),
            Held::Start | Held::Other if told => Ok(Place::At(base)),
            // the file has become shorter: a write there would leave a hole
            Held::Start if now.size.is_some_and(|size| size < base) => Ok(Place::End),
            Held::Start => Ok(Place::At(base)),
            Held::Other => Err(Refused { errno: Errno::EIO, reason: Reason::Unknown }),
        }
    }

    fn written_at(&self, offset: u64) -> Change {
        let mut change = self.change.clone();
        if let Mutation::Append { node, handle, .. } = change.mutation {
            change.mutation = Mutation::Write { node, handle, offset };
        }
        change
    }
}

fn appended(offset: u64, outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Attr(attr) => Outcome::Appended { offset, attr },
        other => other,
    }
}

fn expected(occupant: &Occupant) -> Option<NodeId> {
    match occupant {
        Occupant::Node(node) => node_of(node),
        Occupant::Any | Occupant::Nobody => None,
    }
}
