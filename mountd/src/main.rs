//! Mounts the disk at home: the p2pfs client. Under the name `mount.p2pfs` it is mount(8)'s helper.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2pfs_mountd::main()
}
