//! `doctor`: what works from here, what does not, and what to do about it.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::net::doctor::{self, Check, Report, machine};
use p2pfs::usb::{open_key, read_public};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

use crate::{control, helper, known_hosts};

/// What to look at.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) key: Option<PathBuf>,
    pub(crate) servers: Vec<ServerAddress>,
    pub(crate) json: bool,
}

/// Prints what was found; the program ends with 1 if something that is needed is missing.
pub(crate) fn run(state: &Path, request: &Request) -> Result<(), Failure> {
    let mut checks = vec![fuse(), mounting(), mount_helper()];
    checks.extend([machine::state(state), machine::buffers(), machine::usb()]);
    let mut servers: BTreeSet<String> = request.servers.iter().map(ToString::to_string).collect();
    if let Some(key) = &request.key {
        checks.push(key_check(key));
        let public = read_public(key).map(|public| public.servers).unwrap_or_default();
        servers.extend(public.iter().map(ToString::to_string));
    }
    if servers.is_empty() {
        servers.extend(known_hosts::servers(state));
    }
    let servers: Vec<_> = servers.iter().filter_map(|server| server.parse().ok()).collect();
    let network = doctor::examine(&servers, "p2pfs-mountd")?;
    let mounts = control::mounts_status(state);
    Report::new(checks, network, mounts.into()).finish(request.json);
    Ok(())
}

fn fuse() -> Check {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::works("fuse", "FUSE: /dev/fuse can be opened"),
        Err(error) => Check::missing(
            "fuse",
            format!("FUSE: /dev/fuse cannot be opened: {error}"),
            match error.kind() {
                io::ErrorKind::PermissionDenied => "as root, run: chmod 666 /dev/fuse",
                _ => {
                    "as root, run: modprobe fuse (in a container: --device /dev/fuse --cap-add \
                     SYS_ADMIN)"
                }
            },
        ),
    }
}

/// Whether this user may mount.
fn mounting() -> Check {
    if geteuid().is_root() {
        let may =
            capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        return match may {
            true => Check::works("mounting", "mounting: as root"),
            false => Check::missing(
                "mounting",
                "mounting: root may not mount here",
                "in a container: --cap-add SYS_ADMIN",
            ),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.extend(["/usr/bin", "/bin"].map(PathBuf::from));
    match dirs.iter().map(|dir| dir.join("fusermount3")).find(|program| program.exists()) {
        Some(program) => Check::works("mounting", format!("mounting: by {}", program.display())),
        None => Check::missing(
            "mounting",
            "mounting: fusermount3 is not there, which ordinary users need",
            "install it (Debian: apt-get install fuse3), or mount as root",
        ),
    }
}

fn mount_helper() -> Check {
    let places = ["/sbin", "/usr/sbin"].map(|dir| Path::new(dir).join(helper::NAME));
    match places.iter().find(|place| fs::metadata(place).is_ok()) {
        Some(place) => Check::works(
            "mount-helper",
            format!("mount -t p2pfs and /etc/fstab: by {}", place.display()),
        ),
        None => Check::note(
            "mount-helper",
            "mount -t p2pfs and /etc/fstab do not work: mount.p2pfs is not installed",
            "as root, run: p2pfs-mountd install",
        ),
    }
}

fn key_check(key: &Path) -> Check {
    match open_key(key, None) {
        Ok(opened) => Check::works("key", format!("key: of host {}", opened.contents.host)),
        // It is in order as far as can be seen without it
        Err(failure) if failure.code == Code::Passphrase => {
            Check::works("key", "key: sealed to a passphrase".to_owned())
        }
        Err(failure) => Check::missing("key", format!("key: {}", failure.what), failure.hint),
    }
}
