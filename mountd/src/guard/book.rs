//! The nodes that the kernel knows, where another process can read them when this one is gone.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Mutex;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::lock::lock;

/// A node's number, bytes; 0 is an empty place.
const PLACE: usize = size_of::<u64>();
/// Places that are read at once.
const READ_BYTES: usize = 64 << 10;

/// Numbers of nodes, in a file in memory.
#[derive(Debug)]
pub(crate) struct NodeBook {
    file: File,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    of: HashMap<u64, u64>,
    free: Vec<u64>,
    end: u64,
}

impl NodeBook {
    pub(crate) fn new() -> io::Result<Self> {
        let file = memfd_create(c"p2pfs-nodes", MemfdFlags::CLOEXEC)?.into();
        Ok(Self { file, places: Mutex::default() })
    }

    /// From now on the kernel may keep something of this node.
    pub(crate) fn enter(&self, ino: u64) {
        let mut places = lock(&self.places);
        if places.of.contains_key(&ino) {
            return;
        }
        let place = places.free.pop().unwrap_or_else(|| {
            places.end += 1;
            places.end - 1
        });
        places.of.insert(ino, place);
        self.write(place, ino);
    }

    /// The kernel has let go of it.
    pub(crate) fn strike(&self, ino: u64) {
        let mut places = lock(&self.places);
        if let Some(place) = places.of.remove(&ino) {
            places.free.push(place);
            self.write(place, 0);
        }
    }

    fn write(&self, place: u64, ino: u64) {
        if let Err(error) = self.file.write_all_at(&ino.to_le_bytes(), place * PLACE as u64) {
            tracing::warn!(%error, "if this process is killed, the kernel keeps what it knows");
        }
    }

    /// All numbers that `file` holds, which may be another process's.
    pub(super) fn read(file: &File) -> io::Result<Vec<u64>> {
        let mut nodes = Vec::new();
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        loop {
            let length = file.read_at(&mut buffer, offset)?;
            if length == 0 {
                return Ok(nodes);
            }
            let numbers = buffer[..length].as_chunks::<PLACE>().0.iter();
            nodes.extend(numbers.map(|number| u64::from_le_bytes(*number)).filter(|ino| *ino != 0));
            offset += length as u64;
        }
    }
}

impl AsFd for NodeBook {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_let_go_makes_room() {
        let book = NodeBook::new().unwrap();
        for ino in 1..=20_000 {
            book.enter(ino);
        }
        book.enter(1);
        for ino in 3..=20_000 {
            book.strike(ino);
        }
        book.enter(7);
        let mut nodes = NodeBook::read(&book.file).unwrap();
        nodes.sort_unstable();
        assert_eq!(nodes, [1, 2, 7]);
        assert_eq!(book.file.metadata().unwrap().len(), 20_000 * PLACE as u64);
    }
}
