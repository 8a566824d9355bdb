//! Talking to the processes of mounts: `status`, `sync`, `unmount`.
//!
//! Each has a directory below `DIR/mounts`, named after its mount point, with its control socket.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use p2pfs::failure::{Code, Failure};
use p2pfs::net::admin;
use serde_json::{Value, json};

use crate::fuse::mount;
use crate::mounted::absent;

/// How long a process may take to end when its mount is gone.
const END: Duration = Duration::from_secs(10);
/// How long after a process was killed its guard may take until another process answers for it.
const SUCCESSOR: Duration = Duration::from_millis(500);
const END_POLL: Duration = Duration::from_millis(20);

/// In the status of a mount that is not there: it waits for its key, or for its host.
pub(crate) const WAITS: &str = "waits";

/// In the status of a mount whose first process was killed.
pub(crate) const AFTER_CRASH: &str = "after_crash";

/// The directory of the mount at `mountpoint`.
pub(crate) fn mount_dir(state: &Path, mountpoint: &Path) -> PathBuf {
    mounts(state).join(format!("{:016x}", hash(mountpoint)))
}

fn mounts(state: &Path) -> PathBuf {
    state.join("mounts")
}

/// FNV-1a: the same in every version of this program, and short enough for a socket's path.
fn hash(path: &Path) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    path.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// What the processes of all mounts say.
pub(crate) fn mounts_status(state: &Path) -> Vec<Value> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(mounts(state)) {
        for entry in entries.flatten() {
            // one that ends while it is asked is not there
            if let Ok(Some(mount)) = admin::request(&entry.path(), &json!({"command": "status"})) {
                found.push(mount);
            }
        }
    }
    found.sort_by_key(|mount| mount["mountpoint"].to_string());
    found
}

/// Whether a process looks after the mount at `mountpoint`, as it was resolved, or was killed and
/// is followed by its guard.
pub(crate) fn is_there(state: &Path, mountpoint: &Path) -> bool {
    let dir = mount_dir(state, mountpoint);
    !after_crash(&dir) && dir.exists()
}

/// Prints all mounts.
pub(crate) fn status(state: &Path, as_json: bool) -> Result<(), Failure> {
    let found = mounts_status(state);
    if as_json {
        println!("{:#}", json!({ "mounts": found }));
        return Ok(());
    }
    if found.is_empty() {
        println!("nothing is mounted");
    }
    for mount in &found {
        print_mount(mount);
    }
    Ok(())
}

fn print_mount(mount: &Value) {
    let text = |pointer: &str| {
        let value = mount.pointer(pointer).unwrap_or(&Value::Null);
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    };
    println!("{}", text("/mountpoint"));
    let host = text("/host/name");
    println!("  share      {} of {host} ({})", text("/share"), text("/host/mac"));
    println!("  state      {}", text("/state"));
    let rtt = mount.pointer("/path/rtt_ms").and_then(Value::as_f64);
    match rtt {
        Some(rtt) => println!("  path       {}, {rtt:.1} ms", text("/path/rung")),
        None => println!("  path       none"),
    }
    let cache = [text("/cache/bytes"), text("/cache/budget")];
    println!("  cache      {} of {} bytes", cache[0], cache[1]);
    println!("  pending    {} changes, {} bytes", text("/pending/entries"), text("/pending/bytes"));
    for note in absent::lines(&mount["absent"]) {
        println!("  note       {note}");
    }
}

/// Waits until everything that was written below a mount point is on the host's disk.
pub(crate) fn sync(state: &Path, mountpoint: &Path) -> Result<(), Failure> {
    let dir = living(state, mountpoint)?;
    wait_for_sync(&dir)
}

/// Delivers what was written, then unmounts.
pub(crate) fn unmount(state: &Path, mountpoint: &Path) -> Result<(), Failure> {
    let path = resolve(mountpoint)?;
    after_crash(&mount_dir(state, &path));
    let dir = match living(state, mountpoint) {
        Ok(dir) => dir,
        Err(failure) => {
            let detached = mount::detach_dead(&path).unwrap_or(Err(failure));
            if detached.is_ok() {
                // what a process that was killed left; the next mount would take it over
                let _ = fs::remove_dir_all(mount_dir(state, &path));
            }
            return detached;
        }
    };
    wait_for_sync(&dir)?;
    let asked = admin::request(&dir, &json!({"command": "unmount"}));
    // a process that ended before its answer arrived has done what it was told
    let gone = |limit: Duration| {
        let start = Instant::now();
        while start.elapsed() < limit {
            let running = matches!(admin::request(&dir, &Value::Null), Ok(Some(_)) | Err(_));
            if !running && mount::find(&path).is_none_or(|mount| mount.kind != mount::TYPE) {
                return true;
            }
            std::thread::sleep(END_POLL);
        }
        false
    };
    match asked {
        Ok(_) => {
            gone(END);
            Ok(())
        }
        Err(_) if gone(END_POLL) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// Checks that a directory can become a mount point, and waits until an earlier mount there is
/// gone: one that a killed process has left, one that waits for its key, one that still delivers
/// what was written. Gives its absolute path.
pub(crate) fn make_way(
    state: &Path,
    mountpoint: &Path,
    limit: Duration,
) -> Result<PathBuf, Failure> {
    if let Ok(path) = mount::resolve(mountpoint) {
        let dir = mount_dir(state, &path);
        let crashed = after_crash(&dir);
        wait_for_end(&dir, &path, crashed, limit)?;
        if crashed {
            // its guard was killed too
            mount::detach_dead(&path).transpose()?;
        }
    }
    mount::check_mountpoint(mountpoint)
}

/// Whether the process of a mount was killed, after what its guard does then.
fn after_crash(dir: &Path) -> bool {
    let start = Instant::now();
    let mut died = false;
    while dir.exists() {
        match admin::request(dir, &Value::Null) {
            Ok(Some(_)) => break,
            Ok(None) => died = true,
            // one that is dying hangs up
            Err(error) => tracing::debug!(%error, "no answer"),
        }
        if start.elapsed() > SUCCESSOR {
            break;
        }
        std::thread::sleep(END_POLL);
    }
    died
}

fn is_ours(mountpoint: &Path) -> bool {
    mount::find(mountpoint).is_some_and(|mount| mount.kind == mount::TYPE)
}

/// Waits until the process of an earlier mount at this place has delivered what was written.
fn wait_for_end(
    dir: &Path,
    mountpoint: &Path,
    crashed: bool,
    limit: Duration,
) -> Result<(), Failure> {
    let start = Instant::now();
    while let Ok(Some(status)) = admin::request(dir, &json!({"command": "status"})) {
        if status[WAITS] == true || status[AFTER_CRASH] == true || crashed {
            // it only waits for its key, or has come back by itself, which nobody has asked for as
            // he asks now: whoever mounts takes its place
            admin::request(dir, &json!({"command": "unmount"}))?;
        } else if is_ours(mountpoint) {
            // somebody uses it
            return Ok(());
        }
        if start.elapsed() > limit {
            return Err(Failure::new(
                Code::Mountpoint,
                format!("an earlier mount at {} is still delivering", mountpoint.display()),
                "p2pfs-mountd status shows what is pending; try again when it is done",
            ));
        }
        std::thread::sleep(END_POLL);
    }
    Ok(())
}

fn wait_for_sync(dir: &Path) -> Result<(), Failure> {
    let progress = ProgressBar::new_spinner();
    progress.set_message("waiting until everything is on the host's disk");
    progress.enable_steady_tick(Duration::from_millis(100));
    let mut request = json!({"command": "sync"});
    let result = loop {
        match admin::request(dir, &request) {
            Ok(Some(answer)) if answer["done"] == false => {
                request["upto"] = answer["upto"].clone();
            }
            Ok(_) => break Ok(()),
            Err(failure) => break Err(failure),
        }
    };
    progress.finish_and_clear();
    result
}

/// The directory of the process that mounts at `mountpoint`.
fn living(state: &Path, mountpoint: &Path) -> Result<PathBuf, Failure> {
    let dir = mount_dir(state, &resolve(mountpoint)?);
    match admin::request(&dir, &json!({"command": "status"})) {
        Ok(Some(_)) => Ok(dir),
        Ok(None) => Err(nothing_there(mountpoint)),
        Err(failure) => Err(failure),
    }
}

fn resolve(mountpoint: &Path) -> Result<PathBuf, Failure> {
    mount::resolve(mountpoint).map_err(|_| nothing_there(mountpoint))
}

fn nothing_there(mountpoint: &Path) -> Failure {
    Failure::new(
        Code::Mountpoint,
        format!("nothing is mounted at {} with this state directory", mountpoint.display()),
        "p2pfs-mountd status lists the mounts; give the --state that they were made with",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_has_the_same_directory_in_every_version() {
        let dir = mount_dir(Path::new("/state"), Path::new("/mnt/home"));
        assert_eq!(dir, Path::new("/state/mounts/7809156d81d58d63"));
    }

    #[test]
    fn a_mount_that_is_not_there_cannot_be_synced_or_unmounted() {
        let state = tempfile::tempdir().unwrap();
        for result in
            [sync(state.path(), Path::new("/mnt")), unmount(state.path(), Path::new("/mnt"))]
        {
            assert_eq!(result.unwrap_err().code, Code::Mountpoint);
        }
    }
}
