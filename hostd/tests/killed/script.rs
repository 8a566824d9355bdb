use bytes::Bytes;
use p2pfs::id::{HandleId, NodeId, Seq};
use p2pfs::wire::call::{Access, Time, XattrName};
use p2pfs::wire::log::{
    AttrChange, Change, LogEntry, Mutation, NodeRef, Occupant, Opening, Promise, RenameMode, Sent,
    SetTime,
};
use p2pfs::wire::name::{Name, Target};

const ROOT: NodeRef = NodeRef::Node(NodeId::ROOT);
const BLOCK: u64 = 4096;
const COLLAPSE: u32 = 0x08;
const INSERT: u32 = 0x20;
const PUNCH_AND_KEEP: u32 = 0x03;

/// The entries so far; each knows what it made by its number.
struct Script {
    entries: Vec<(LogEntry, Bytes)>,
}

/// What a program at the client does to a directory, as entries. Deterministic.
pub(crate) fn entries() -> Vec<(LogEntry, Bytes)> {
    let mut script = Script { entries: Vec::new() };
    let dir = script.mkdir(ROOT, "dir", 0o750);
    save_as_an_editor_does(&mut script, dir);
    keep_a_log(&mut script, dir);
    move_directories(&mut script);
    move_data(&mut script);
    make_what_is_no_file(&mut script);
    wait_for_answers(&mut script, dir);
    script.entries
}

fn save_as_an_editor_does(script: &mut Script, dir: NodeRef) {
    let notes = script.create(dir, "notes", 0o640, Some(1));
    script.write(notes, Some(1), 0, &pattern(100_000));
    script.write(notes, Some(1), 50_000, b"in the midst");
    let mut old = notes;
    for draft in ["second\n", "third\n"] {
        let temporary = script.create(dir, "notes~", 0o600, None);
        script.write(temporary, None, 0, draft.as_bytes());
        let change = AttrChange {
            mode: Some(0o640),
            uid: Some(12),
            gid: Some(34),
            mtime: Some(SetTime::At(Time { seconds: 12, nanos: 34 })),
            ..AttrChange::default()
        };
        script.accepted(Mutation::SetAttr { node: temporary, handle: None, change });
        script.rename((dir, "notes~", temporary), (dir, "notes", Some(old)), RenameMode::Replace);
        old = temporary;
    }
    let given_up = script.create(dir, "notes~", 0o600, None);
    script.write(given_up, None, 10, b"never saved");
    script.unlink(dir, "notes~", given_up);
}

fn keep_a_log(script: &mut Script, dir: NodeRef) {
    let log = script.create(ROOT, "log", 0o644, Some(2));
    // The same record twice: a search for it alone cannot tell
    for record in ["one\n", "one\n", "two\n", "one\n"] {
        script.append(log, record.as_bytes());
    }
    let change = AttrChange { size: Some(14), ..AttrChange::default() };
    script.accepted(Mutation::SetAttr { node: log, handle: Some(HandleId(2)), change });
    script.append(log, b"one\n");
    script.accepted(Mutation::Link { node: log, parent: dir, name: name("also") });
    script.rename((dir, "also", log), (ROOT, "log.1", None), RenameMode::NoReplace);
    script.unlink(ROOT, "log", log);
    script.append(log, b"one\n");
}

fn move_directories(script: &mut Script) {
    let one = script.mkdir(ROOT, "a", 0o755);
    let other = script.mkdir(ROOT, "b", 0o700);
    script.create(one, "inside", 0o444, None);
    script.rename((ROOT, "a", one), (ROOT, "b", Some(other)), RenameMode::Exchange);
    let occupant = Occupant::Node(other);
    script.accepted(Mutation::Rmdir { parent: ROOT, name: name("a"), occupant });
    let third = script.mkdir(ROOT, "c", 0o755);
    script.rename((ROOT, "b", one), (ROOT, "c", Some(third)), RenameMode::Replace);
    script.create(one, "later", 0o600, None);
}

fn move_data(script: &mut Script) {
    let file = script.create(ROOT, "data", 0o600, Some(3));
    script.write(file, Some(3), 0, &pattern(4 * BLOCK as usize));
    for (mode, offset, len) in [
        (COLLAPSE, 0, BLOCK),
        (INSERT, BLOCK, BLOCK),
        (PUNCH_AND_KEEP, 100, 1000),
        (0, 6 * BLOCK, BLOCK),
    ] {
        let handle = Some(HandleId(3));
        // Not every file system moves data: what comes after it must go on
        script.awaited(Mutation::Fallocate { node: file, handle, offset, len, mode });
    }
    let copy = script.create(ROOT, "copy", 0o600, None);
    script.accepted(Mutation::CopyRange {
        source: file,
        source_handle: Some(HandleId(3)),
        source_offset: 500,
        node: copy,
        handle: None,
        offset: 700,
        len: 6000,
    });
    script.set_xattr(copy, "user.one", b"1");
    script.set_xattr(copy, "user.two", b"2");
    script.set_xattr(copy, "user.one", b"one");
    let xattr = XattrName(b"user.two".to_vec());
    script.accepted(Mutation::RemoveXattr { node: copy, name: xattr });
}

fn make_what_is_no_file(script: &mut Script) {
    let target = Target::new("dir/notes").unwrap();
    script.accepted(Mutation::Symlink { parent: ROOT, name: name("link"), target });
    let fifo = Mutation::Mknod { parent: ROOT, name: name("fifo"), mode: 0o010_640, rdev: 0 };
    script.accepted(fifo);
}

/// Calls that take what they find.
fn wait_for_answers(script: &mut Script, dir: NodeRef) {
    let create = |name: &str, exclusive| Mutation::Create {
        parent: dir,
        name: self::name(name),
        mode: 0o644,
        exclusive,
        premade: None,
        open: None,
    };
    let occupant = Occupant::Any;
    script.awaited(create("taken", true));
    script.awaited(create("taken", true));
    script.awaited(create("taken", false));
    script.awaited(create("moved", false));
    script.awaited(Mutation::Rename {
        parent: dir,
        name: name("moved"),
        occupant,
        new_parent: ROOT,
        new_name: name("moved here"),
        new_occupant: occupant,
        mode: RenameMode::Replace,
    });
    script.awaited(Mutation::Unlink { parent: dir, name: name("taken"), occupant });
    script.awaited(Mutation::Unlink { parent: dir, name: name("taken"), occupant });
    script.awaited(Mutation::Rmdir { parent: ROOT, name: name("c"), occupant });
    script.awaited(create("taken", true));
    script.awaited(Mutation::Nothing);
}

impl Script {
    fn mkdir(&mut self, parent: NodeRef, text: &str, mode: u32) -> NodeRef {
        self.accepted(Mutation::Mkdir { parent, name: name(text), mode, premade: None })
    }

    fn create(&mut self, parent: NodeRef, text: &str, mode: u32, open: Option<u64>) -> NodeRef {
        let handle = |number| Opening { handle: HandleId(number), access: Access::ReadWrite };
        let (exclusive, premade, open) = (true, None, open.map(handle));
        self.accepted(Mutation::Create { parent, name: name(text), mode, exclusive, premade, open })
    }

    fn write(&mut self, node: NodeRef, handle: Option<u64>, offset: u64, data: &[u8]) {
        let handle = handle.map(HandleId);
        self.push(Mutation::Write { node, handle, offset }, data, Promise::Accepted);
    }

    fn append(&mut self, node: NodeRef, data: &[u8]) {
        let append = Mutation::Append { node, handle: Some(HandleId(2)), size: 0 };
        self.push(append, data, Promise::Awaited);
    }

    fn set_xattr(&mut self, node: NodeRef, name: &str, value: &[u8]) {
        let name = XattrName(name.into());
        self.push(Mutation::SetXattr { node, name, flags: 0 }, value, Promise::Accepted);
    }

    fn unlink(&mut self, parent: NodeRef, text: &str, node: NodeRef) {
        let occupant = Occupant::Node(node);
        self.accepted(Mutation::Unlink { parent, name: name(text), occupant });
    }

    fn rename(
        &mut self,
        (parent, old, node): (NodeRef, &str, NodeRef),
        (new_parent, new, replaced): (NodeRef, &str, Option<NodeRef>),
        mode: RenameMode,
    ) {
        self.accepted(Mutation::Rename {
            parent,
            name: name(old),
            occupant: Occupant::Node(node),
            new_parent,
            new_name: name(new),
            new_occupant: replaced.map_or(Occupant::Nobody, Occupant::Node),
            mode,
        });
    }

    fn accepted(&mut self, mutation: Mutation) -> NodeRef {
        self.push(mutation, b"", Promise::Accepted)
    }

    fn awaited(&mut self, mutation: Mutation) -> NodeRef {
        self.push(mutation, b"", Promise::Awaited)
    }

    /// Each after the one before, as one program does it.
    fn push(&mut self, mutation: Mutation, data: &[u8], promise: Promise) -> NodeRef {
        let seq = Seq(self.entries.len() as u64 + 1);
        let after = if seq == Seq(1) { Vec::new() } else { vec![Seq(seq.0 - 1)] };
        let at = Time { seconds: 1_700_000_000 + i64::try_from(seq.0).unwrap(), nanos: 5 };
        let change = Change { at: Some(at), ..Change::new(mutation) };
        let entry = LogEntry { seq, after, promise, sent: Sent::First, change };
        self.entries.push((entry, Bytes::copy_from_slice(data)));
        NodeRef::MadeBy(seq)
    }
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}
