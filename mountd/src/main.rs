//! Mounts the disk at home: the p2pfs client. Under the name `mount.p2pfs` it is mount(8)'s helper.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A call makes and drops dozens of small things, which the system's allocator is slow at.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    p2pfs_mountd::main()
}
