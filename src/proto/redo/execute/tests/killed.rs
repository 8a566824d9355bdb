//! A tree in memory, and a host that is killed at each of its steps.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::*;

/// What the killed host's thread ends with.
struct Killed;

/// A directory, files and a record that outlive the host.
#[derive(Default)]
struct Disk {
    names: RefCell<BTreeMap<Name, NodeId>>,
    files: RefCell<BTreeMap<NodeId, Vec<u8>>>,
    covered: RefCell<BTreeSet<NodeId>>,
    next: Cell<u64>,
    /// Steps until the host is killed.
    steps: Cell<Option<u32>>,
    /// Bytes that the next write still writes before the host is killed.
    torn: Cell<Option<usize>>,
    intent: Cell<Option<Seen>>,
    done: Cell<Option<Result<Outcome, Refused>>>,
    syncs: Cell<u32>,
    disk_fails: Cell<bool>,
}

impl Disk {
    fn with(names: &[(&str, NodeId)]) -> Self {
        let disk = Self::default();
        disk.next.set(100);
        for (text, node) in names {
            disk.names.borrow_mut().insert(name(text), *node);
            disk.files.borrow_mut().insert(*node, b"abc".to_vec());
        }
        disk
    }

    fn step(&self) {
        if let Some(left) = self.steps.get() {
            if left == 0 {
                self.steps.set(None);
                resume_unwind(Box::new(Killed));
            }
            self.steps.set(Some(left - 1));
        }
    }

    fn run(&self, mutation: &Mutation, body: &[u8], how: How) -> Result<Outcome, Refused> {
        let change = Change::new(mutation.clone());
        execute(self, self, Seq(1), &change, &body.to_vec(), &how, true)
    }

    /// Carries it out, killed after `steps` steps, as often as it takes.
    fn run_killed(&self, mutation: &Mutation, body: &[u8], steps: u32) -> bool {
        self.steps.set(Some(steps));
        let first = catch_unwind(AssertUnwindSafe(|| self.run(mutation, body, How::First)));
        if first.is_ok() {
            return false;
        }
        if self.done.get().is_none() {
            let how = self.intent.get().map_or(How::First, |before| How::Resumed { before });
            self.run(mutation, body, how).unwrap();
        }
        true
    }

    fn at(&self, text: &str) -> Option<NodeId> {
        self.names.borrow().get(&name(text)).copied()
    }

    fn data(&self, node: NodeId) -> Vec<u8> {
        self.files.borrow()[&node].clone()
    }

    fn make(&self) -> NodeId {
        self.next.set(self.next.get() + 1);
        let node = NodeId { ino: self.next.get(), generation: 0 };
        self.files.borrow_mut().insert(node, Vec::new());
        self.covered.borrow_mut().insert(node);
        node
    }

    fn node_attr(&self, node: NodeId) -> Result<Outcome, Errno> {
        let files = self.files.borrow();
        let data = files.get(&node).ok_or(Errno::ESTALE)?;
        Ok(Outcome::Attr(attr(data.len() as u64)))
    }

    fn put(&self, node: NodeId, offset: usize, body: &[u8]) -> Result<Outcome, Errno> {
        let written = self.torn.take();
        let body = &body[..written.unwrap_or(body.len()).min(body.len())];
        if let Some(data) = self.files.borrow_mut().get_mut(&node) {
            let end = offset + body.len();
            let len = data.len().max(end);
            data.resize(len, 0);
            data[offset..end].copy_from_slice(body);
        }
        if written.is_some() {
            resume_unwind(Box::new(Killed));
        }
        self.node_attr(node)
    }
}

impl Tree<Vec<u8>> for Disk {
    fn look(&self, change: &Change) -> Result<Seen, Errno> {
        self.step();
        let size = |node: &NodeRef| {
            let files = self.files.borrow();
            let data = files.get(&node_of(node).unwrap()).ok_or(Errno::ESTALE)?;
            Ok(Seen { size: Some(data.len() as u64), ..Seen::default() })
        };
        let mut seen = at(self.at("a"));
        match &change.mutation {
            Mutation::Create { premade, .. } if seen.name.is_none() => {
                let waits = premade.filter(|node| self.covered.borrow().contains(node));
                seen.made = Some(waits.unwrap_or_else(|| self.make()));
            }
            Mutation::Rename { .. } => seen.new_name = self.at("b"),
            Mutation::Write { node, .. }
            | Mutation::Append { node, .. }
            | Mutation::Fallocate { node, .. } => return size(node),
            _ => {}
        }
        Ok(seen)
    }

    fn perform(
        &self,
        _: Seq,
        change: &Change,
        body: &Vec<u8>,
        seen: &Seen,
    ) -> Result<Outcome, Errno> {
        self.step();
        let outcome = match &change.mutation {
            Mutation::Create { name, .. } => {
                let node = seen.made.ok_or(Errno::EEXIST)?;
                self.covered.borrow_mut().remove(&node);
                self.names.borrow_mut().insert(name.clone(), node);
                Ok(entry(node))
            }
            Mutation::Unlink { name, .. } => {
                let removed = self.names.borrow_mut().remove(name);
                removed.map(|node| Outcome::Removed { node, linked: false }).ok_or(Errno::ENOENT)
            }
            Mutation::Rename { name, new_name, .. } => {
                let mut names = self.names.borrow_mut();
                let node = names.remove(name).ok_or(Errno::ENOENT)?;
                let replaced = names.insert(new_name.clone(), node);
                Ok(Outcome::Renamed { node, replaced })
            }
            Mutation::Write { node, offset, .. } => {
                self.put(node_of(node).unwrap(), usize::try_from(*offset).unwrap(), body)
            }
            Mutation::Append { node, .. } => {
                let node = node_of(node).unwrap();
                let offset = self.data(node).len();
                let put = self.put(node, offset, body)?;
                Ok(appended(offset as u64, put))
            }
            Mutation::Fallocate { node, len, .. } => {
                let node = node_of(node).unwrap();
                let len = usize::try_from(*len).unwrap();
                self.files.borrow_mut().get_mut(&node).unwrap().drain(..len);
                self.node_attr(node)
            }
            Mutation::RemoveXattr { .. } => Err(Errno::ENODATA),
            Mutation::SetXattr { flags, .. } => {
                if *flags == 0 {
                    Ok(Outcome::Done)
                } else {
                    Err(Errno::EEXIST)
                }
            }
            other => unreachable!("{other:?}"),
        };
        self.step();
        outcome
    }

    fn outcome(&self, _: Seq, change: &Change, _: &Vec<u8>, seen: &Seen) -> Result<Outcome, Errno> {
        match &change.mutation {
            Mutation::Create { .. } => Ok(entry(seen.made.unwrap())),
            Mutation::Unlink { .. } => {
                Ok(Outcome::Removed { node: seen.name.unwrap(), linked: false })
            }
            _ => self.node_attr(X),
        }
    }

    fn holds(&self, node: NodeId, offset: u64, body: &Vec<u8>) -> Result<Held, Errno> {
        let data = self.data(node);
        let there = data.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        Ok(if there.starts_with(body) {
            Held::All
        } else if body.starts_with(there) {
            Held::Start
        } else {
            Held::Other
        })
    }

    fn is_named(&self, node: NodeId) -> Result<bool, Errno> {
        Ok(self.names.borrow().values().any(|named| *named == node))
    }

    fn sync(&self) -> Result<(), Errno> {
        self.step();
        self.syncs.set(self.syncs.get() + 1);
        if self.disk_fails.get() { Err(Errno::EIO) } else { Ok(()) }
    }
}

impl Recorder for Disk {
    fn intent(&self, _: Seq, seen: &Seen) -> Result<(), Errno> {
        self.step();
        self.intent.set(Some(*seen));
        Ok(())
    }

    fn done(&self, _: Seq, result: &Result<Outcome, Refused>, _: bool) {
        self.step();
        self.done.set(Some(*result));
    }
}

/// Kills the host at every step until there is none left, and looks at each end.
fn at_every_step(names: &[(&str, NodeId)], mutation: &Mutation, body: &[u8], look: impl Fn(&Disk)) {
    let mut steps = 0;
    loop {
        let disk = Disk::with(names);
        let killed = disk.run_killed(mutation, body, steps);
        assert!(disk.done.get().is_some_and(|result| result.is_ok()), "step {steps}");
        look(&disk);
        if !killed {
            break;
        }
        steps += 1;
    }
    assert!(steps >= 4, "{steps} steps");
}

#[test]
fn a_killed_create_makes_one_file() {
    at_every_step(&[], &create(true, None), &[], |disk| {
        let made = disk.at("a").unwrap();
        assert_eq!(disk.done.get(), Some(Ok(entry(made))));
        assert_eq!(disk.names.borrow().len(), 1);
    });
}

#[test]
fn a_killed_unlink_removes_one_name() {
    at_every_step(&[("a", X)], &unlink(Occupant::Any), &[], |disk| {
        assert_eq!(disk.at("a"), None);
        let removed = Outcome::Removed { node: X, linked: false };
        assert_eq!(disk.done.get(), Some(Ok(removed)));
    });
}

#[test]
fn a_killed_rename_moves_once() {
    let mutation = rename(Occupant::Any, Occupant::Any, RenameMode::Replace);
    at_every_step(&[("a", X), ("b", Y)], &mutation, &[], |disk| {
        assert_eq!((disk.at("a"), disk.at("b")), (None, Some(X)));
        let renamed = Outcome::Renamed { node: X, replaced: Some(Y) };
        assert_eq!(disk.done.get(), Some(Ok(renamed)));
    });
}

#[test]
fn a_killed_append_is_neither_lost_nor_doubled() {
    let expected = Outcome::Appended { offset: 3, attr: attr(6) };
    at_every_step(&[("a", X)], &append(0), b"def", |disk| {
        assert_eq!(disk.data(X), b"abcdef");
        assert_eq!(disk.done.get(), Some(Ok(expected)));
    });
    for written in 0..=3 {
        let disk = Disk::with(&[("a", X)]);
        disk.torn.set(Some(written));
        assert!(disk.run_killed(&append(3), b"def", 100));
        assert_eq!((disk.data(X), disk.done.get()), (b"abcdef".to_vec(), Some(Ok(expected))));
    }
}

#[test]
fn a_killed_collapse_moves_once_and_is_on_the_disk_before_it_is_done() {
    let mutation =
        Mutation::Fallocate { node: X.into(), handle: None, offset: 0, len: 1, mode: 0x08 };
    at_every_step(&[("a", X)], &mutation, &[], |disk| {
        assert_eq!(disk.data(X), b"bc");
        assert!(disk.syncs.get() > 0);
    });
    let disk = Disk::with(&[("a", X)]);
    disk.disk_fails.set(true);
    let unknown = Refused { errno: Errno::EIO, reason: Reason::Unknown };
    assert_eq!(disk.run(&mutation, &[], How::First), Err(unknown));
}

#[test]
fn an_append_that_was_told_goes_where_it_was() {
    let told = Outcome::Appended { offset: 3, attr: attr(6) };
    let disk = Disk::with(&[("a", X)]);
    for _ in 0..2 {
        assert_eq!(disk.run(&append(0), b"def", again(told)), Ok(told));
        assert_eq!(disk.data(X), b"abcdef");
    }
}

#[test]
fn an_append_that_was_not_told_is_searched_where_the_client_saw_the_end() {
    let disk = Disk::with(&[("a", X)]);
    for _ in 0..2 {
        disk.run(&append(3), b"def", UNTOLD).unwrap();
        assert_eq!(disk.data(X), b"abcdef");
    }
    // somebody else has appended there
    let unknown = Refused { errno: Errno::EIO, reason: Reason::Unknown };
    assert_eq!(disk.run(&append(3), b"xyz", UNTOLD), Err(unknown));
    // the file is shorter than the client saw it
    disk.run(&append(9), b"g", UNTOLD).unwrap();
    assert_eq!(disk.data(X), b"abcdefg");
}

#[test]
fn an_editor_s_save_that_reached_the_disk_is_not_made_again() {
    // create a; rename a -> b; create a
    let disk = Disk::with(&[("b", X), ("a", Y)]);
    assert_eq!(disk.run(&create(true, None), &[], again(entry(X))), Ok(entry(X)));
    let move_it = rename(is(X), is(Z), RenameMode::Replace);
    let renamed = Outcome::Renamed { node: X, replaced: Some(Z) };
    assert_eq!(disk.run(&move_it, &[], again(renamed)), Ok(renamed));
    assert_eq!(disk.run(&create(true, None), &[], again(entry(Y))), Ok(entry(Y)));
    assert_eq!((disk.at("a"), disk.at("b")), (Some(Y), Some(X)));
    // the same before the second creation
    let disk = Disk::with(&[("b", X)]);
    assert_eq!(disk.run(&create(true, Some(X)), &[], UNTOLD), Ok(entry(X)));
    assert_eq!(disk.at("a"), None);
}

/// What moved was replaced there, and made again for an entry before: it does not keep the old name
/// alive, and takes nobody's place.
#[test]
fn what_was_made_again_only_because_it_is_gone_is_not_left_behind() {
    let disk = Disk::with(&[("a", X), ("b", Y)]);
    let told = Some(Outcome::Renamed { node: Z, replaced: None });
    let rename = rename(is(X), Occupant::Nobody, RenameMode::Replace);
    disk.run(&rename, &[], How::Passed { told }).unwrap();
    assert_eq!((disk.at("a"), disk.at("b")), (None, Some(Y)));
}

#[test]
fn a_premade_node_that_lost_its_name_gets_it_again() {
    let disk = Disk::with(&[]);
    let premade = disk.make();
    let change = create(true, Some(premade));
    assert_eq!(disk.run(&change, &[], again(entry(premade))), Ok(entry(premade)));
    assert_eq!(disk.at("a"), Some(premade));
}

#[test]
fn what_is_gone_was_removed_after_it_was_told() {
    let disk = Disk::with(&[]);
    let told = Outcome::Attr(attr(3));
    assert_eq!(disk.run(&write(), b"x", again(told)), Ok(told));
    let stale = Refused::conflict(Errno::ESTALE);
    assert_eq!(disk.run(&write(), b"x", UNTOLD), Err(stale));
    assert_eq!(disk.run(&write(), b"x", How::First), Err(stale));
}

#[test]
fn flags_and_missing_attributes_do_not_matter_the_second_time() {
    let disk = Disk::with(&[("a", X)]);
    let name = XattrName(b"user.a".to_vec());
    let set = Mutation::SetXattr { node: X.into(), name: name.clone(), flags: 1 };
    let remove = Mutation::RemoveXattr { node: X.into(), name };
    for how in [UNTOLD, resumed(Seen::default())] {
        assert_eq!(disk.run(&set, b"v", how), Ok(Outcome::Done));
        assert_eq!(disk.run(&remove, &[], how), Ok(Outcome::Done));
    }
    let refused = |errno| Err(Refused::by_system(errno));
    assert_eq!(disk.run(&set, b"v", How::First), refused(Errno::EEXIST));
    assert_eq!(disk.run(&remove, &[], How::First), refused(Errno::ENODATA));
}

#[test]
fn nothing_is_done_without_a_look_at_the_tree() {
    let disk = Disk::with(&[]);
    disk.steps.set(Some(1));
    assert_eq!(disk.run(&Mutation::Nothing, &[], How::First), Ok(Outcome::Done));
    assert_eq!(disk.done.get(), Some(Ok(Outcome::Done)));
    disk.steps.set(None);
    // struck, after it was carried out in an epoch that ended
    assert_eq!(disk.run(&Mutation::Nothing, &[], again(entry(X))), Ok(entry(X)));
}

#[test]
fn what_is_set_aside_only_goes_into_the_record() {
    let disk = Disk::with(&[("a", X)]);
    let refused = Refused { errno: Errno::EIO, reason: Reason::SetAside { because: Seq(1) } };
    assert_eq!(disk.run(&write(), b"x", How::Refused(refused)), Err(refused));
    assert_eq!(disk.done.get(), Some(Err(refused)));
    assert_eq!(disk.data(X), b"abc");
}

#[test]
fn a_removal_by_name_that_finds_nobody_does_not_say_who_it_was() {
    let disk = Disk::with(&[]);
    assert_eq!(disk.run(&unlink(Occupant::Any), &[], UNTOLD), Ok(Outcome::Done));
    let removed = Outcome::Removed { node: X, linked: false };
    assert_eq!(disk.run(&unlink(is(X)), &[], UNTOLD), Ok(removed));
}

/// The host was killed when it had removed the last name of what nobody had open.
#[test]
fn regression_a_killed_removal_is_done_even_if_nothing_is_left_to_look_at() {
    for removal in [unlink(is(X)), rmdir(is(X))] {
        let disk = Disk::with(&[]);
        let removed = disk.run(&removal, b"", resumed(at(Some(X))));
        assert_eq!(removed, Ok(Outcome::Removed { node: X, linked: false }));
    }
}
