use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What must be the same.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Node {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    /// The first path of the same node.
    link_of: PathBuf,
    xattrs: BTreeMap<String, Vec<u8>>,
    content: Content,
}

#[derive(Debug, Eq, PartialEq)]
enum Content {
    /// Its times are of the moment when its entries changed.
    Dir,
    File {
        mtime: (i64, i64),
        data: Vec<u8>,
    },
    Symlink {
        mtime: (i64, i64),
        target: PathBuf,
    },
    Other {
        mtime: (i64, i64),
    },
}

/// What is open and has no name any more is kept under its identity, another one each time.
fn known_name(name: PathBuf) -> PathBuf {
    let held = Path::new(".p2pfs/held");
    if name.parent() == Some(held) { held.join("one") } else { name }
}

/// Everything below a directory.
pub(crate) fn read(root: &Path) -> BTreeMap<PathBuf, Node> {
    let mut nodes = BTreeMap::new();
    let mut first = BTreeMap::new();
    let mut below = vec![root.to_owned()];
    while let Some(dir) = below.pop() {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root).unwrap().to_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                below.push(path.clone());
            }
            let node = Node {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                links: meta.nlink(),
                link_of: first
                    .entry(meta.ino())
                    .or_insert_with(|| known_name(name.clone()))
                    .clone(),
                xattrs: xattrs(&path),
                content: content(&path, &meta),
            };
            nodes.insert(known_name(name), node);
        }
    }
    nodes
}

/// Panics with the first difference.
#[track_caller]
pub(crate) fn assert_same(
    expected: &BTreeMap<PathBuf, Node>,
    found: &BTreeMap<PathBuf, Node>,
    what: &str,
) {
    let names = |nodes: &BTreeMap<PathBuf, Node>| nodes.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}: other names");
    for (path, node) in expected {
        assert!(found[path] == *node, "{what}: {path:?}\n  is  {:?}\n  not {node:?}", found[path]);
    }
}

fn content(path: &Path, meta: &fs::Metadata) -> Content {
    let mtime = (meta.mtime(), meta.mtime_nsec());
    let kind = meta.file_type();
    if kind.is_dir() {
        Content::Dir
    } else if kind.is_file() {
        Content::File { mtime, data: fs::read(path).unwrap() }
    } else if kind.is_symlink() {
        Content::Symlink { mtime, target: fs::read_link(path).unwrap() }
    } else {
        Content::Other { mtime }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or_default();
    names.truncate(len);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let name = String::from_utf8(name.to_vec()).unwrap();
        let mut value = vec![0; 4096];
        let len = rustix::fs::lgetxattr(path, &*name, &mut value).unwrap();
        value.truncate(len);
        (name, value)
    };
    names.map(value).collect()
}
