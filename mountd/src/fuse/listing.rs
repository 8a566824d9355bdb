//! Filling the kernel's buffers with a directory's entries.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use fuser::{FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::convert::{Presentation, directory, file_attr, kind};
use crate::fs::{COOKIE_DOT, COOKIE_DOT_DOT, Fs, Portion};

/// `.` and `..`, as far as they are still to come: number, cookie, name.
fn dots(portion: &Portion) -> impl Iterator<Item = (INodeNo, u64, &'static str)> {
    let dots =
        [(INodeNo(portion.ino), COOKIE_DOT, "."), (INodeNo(portion.parent), COOKIE_DOT_DOT, "..")];
    dots.into_iter().skip(portion.dots_from.into())
}

/// Names, numbers and types.
pub(super) fn names(portion: &Portion, mut reply: ReplyDirectory) {
    for (ino, cookie, dot) in dots(portion) {
        if reply.add(ino, cookie, FileType::Directory, dot) {
            return reply.ok();
        }
    }
    for entry in portion.entries() {
        let ino = INodeNo(entry.entry.node.ino);
        let name = OsStr::from_bytes(entry.name.as_bytes());
        if reply.add(ino, entry.cookie, kind(entry.entry.attr.mode), name) {
            break;
        }
    }
    reply.ok();
}

/// Entries as look-ups give them; each that fits counts as one.
pub(super) fn entries(
    fs: &Fs,
    portion: &Portion,
    presentation: Presentation,
    mut reply: ReplyDirectoryPlus,
) {
    for (ino, cookie, dot) in dots(portion) {
        // the kernel takes only the number and the type of these two
        let attr = directory(ino.0);
        if reply.add(ino, cookie, dot, &Duration::ZERO, &attr, Generation(0)) {
            return reply.ok();
        }
    }
    for entry in portion.entries() {
        let found = fs.show(portion, entry);
        let attr = file_attr(&found, presentation);
        let name = OsStr::from_bytes(entry.name.as_bytes());
        let generation = Generation(found.node.generation);
        if reply.add(attr.ino, entry.cookie, name, &found.keep, &attr, generation) {
            fs.forget(found.node.ino, 1);
            break;
        }
    }
    reply.ok();
}
