//! Where the programs are, and what the machine has.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of one of the programs, of the profile that this test was built with.
///
/// The first use builds them: `cargo test` alone does not, and a test of yesterday's programs is
/// worse than none. Together with the tests, so that dependencies have the features that they have
/// there and are not built a second time.
pub(crate) fn path(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(build).join(name)
}

/// The directory that holds the programs.
fn build() -> PathBuf {
    // TARGET/PROFILE/deps/integration-HASH
    let test = env::current_exe().unwrap();
    let profile_dir = test.ancestors().nth(2).unwrap();
    let target = profile_dir.parent().unwrap();
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--workspace", "--bins", "--tests"])
        .arg("--target-dir")
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // what Cargo tells a test would look like another build to build scripts
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let told = ["CARGO_BIN_", "CARGO_CRATE_", "CARGO_MANIFEST_", "CARGO_PKG_"];
        if told.iter().any(|start| name.starts_with(start)) || name == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(name);
        }
    }
    if profile_dir.ends_with("release") {
        command.arg("--release");
    }
    assert!(command.status().unwrap().success(), "the programs do not build");
    profile_dir.to_owned()
}

/// A program that `tests/setup.sh` installs below the target directory.
pub(crate) fn installed(name: &str) -> Option<PathBuf> {
    // TARGET/PROFILE/deps/integration-HASH
    let test = env::current_exe().ok()?;
    let program = test.ancestors().nth(3)?.join("tools/bin").join(name);
    program.exists().then_some(program)
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says which of these tools of the machine is missing.
pub(crate) fn missing(tools: &[&str]) -> Option<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    dirs.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
    let there = |tool: &&&str| dirs.iter().any(|dir| Path::new(dir).join(tool).exists());
    let tool = tools.iter().find(|tool| !there(tool))?;
    Some(format!("{tool} is not installed; tests/run installs it"))
}
