//! A small process beside each mount, which outlives it (D3, N1).
//!
//! When mountd ends without a word, killed or crashed, the kernel would go on serving what it keeps
//! of the share to whoever has a file open, key or no key, and the mount would answer nothing but
//! errors. The guard holds the kernel's connection too, and a list of what the kernel may keep: it
//! drops all that, and becomes a mountd that waits for the key, as after a key was pulled. If the
//! key is there, the mount is back at once, in the place of the dead one; if not, the dead one is
//! taken away.
//!
//! ```text
//!  mountd --standard input--> guard    the post, then perhaps that its end is wanted, then a
//!                                      goodbye; the input's end without one: mountd died
//!         --standard output->          the kernel's connection
//!         --memory----------->         `NodeBook`, the nodes that the kernel knows
//! ```

pub(crate) mod book;
pub(crate) mod process;

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};

use self::book::NodeBook;
use crate::daemonise;
use crate::fuse::mount::{MountId, Mounted};
use crate::mounted::MountRequest;

/// The name that it goes by: whoever kills all that is called mountd does not kill it.
pub(crate) const NAME: &str = "p2pfs-guard";
/// Tells what begins anew why, and which mount is dead.
const AFTER_CRASH: &str = "--after-crash";
/// What mountd says when its end is wanted: if it is killed now, nothing is mounted again.
const END_IS_WANTED: u8 = b'-';
/// What mountd says when it ends in order.
const GOODBYE: u8 = b'.';
/// How long the guard may take to end when it is dismissed, milliseconds.
const END_MS: u64 = 50;

/// What it has to look after.
#[derive(Debug, Deserialize, Serialize)]
struct Post {
    mountpoint: OsString,
    mount: MountId,
    /// The descriptor of the book.
    book: i32,
    /// With which this program waits for the key, and mounts again.
    arguments: Vec<OsString>,
}

/// The way to the guard of a mount; dropping it dismisses the guard.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Child,
    pipe: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guard of a mount whose requests come from `kernel`.
    pub(crate) fn start(
        request: &MountRequest,
        mounted: &Mounted,
        kernel: BorrowedFd<'_>,
        book: &NodeBook,
    ) -> io::Result<Self> {
        let post = Post {
            mountpoint: mounted.mountpoint().into(),
            mount: mounted.id().clone(),
            book: book.as_fd().as_raw_fd(),
            arguments: request.again(),
        };
        // inherited by this child only
        rustix::io::fcntl_setfd(book, FdFlags::empty())?;
        let child = Command::new(daemonise::program()?)
            .arg0(NAME)
            // for people who look at processes
            .arg(mounted.mountpoint())
            .current_dir("/")
            // Ctrl-C is for mountd, which then says goodbye
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(kernel.try_clone_to_owned()?)
            .spawn();
        rustix::io::fcntl_setfd(book, FdFlags::CLOEXEC)?;
        let mut child = child?;
        let mut pipe = child.stdin.take();
        let guard = |pipe| Self { child, pipe };
        if let Some(pipe) = &mut pipe {
            let mut line = serde_json::to_vec(&post)?;
            line.push(b'\n');
            pipe.write_all(&line)?;
        }
        Ok(guard(pipe))
    }
}

impl Guard {
    /// What it is to do if mountd is killed from now on: nothing is mounted again.
    pub(crate) fn end_is_wanted(&mut self) {
        self.say(END_IS_WANTED);
    }

    fn say(&mut self, what: u8) {
        if let Some(pipe) = &mut self.pipe {
            // it may have been killed
            let _ = pipe.write_all(&[what]);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.say(GOODBYE);
        self.pipe = None;
        for _ in 0..END_MS {
            // this process may go on as another program, which does not expect a child
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
