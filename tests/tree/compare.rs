//! What a tree is, and how two of them differ.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything below a directory, by path; the directory itself left out.
pub(super) struct Tree {
    root: PathBuf,
    nodes: BTreeMap<OsString, Node>,
}

/// What must be the same.
#[derive(Debug, Eq, PartialEq)]
struct Node {
    content: Content,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
    xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path that is a link to the same file.
    link_of: OsString,
    /// Not compared between trees but by [`Tree::assert_same_inodes`].
    ino: Inode,
}

#[derive(Debug)]
struct Inode(u64);

#[derive(Debug, Eq, PartialEq)]
enum Content {
    File { size: u64, hash: u64, nlink: u64 },
    Dir,
    Symlink(PathBuf),
    Special { kind: u32, device: u64 },
}

impl Tree {
    /// Reads everything.
    #[track_caller]
    pub(super) fn read(root: &Path) -> Self {
        let mut tree = Self { root: root.to_owned(), nodes: BTreeMap::new() };
        let mut todo = vec![PathBuf::new()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(root.join(&dir)).unwrap() {
                let entry = entry.unwrap();
                if dir.as_os_str().is_empty() && entry.file_name() == ".p2pfs" {
                    continue;
                }
                let path = dir.join(entry.file_name());
                let node = Node::read(&root.join(&path), path.as_os_str());
                if node.content == Content::Dir {
                    todo.push(path.clone());
                }
                tree.nodes.insert(path.into_os_string(), node);
            }
        }
        tree.name_links();
        tree
    }

    /// Regular files in it.
    pub(super) fn files(&self) -> usize {
        let is_file = |node: &&Node| matches!(node.content, Content::File { .. });
        self.nodes.values().filter(is_file).count()
    }

    /// Panics with the first differences.
    #[track_caller]
    pub(super) fn assert_same(&self, other: &Self) {
        let mut differences = Vec::new();
        for (path, node) in &self.nodes {
            match other.nodes.get(path) {
                None => differences.push(format!("{path:?} is missing")),
                Some(found) if found != node => {
                    differences.push(format!("{path:?}\n  is  {found:?}\n  not {node:?}"));
                }
                Some(_) => {}
            }
        }
        for path in other.nodes.keys() {
            if !self.nodes.contains_key(path) {
                differences.push(format!("{path:?} is new"));
            }
        }
        let shown = differences.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
        assert!(
            differences.is_empty(),
            "{} against {}: {} differences\n{shown}",
            other.root.display(),
            self.root.display(),
            differences.len()
        );
    }

    /// Panics unless `stat` shows the same inode numbers.
    #[track_caller]
    pub(super) fn assert_same_inodes(&self, other: &Self) {
        for (path, node) in &self.nodes {
            assert_eq!(node.ino.0, other.nodes[path].ino.0, "inode of {path:?}");
        }
    }

    /// Which paths are one file.
    fn name_links(&mut self) {
        let mut first: BTreeMap<u64, OsString> = BTreeMap::new();
        for (path, node) in &mut self.nodes {
            if matches!(node.content, Content::File { .. }) {
                let name = first.entry(node.ino.0).or_insert_with(|| path.clone());
                node.link_of.clone_from(name);
            }
        }
    }
}

impl Node {
    #[track_caller]
    fn read(path: &Path, name: &OsStr) -> Self {
        let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self {
            content: Content::read(path, &meta),
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            xattrs: xattrs(path),
            link_of: name.to_owned(),
            ino: Inode(meta.ino()),
        }
    }
}

impl Content {
    #[track_caller]
    fn read(path: &Path, meta: &Metadata) -> Self {
        let kind = meta.file_type();
        if kind.is_dir() {
            Self::Dir
        } else if kind.is_symlink() {
            Self::Symlink(fs::read_link(path).unwrap())
        } else if kind.is_file() {
            let (read, hash) = hash_of(path);
            assert_eq!(read, meta.len(), "{}: read and stat differ", path.display());
            Self::File { size: meta.len(), hash, nlink: meta.nlink() }
        } else {
            Self::Special { kind: meta.mode() & 0o170_000, device: meta.rdev() }
        }
    }
}

impl Eq for Inode {}

impl PartialEq for Inode {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// Extended attributes, ACLs among them.
#[track_caller]
fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; 65_536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        (name.to_owned(), value)
    };
    names.map(value).collect()
}

/// Length and hash of a file's content.
#[track_caller]
fn hash_of(path: &Path) -> (u64, u64) {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut buffer = vec![0; 1 << 20];
    let mut hasher = DefaultHasher::new();
    let mut length = 0;
    loop {
        // filled up, so that the hash does not depend on how a file system cuts its answers
        let mut filled = 0;
        while filled < buffer.len() {
            match file.read(&mut buffer[filled..]).unwrap() {
                0 => break,
                read => filled += read,
            }
        }
        if filled == 0 {
            return (length, hasher.finish());
        }
        hasher.write(&buffer[..filled]);
        length += u64::try_from(filled).unwrap();
    }
}
