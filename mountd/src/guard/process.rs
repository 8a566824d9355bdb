//! The guard's own side: it waits, and acts when mountd has died.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::Duration;

use p2pfs::net::log;

use super::{AFTER_CRASH, END_IS_WANTED, GOODBYE, NAME, Post, book::NodeBook};
use crate::daemonise;
use crate::fuse::mount::Mounted;
use crate::fuse::notify;
use crate::locked;

/// A post, bytes: command lines may be long.
const POST_BYTES_MAX: u64 = 4 << 20;
/// How long the kernel may take to drop what it keeps: before its connection is aborted, which ends
/// requests that hold pages, and after. It goes on only as long as this program does.
const WIPE: Duration = Duration::from_millis(100);
const REST: Duration = Duration::from_secs(30);

pub(crate) fn main() -> ExitCode {
    log::init();
    // the name of a thread is the process's in the tables of all
    let _ = rustix::thread::set_name(&std::ffi::CString::new(NAME).unwrap_or_default());
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "nobody looks after the mount when mountd is killed");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut pipe = io::stdin().lock();
    let mut line = Vec::new();
    Read::take(&mut pipe, POST_BYTES_MAX).read_until(b'\n', &mut line)?;
    let post: Post = serde_json::from_slice(&line)?;
    let kernel = io::stdout().as_fd().try_clone_to_owned()?;
    let book = File::open(format!("/proc/self/fd/{}", post.book))?;
    let mut end_is_wanted = false;
    for said in pipe.bytes() {
        match said {
            Ok(GOODBYE) => return Ok(()),
            Ok(said) => end_is_wanted |= said == END_IS_WANTED,
            Err(_) => break,
        }
    }
    post.act(kernel, &book, end_is_wanted)
}

impl Post {
    /// mountd has died: nothing of the share is left, and a new one mounts in the dead one's place,
    /// or takes it away while it waits for the key. Returns only if that fails, or if the end was
    /// wanted: then the dead one is taken away.
    fn act(self, kernel: OwnedFd, book: &File, end_is_wanted: bool) -> io::Result<()> {
        tracing::warn!(end_is_wanted, "mountd has ended without a word");
        let mounted = Mounted::adopt(PathBuf::from(self.mountpoint), self.mount);
        let nodes = NodeBook::read(book)?;
        if mounted.can_abort() {
            let (done, wiped) = mpsc::channel();
            std::thread::Builder::new().name("wipe".to_owned()).spawn(move || {
                notify::drop_nodes(&kernel, &nodes);
                // nobody waits any more if it took too long
                let _ = done.send(());
            })?;
            let dropped = wiped.recv_timeout(WIPE);
            if let Err(error) = mounted.abort() {
                tracing::debug!(%error, "the kernel's connection is gone");
            }
            if dropped.is_err() && wiped.recv_timeout(REST).is_err() {
                tracing::warn!("the kernel takes long to drop its pages");
            }
        } else {
            tracing::warn!("only what the kernel knows by name is dropped: mount fusectl for more");
            drop(kernel);
        }
        if end_is_wanted {
            return mounted.detach();
        }
        let nowhere = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        // the last way to the kernel's connection
        rustix::stdio::dup2_stdin(&nowhere)?;
        rustix::stdio::dup2_stdout(&nowhere)?;
        let mut again = Command::new(daemonise::program()?);
        again.arg0(locked::PROGRAM).args(self.arguments);
        let error = again.arg(AFTER_CRASH).arg(mounted.id().to_string()).exec();
        mounted.detach()?;
        Err(error)
    }
}
