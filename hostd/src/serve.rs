//! The daemon.
use crate::cli::ServeArgs;
use p2pfs::failure::Failure;
use std::path::Path;
pub fn run(_dir: &Path, _args: ServeArgs) -> Result<(), Failure> {
    Ok(())
}
