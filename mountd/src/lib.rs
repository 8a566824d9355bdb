//! Mounts the disk at home: the p2pfs client.
//!
//! ```text
//!  cli, helper (mount(8)) -> daemonise -> mounted: one process for each mount
//!                                            |-- fuse    converts the kernel's requests
//!                                            |-- fs      decides; cache remembers
//!                                            `-- p2pfs::net::session (the host)
//! ```

mod auto;
pub mod cache;
pub mod caller;
mod cli;
mod control;
mod daemonise;
mod doctor;
pub mod envelope;
pub mod fs;
pub mod fuse;
mod gate;
mod guard;
mod helper;
mod identity;
mod import;
mod install;
pub mod journal;
mod key;
pub mod known_hosts;
mod lock;
mod locked;
mod mounted;
pub mod options;
pub mod sealed;
mod secrets;
pub mod spec;
mod store;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use p2pfs::net::daemon;

/// The program: its name decides whether it is `mount.p2pfs`, or the guard of a mount.
pub fn main() -> ExitCode {
    daemon::leave_no_core();
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name();
    if name == Some(OsStr::new(helper::NAME)) {
        helper::main()
    } else if name == Some(OsStr::new(guard::NAME)) {
        guard::process::main()
    } else {
        // the name of a thread is the process's in the tables of all; when this program's file is
        // gone, it is started by another
        let _ = rustix::thread::set_name(c"p2pfs-mountd");
        cli::main()
    }
}
