//! What every daemon does: its state directory, its ready line, its end, its exit code.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use crate::failure::{Code, Failure};
use crate::identity::SecretKey;

/// The file of a daemon's own secret key in its state directory.
const SECRET_FILE: &str = "secret.key";

/// The state directory: `given`, or `/var/lib/p2pfs/PROGRAM` for root, or
/// `$XDG_STATE_HOME/p2pfs/PROGRAM` for anybody else. It is created with mode 0700.
///
/// # Errors
///
/// [`Code::Internal`] if it cannot be created or no home is known.
pub fn state_dir(given: Option<PathBuf>, program: &str) -> Result<PathBuf, Failure> {
    let dir = match given {
        Some(dir) => dir,
        None => default_state_dir(program)?,
    };
    DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("cannot create the state directory {}: {error}", dir.display()),
            "choose a directory that you may write to with --state DIR",
        )
    })?;
    Ok(dir)
}

fn default_state_dir(program: &str) -> Result<PathBuf, Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok(Path::new("/var/lib/p2pfs").join(program));
    }
    let absolute = |variable: &str| {
        std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|base| base.join("p2pfs").join(program))
        .ok_or_else(|| {
            Failure::new(
                Code::Internal,
                "no state directory: neither XDG_STATE_HOME nor HOME is set",
                "choose one with --state DIR",
            )
        })
}

/// Says on stdout that the daemon is ready, and tells systemd where it asked to be told.
pub fn ready(line: &str) {
    let mut stdout = io::stdout().lock();
    // nobody may be listening any more; the daemon works all the same
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = notify(&socket, b"READY=1")
    {
        tracing::warn!(%error, "cannot tell the service manager that we are ready");
    }
}

/// Says on stderr what people should know, though nothing is wrong.
pub fn note(lines: &[String]) {
    let mut stderr = io::stderr().lock();
    // as for [`ready`]
    let _ = lines.iter().try_for_each(|line| writeln!(stderr, "note: {line}"));
}

fn notify(socket: &OsStr, message: &[u8]) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(message, &address)?;
    Ok(())
}

/// Resolves on SIGTERM or SIGINT. The signals are caught from the call on, not from the first poll:
/// call it before [`ready`], within a tokio runtime.
pub fn terminated() -> impl Future<Output = ()> + Send {
    let signals = signal(SignalKind::terminate())
        .and_then(|terminate| Ok((terminate, signal(SignalKind::interrupt())?)));
    async {
        match signals {
            Ok((mut terminate, mut interrupt)) => {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            Err(error) => {
                // the signals keep their default action, which ends the process
                tracing::warn!(%error, "cannot wait for signals");
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Allows this process as many open files and sockets as it may have: the usual soft limit of 1024
/// is there for programs that use `select(2)`.
pub fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// When this process crashes, what is in its memory (keys, what was read) is not written to a disk.
/// Other processes of the same user cannot look at it either; root can.
pub fn leave_no_core() {
    let no_core = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = no_core.and(hidden) {
        tracing::warn!(%error, "a crash may leave a core dump");
    }
}

/// Writes a file of mode 0600 so that a crash leaves the old content or the new, never a part.
///
/// # Errors
///
/// Those of creating, writing and renaming; the old file is then untouched.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let mut temporary = name.to_os_string();
    temporary.push(format!(".{:016x}.new", u64::from_le_bytes(random())));
    let temporary = dir.join(temporary);
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if let Err(error) = written {
        // the cause is worth more than whether the remains could be removed
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(dir)?.sync_all()
}

/// Random bytes from the kernel.
///
/// # Panics
///
/// If the kernel has none, which Linux does not do once it has booted: nothing here is safe then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("getrandom(2) works on every kernel that we run on");
    bytes
}

/// The daemon's own key, `DIR/secret.key`; made at the first start.
///
/// # Errors
///
/// [`Code::KeyCorrupt`] if the file is no key, [`Code::Internal`] if it cannot be read or written.
/// It is never replaced: others have pinned this key.
pub fn load_or_create_secret(dir: &Path) -> Result<SecretKey, Failure> {
    let path = dir.join(SECRET_FILE);
    let unusable = |verb: &str, error: io::Error| {
        Failure::new(
            Code::Internal,
            format!("cannot {verb} {}: {error}", path.display()),
            "check the owner and mode of the state directory",
        )
    };
    match fs::read_to_string(&path) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            parse_seed(&text).map(SecretKey::from_seed).ok_or_else(|| {
                Failure::new(
                    Code::KeyCorrupt,
                    format!("{} is not a secret key", path.display()),
                    "restore it from a backup; if you remove it, a new key is made, and everybody \
                     who knows the old one has to be told",
                )
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let seed = Zeroizing::new(random::<32>());
            let text = Zeroizing::new(format!("{}\n", STANDARD_NO_PAD.encode(*seed)));
            write_private(&path, text.as_bytes()).map_err(|error| unusable("write", error))?;
            Ok(SecretKey::from_seed(*seed))
        }
        Err(error) => Err(unusable("read", error)),
    }
}

/// Whether there is something where [`load_or_create_secret`] looks.
pub fn has_secret(dir: &Path) -> bool {
    dir.join(SECRET_FILE).symlink_metadata().is_ok()
}

fn parse_seed(text: &str) -> Option<[u8; 32]> {
    let bytes = Zeroizing::new(STANDARD_NO_PAD.decode(text.trim()).ok()?);
    bytes.as_slice().try_into().ok()
}

/// A command line that was refused, from the text in which its parser says so.
pub fn usage(rendered: &str, program: &str) -> Failure {
    let what: Vec<_> = rendered
        .lines()
        .take_while(|line| !line.trim().is_empty() && !line.starts_with("Usage:"))
        .map(str::trim)
        .collect();
    let what = what.join(" ");
    // without a command the parser shows the whole help, and no error
    let what = what.strip_prefix("error: ").unwrap_or("a command is missing");
    Failure::new(Code::Usage, what, format!("`{program} --help` shows what it takes"))
}

/// Turns a program's result into its exit code, and prints what went wrong on stderr.
pub fn exit_with(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    let failure = match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => Failure::new(
            Code::Internal,
            format!("{error:#}"),
            "run it again with P2PFS_LOG=debug to see more",
        ),
    };
    eprintln!("{}", failure.report());
    ExitCode::from(failure.code.exit_code())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let made = load_or_create_secret(dir.path()).unwrap();
        let loaded = load_or_create_secret(dir.path()).unwrap();
        assert_eq!(made.peer_id(), loaded.peer_id());
        let mode = fs::metadata(dir.path().join(SECRET_FILE)).unwrap().mode_bits();
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn a_damaged_secret_is_reported_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SECRET_FILE);
        fs::write(&path, "not a key").unwrap();
        assert_eq!(load_or_create_secret(dir.path()).unwrap_err().code, Code::KeyCorrupt);
        assert_eq!(fs::read_to_string(&path).unwrap(), "not a key");
    }

    #[test]
    fn writing_replaces_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    trait ModeBits {
        fn mode_bits(&self) -> u32;
    }

    impl ModeBits for fs::Metadata {
        fn mode_bits(&self) -> u32 {
            self.permissions().mode() & 0o777
        }
    }
}
