//! Puts `mount.p2pfs` beside `p2pfs-mountd`: mount(8) looks for that name, which Cargo cannot give
//! to a binary (a crate's name holds no dot). It is a link; the program looks at its own name.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let out = env::var_os("OUT_DIR").ok_or_else(|| io::Error::other("OUT_DIR is not set"))?;
    let profile_dir = Path::new(&out)
        .ancestors()
        .nth(3)
        .ok_or_else(|| io::Error::other("OUT_DIR is not below a profile's directory"))?;
    let link = profile_dir.join("mount.p2pfs");
    println!("cargo::rerun-if-changed=build.rs");
    if fs::symlink_metadata(&link).is_ok() {
        fs::remove_file(&link)?;
    }
    std::os::unix::fs::symlink("p2pfs-mountd", &link)
}
