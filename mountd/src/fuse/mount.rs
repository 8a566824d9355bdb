//! Mounting and unmounting by ourselves: as root with mount(2), otherwise through `fusermount3`.

mod beneath;
mod connections;

use std::ffi::{CString, OsStr, OsString};
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::ParseIntError;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;

use p2pfs::failure::{Code, Failure};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

/// The file system's type, as `findmnt` shows it.
pub const TYPE: &str = "fuse.p2pfs";
/// What of it is ours.
const SUBTYPE: &str = "p2pfs";

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";
/// The kernel's read-ahead, KiB: one request of the largest size.
const READ_AHEAD_KIB: &str = "1024";

/// How to mount.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct MountSettings {
    /// Nothing can be changed.
    pub read_only: bool,
    /// Programs cannot be started from it.
    pub no_exec: bool,
    /// Other users may use it; the kernel then checks permissions.
    pub allow_other: bool,
}

/// A mount that we made.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    id: MountId,
    as_root: bool,
}

/// Tells a mount from another one at the same place.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct MountId {
    /// `MAJOR:MINOR` of its device, which is given anew once the mount is gone.
    device: String,
    /// The number that the kernel gives to no other mount, since Linux 6.8.
    unique: Option<u64>,
}

/// `DEVICE` or `DEVICE,UNIQUE`.
impl fmt::Display for MountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        self.unique.map_or(Ok(()), |unique| write!(f, ",{unique}"))
    }
}

impl FromStr for MountId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (device, unique) = match text.split_once(',') {
            Some((device, unique)) => (device, Some(unique.parse()?)),
            None => (text, None),
        };
        Ok(Self { device: device.to_owned(), unique })
    }
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MountInfo {
    /// `MAJOR:MINOR`
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// What is mounted.
    pub source: OsString,
}

/// Checks that a directory can become a mount point; gives its absolute path.
pub fn check_mountpoint(mountpoint: &Path) -> Result<PathBuf, Failure> {
    let fail = |what: &str, hint: String| {
        let what = format!("{} {what}", mountpoint.display());
        Err(Failure::new(Code::Mountpoint, what, hint))
    };
    let path = match resolve(mountpoint) {
        Ok(path) => path,
        Err(error) => return fail(&format!("cannot be used: {error}"), make_it(mountpoint)),
    };
    if find(&path).is_some_and(|mount| mount.kind == TYPE) {
        let hint = format!("run: p2pfs-mountd unmount {}", path.display());
        return fail("is a p2pfs mount already", hint);
    }
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => fail("is not a directory", "name a directory".to_owned()),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => fail(
            "is a mount that has lost its process",
            format!("run: umount -l {}", path.display()),
        ),
        Err(error) => fail(&format!("cannot be used: {error}"), make_it(mountpoint)),
    }
}

fn make_it(mountpoint: &Path) -> String {
    format!("make the directory first: mkdir {}", mountpoint.display())
}

/// The absolute path of a mount point, without touching what is mounted there.
pub fn resolve(mountpoint: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(mountpoint)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => {
            let path = fs::canonicalize(parent)?.join(name);
            // a link to the mount point is another name for it
            match fs::read_link(&path) {
                Ok(_) => fs::canonicalize(&path),
                Err(_) => Ok(path),
            }
        }
        _ => fs::canonicalize(absolute),
    }
}

/// What is mounted last at exactly this path.
pub fn find(path: &Path) -> Option<MountInfo> {
    all().into_iter().rfind(|mount| mount.mountpoint == path)
}

fn all() -> Vec<MountInfo> {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let behind = fields.iter().position(|field| *field == b"-")?;
    Some(MountInfo {
        device: String::from_utf8(fields.get(2)?.to_vec()).ok()?,
        mountpoint: PathBuf::from(unescape(fields.get(4)?)),
        kind: String::from_utf8(fields.get(behind + 1)?.to_vec()).ok()?,
        source: unescape(fields.get(behind + 2)?),
    })
}

/// Undoes `\040` and the like.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).filter(|_| first == b'\\');
        let octal = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    OsString::from_vec(bytes)
}

/// Takes away a mount of ours whose process is gone; `None` if there is none at this path.
pub fn detach_dead(mountpoint: &Path) -> Option<Result<(), Failure>> {
    let mount = find(mountpoint).filter(|mount| mount.kind == TYPE)?;
    let dead = fs::metadata(mountpoint).is_err_and(|error| {
        matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
    });
    if !dead {
        return None;
    }
    let mounted = Mounted::adopt(mountpoint.to_owned(), MountId::of(mountpoint, mount.device));
    Some(mounted.detach().map_err(|error| {
        let what = format!("cannot unmount {}: {error}", mountpoint.display());
        Failure::new(Code::Fuse, what, format!("run: umount -l {}", mountpoint.display()))
    }))
}

/// Mounts `source` on `mountpoint` (as [`check_mountpoint`] gave it); the descriptor is where the
/// kernel's requests come from.
pub fn mount(
    source: &OsStr,
    mountpoint: &Path,
    settings: &MountSettings,
) -> Result<(OwnedFd, Mounted), Failure> {
    let as_root = rustix::process::geteuid().is_root();
    let device = if as_root {
        mount_as_root(source, mountpoint, settings)?
    } else {
        mount_as_user(source, mountpoint, settings)?
    };
    made(mountpoint, device)
}

/// As [`mount`], in the place of a mount whose process has died, if that is still there. As root on
/// Linux 6.8 the directory beneath is bare at no time, elsewhere for as long as mounting takes.
pub(crate) fn mount_in_place_of(
    dead: &Mounted,
    source: &OsStr,
    settings: &MountSettings,
) -> Result<(OwnedFd, Mounted), Failure> {
    if dead.is_there() {
        if dead.as_root {
            match beneath::replace(dead, source, settings) {
                Ok(device) => return made(&dead.mountpoint, device),
                Err(error) => tracing::info!(%error, "the dead mount is taken away first"),
            }
        }
        if let Err(error) = dead.detach() {
            tracing::warn!(%error, "the dead mount stays");
        }
    }
    mount(source, &dead.mountpoint, settings)
}

fn made(mountpoint: &Path, device: OwnedFd) -> Result<(OwnedFd, Mounted), Failure> {
    let mounted = find(mountpoint).filter(|mount| mount.kind == TYPE);
    let Some(info) = mounted else {
        let what = format!("{} was not mounted after all", mountpoint.display());
        let hint = "look at the kernel's log: dmesg | tail";
        return Err(Failure::new(Code::Fuse, what, hint));
    };
    let mounted = Mounted::adopt(mountpoint.to_owned(), MountId::of(mountpoint, info.device));
    mounted.raise_read_ahead();
    Ok((device, mounted))
}

fn mount_as_root(
    source: &OsStr,
    mountpoint: &Path,
    settings: &MountSettings,
) -> Result<OwnedFd, Failure> {
    let opened = OpenOptions::new().read(true).write(true).open(DEVICE);
    let device = opened.map_err(|error| {
        let hint = "load the kernel's module: modprobe fuse (in a container: pass /dev/fuse)";
        Failure::new(Code::Fuse, format!("{DEVICE}: {error}"), hint)
    })?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    flags.set(MountFlags::RDONLY, settings.read_only);
    flags.set(MountFlags::NOEXEC, settings.no_exec);
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if settings.allow_other {
        data.push_str(",allow_other,default_permissions");
    }
    let refused = |error: io::Error| {
        let hint = "mounting needs CAP_SYS_ADMIN: run as root of the machine, not of a container";
        let what = format!("mounting on {}: {error}", mountpoint.display());
        Failure::new(Code::Fuse, what, hint)
    };
    let data = CString::new(data).map_err(|error| refused(error.into()))?;
    rustix::mount::mount(source, mountpoint, TYPE, flags, data.as_c_str())
        .map_err(|error| refused(error.into()))?;
    Ok(device.into())
}

fn mount_as_user(
    source: &OsStr,
    mountpoint: &Path,
    settings: &MountSettings,
) -> Result<OwnedFd, Failure> {
    let mut options = OsString::from(format!("subtype={SUBTYPE},nosuid,nodev"));
    for (set, option) in [
        (settings.read_only, ",ro"),
        (settings.no_exec, ",noexec"),
        (settings.allow_other, ",allow_other,default_permissions"),
    ] {
        if set {
            options.push(option);
        }
    }
    options.push(",fsname=");
    options.push(escape_option(source));
    let refused = |error: io::Error| {
        let what = format!("mounting on {}: {error}", mountpoint.display());
        Failure::new(Code::Fuse, what, "as root it works without fusermount3")
    };
    // its end is inherited: no close-on-exec
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::empty(),
        None,
    )
    .map_err(|error| refused(error.into()))?;
    rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| refused(error.into()))?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(&options)
        .arg("--")
        .arg(mountpoint)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_fusermount)?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(refused)?;
    if let Ok(Some(device)) = received
        && output.status.success()
    {
        return Ok(device);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("fusermount3: ");
    let hint = if said.contains("user_allow_other") {
        "add the line user_allow_other to /etc/fuse.conf, or mount without allow_other"
    } else if said.contains(DEVICE) {
        "let users open it: sudo chmod 666 /dev/fuse; or mount as root"
    } else {
        "the directory must be yours; as root it works without fusermount3"
    };
    let what = format!("mounting on {}: {said}", mountpoint.display());
    Err(Failure::new(Code::Fuse, what, hint))
}

fn no_fusermount(error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::NotFound {
        let hint = "run: sudo apt-get install -y fuse3 (or mount as root, which does not need it)";
        Failure::new(Code::Fuse, format!("{FUSERMOUNT} is not installed"), hint)
    } else {
        let hint = "see that fusermount3 can be started";
        Failure::new(Code::Fuse, format!("{FUSERMOUNT}: {error}"), hint)
    }
}

/// fusermount3 splits at commas that have no backslash before them.
fn escape_option(value: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(value.len());
    for byte in value.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

fn receive_descriptor(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

impl Mounted {
    /// A mount that another process of this program has made.
    pub(crate) fn adopt(mountpoint: PathBuf, id: MountId) -> Self {
        Self { mountpoint, id, as_root: rustix::process::geteuid().is_root() }
    }

    /// What tells it from others.
    pub(crate) fn id(&self) -> &MountId {
        &self.id
    }

    /// Where it is mounted.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether our mount, and no other, is at the mount point.
    pub fn is_there(&self) -> bool {
        let found = find(&self.mountpoint).filter(|mount| mount.device == self.id.device);
        found.is_some_and(|mount| MountId::of(&self.mountpoint, mount.device) == self.id)
    }

    /// Takes the mount away, also while it is in use; does nothing if it is gone already.
    pub fn detach(&self) -> io::Result<()> {
        if !self.is_there() {
            return Ok(());
        }
        if self.as_root {
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            return Ok(rustix::mount::unmount(&self.mountpoint, flags)?);
        }
        let output = Command::new(FUSERMOUNT)
            .args(["-u", "-z", "-q", "--"])
            .arg(&self.mountpoint)
            .stdin(Stdio::null())
            .output()?;
        if output.status.success() || !self.is_there() {
            return Ok(());
        }
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }

    /// Ends the kernel's connection to this process: whoever waits for an answer gets an error, in
    /// every mount namespace. Best effort: detaching and ending the process do it in the end.
    pub fn abort(&self) -> io::Result<()> {
        if self.is_anothers() {
            return Ok(());
        }
        let aborted = connections::abort(self.minor());
        if aborted.is_ok() || !self.as_root || !self.is_there() {
            return aborted;
        }
        // the mount goes too: better than what is cached
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        Ok(rustix::mount::unmount(&self.mountpoint, flags)?)
    }

    /// Whether [`Self::abort`] is possible while somebody has the connection open.
    pub(crate) fn can_abort(&self) -> bool {
        self.as_root || connections::may_abort(self.minor())
    }

    /// Whether the mount is gone, and the number of its device is another one's by now.
    fn is_anothers(&self) -> bool {
        let mut same = false;
        let mut other = false;
        for mount in all().into_iter().filter(|mount| mount.device == self.id.device) {
            let is_ours = MountId::of(&mount.mountpoint, mount.device) == self.id;
            same |= is_ours;
            other |= !is_ours;
        }
        other && !same
    }

    fn minor(&self) -> &str {
        self.id.device.rsplit(':').next().unwrap_or_default()
    }

    /// Best effort: only root may, and mountd reads ahead by itself.
    fn raise_read_ahead(&self) {
        let path = format!("/sys/class/bdi/{}/read_ahead_kb", self.id.device);
        if let Err(error) = fs::write(&path, READ_AHEAD_KIB) {
            tracing::debug!(%error, path, "the kernel's read-ahead stays as it is");
        }
    }
}

impl MountId {
    /// Asks the kernel's tables only: a mount that does not answer is not waited for.
    fn of(mountpoint: &Path, device: String) -> Self {
        let mask = StatxFlags::from_bits_retain(libc::STATX_MNT_ID_UNIQUE);
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT | AtFlags::SYMLINK_NOFOLLOW;
        let told = rustix::fs::statx(CWD, mountpoint, flags, mask);
        let told = told.ok().filter(|told| told.stx_mask & mask.bits() != 0);
        Self { device, unique: told.map(|told| told.stx_mnt_id) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read_with_its_escapes() {
        let line = br"36 35 0:55 / /mnt/a\040b rw,nosuid shared:1 - fuse.p2pfs /key\134x:docs rw";
        let info = parse_line(line).unwrap();
        assert_eq!(info.device, "0:55");
        assert_eq!(info.mountpoint, Path::new("/mnt/a b"));
        assert_eq!((info.kind.as_str(), info.source.to_str()), (TYPE, Some(r"/key\x:docs")));
    }

    #[test]
    fn a_mount_is_told_to_another_process() {
        for unique in [None, Some(2_147_483_999)] {
            let id = MountId { device: "0:55".to_owned(), unique };
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert!("0:55,x".parse::<MountId>().is_err());
    }

    #[test]
    fn commas_in_a_source_do_not_become_options() {
        let escaped = escape_option(OsStr::new("/a,allow_other:docs"));
        assert_eq!(escaped, OsStr::new(r"/a\,allow_other:docs"));
    }

    #[test]
    fn a_file_or_a_missing_directory_is_no_mount_point() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        for bad in [file, directory.path().join("missing")] {
            assert_eq!(check_mountpoint(&bad).unwrap_err().code, Code::Mountpoint);
        }
        assert!(check_mountpoint(directory.path()).is_ok());
    }
}
