//! Introduces clients to hosts: the p2pfs rendezvous server.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2pfs::net::daemon::exit_with(p2pfs_server::run(std::env::args_os()))
}
