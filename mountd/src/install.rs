//! `install`: puts `mount.p2pfs` where mount(8) looks.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use p2pfs::failure::{Code, Failure};

use crate::helper;

/// Copies this program to `PREFIX/sbin/mount.p2pfs`; the default is `/sbin`.
pub(crate) fn install(prefix: Option<&Path>) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|error| failed("this program", &error))?;
    let dir = prefix.map_or_else(|| Path::new("/sbin").to_owned(), |prefix| prefix.join("sbin"));
    let target = dir.join(helper::NAME);
    let copied = fs::create_dir_all(&dir).and_then(|()| copy(&program, &target));
    copied.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Failure::new(
            Code::Internal,
            format!("cannot write {}: {error}", target.display()),
            format!("run: sudo {} install", program.display()),
        ),
        _ => failed(&target.display().to_string(), &error),
    })?;
    println!("installed {}", target.display());
    println!("now this works: mount -t p2pfs KEY:SHARE MOUNTPOINT (also in /etc/fstab)");
    Ok(())
}

/// A copy outlives the place where it was built; renaming replaces one that is running.
fn copy(program: &Path, target: &Path) -> io::Result<()> {
    let new = target.with_extension(format!("new.{}", std::process::id()));
    let copied = fs::copy(program, &new)
        .and_then(|_| fs::set_permissions(&new, PermissionsExt::from_mode(0o755)))
        .and_then(|()| fs::rename(&new, target));
    if copied.is_err() {
        // the cause is worth more than whether the remains could be removed
        let _ = fs::remove_file(&new);
    }
    copied
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(
        Code::Internal,
        format!("cannot install {what}: {error}"),
        "see that the directory is there and has room, or choose another with --prefix DIR",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_lands_below_the_prefix_and_can_be_replaced() {
        let prefix = tempfile::tempdir().unwrap();
        install(Some(prefix.path())).unwrap();
        install(Some(prefix.path())).unwrap();
        let dir = prefix.path().join("sbin");
        let mode = fs::metadata(dir.join("mount.p2pfs")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
    }
}
