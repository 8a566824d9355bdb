//! Serves the disk at home: the p2pfs host.

use std::process::ExitCode;

use p2pfs::net::{daemon, log};

fn main() -> ExitCode {
    log::init();
    daemon::exit_with(p2pfs_hostd::cli::run())
}
