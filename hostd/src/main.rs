//! Serves the disk at home: the p2pfs host.

use std::process::ExitCode;

use mimalloc::MiMalloc;
use p2pfs::net::{daemon, log};

/// A call makes and drops dozens of small things, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    log::init();
    daemon::exit_with(p2pfs_hostd::cli::run())
}
