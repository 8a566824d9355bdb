//! What is done once more to a file whose mode forbids it by now, or did from the beginning: who
//! makes a file may write it whatever its mode says, and then closes it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io;
use rustix::process::geteuid;

use super::{acting, beneath, lock};

/// Opens what a descriptor holds once more, as [`beneath::reopen`] does.
///
/// # Errors
///
/// As for [`despite_mode`].
pub(super) fn reopen(fd: BorrowedFd<'_>, flags: OFlags) -> io::Result<OwnedFd> {
    despite_mode(fd, || beneath::reopen(fd, flags))
}

/// Does `work` on the file that `fd` holds, whatever its mode says, for its owner: who could change
/// the mode gains nothing by that. `work` can be tried more than once.
///
/// # Errors
///
/// What the system says; `EACCES` for everybody else.
pub(super) fn despite_mode<T>(fd: impl AsFd, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let fd = fd.as_fd();
    match work() {
        Err(io::Errno::ACCESS) if rustix::fs::fstat(fd)?.st_uid == geteuid().as_raw() => {}
        done => return done,
    }
    match acting::as_itself(&work) {
        Err(io::Errno::ACCESS) => with_mode(fd, &work),
        done => done,
    }
}

/// As an owner without privileges does it: the mode is another one meanwhile.
fn with_mode<T>(fd: BorrowedFd<'_>, work: impl Fn() -> io::Result<T>) -> io::Result<T> {
    /// Nobody takes the other mode for the file's own.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

    let _one = lock(&ONE_AT_A_TIME);
    let mode = Mode::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
    let path = beneath::proc_path(fd);
    let change = |mode| rustix::fs::chmodat(CWD, &*path, mode, AtFlags::empty());
    change(mode | Mode::RUSR | Mode::WUSR)?;
    let done = work();
    if let Err(error) = change(mode) {
        tracing::warn!(%error, "a file's owner may write it now: its mode could not be set again");
    }
    done
}
