//! Sticks, and the key directories that stand in for them.
//!
//! A key is a folder K. On a stick, K is where the stick is mounted, and the device is what its USB
//! descriptors say. Anywhere else the file `K/device` says it. `K/p2pfs/` is ours, on both.
//!
//! A key that a client keeps for itself is such a folder too, in its state directory: its `device`
//! file says `product=machine`, which ties it to this machine.

pub mod machine;
pub mod stick;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::failure::{Code, Failure};
use crate::identity::passphrase::Passphrase;
use crate::identity::sealed::{
    self, DEVICE_TEXT_BYTES_MAX, KEY_FILE_BYTES_MAX, KeyContents, OpenError, PublicPart,
};
use crate::wire::session::DeviceId;

const DEVICE_FILE_BYTES_MAX: usize = 1 << 10;
const DEVICE_LINES: &str = "serial=, vendor= and product=";

/// A key and the device that it was opened beside.
#[derive(Clone, Debug)]
pub struct OpenedKey {
    /// What the device says of itself.
    pub device: DeviceId,
    /// What its folder holds.
    pub contents: KeyContents,
}

/// What the device says of itself: the stick that is mounted at `key_dir`, else `key_dir/device`.
///
/// # Errors
///
/// `key-missing` where there is neither, `key-corrupt` where `device` is not in order.
pub fn read_device(key_dir: &Path) -> Result<DeviceId, Failure> {
    if let Some(device) = stick::mounted_at(key_dir) {
        return Ok(device);
    }
    let path = key_dir.join("device");
    let bytes = read_bounded(&path, DEVICE_FILE_BYTES_MAX).map_err(|error| {
        if !key_dir.is_dir() {
            let what = format!("there is no key at {}", key_dir.display());
            return Failure::new(Code::KeyMissing, what, "plug the key in, or name its folder");
        }
        unreadable(&path, &error)
    })?;
    let text = String::from_utf8_lossy(&bytes);
    let device = parse_device(&text).map_err(|what| {
        Failure::new(
            Code::KeyCorrupt,
            format!("{}: {what}", path.display()),
            format!("the file has one line each for {DEVICE_LINES}: write it so"),
        )
    })?;
    Ok(machine::bind(device))
}

/// Opens the key in `key_dir` beside its device, with its passphrase if it has one.
///
/// # Errors
///
/// `key-missing`, `key-corrupt`, `key-copied` where the folder belongs to another device, or
/// `passphrase` where it is missing or another.
pub fn open_key(key_dir: &Path, passphrase: Option<&Passphrase>) -> Result<OpenedKey, Failure> {
    let device = read_device(key_dir)?;
    let path = key_file(key_dir);
    let bytes = read_key_file(&path)?;
    let contents = sealed::open(&bytes, &device, passphrase);
    let contents = contents.map_err(|error| unopened(&path, error))?;
    Ok(OpenedKey { device, contents })
}

/// What the key in `key_dir` says without its device.
///
/// # Errors
///
/// `key-missing` or `key-corrupt`.
pub fn read_public(key_dir: &Path) -> Result<PublicPart, Failure> {
    let path = key_file(key_dir);
    let bytes = read_key_file(&path)?;
    sealed::read_public(&bytes).map_err(|error| unopened(&path, error))
}

/// Whether something is where the key of `key_dir` belongs, be it readable or not.
pub fn is_taken(key_dir: &Path) -> bool {
    let found = key_file(key_dir).symlink_metadata();
    !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Writes the key, sealed to `device` and to its passphrase, if it is to have one; on the disk when
/// this returns.
///
/// # Errors
///
/// `internal` where the folder cannot be written.
pub fn write_key(
    key_dir: &Path,
    device: &DeviceId,
    contents: &KeyContents,
    passphrase: Option<&Passphrase>,
) -> Result<(), Failure> {
    let path = key_file(key_dir);
    let write = || {
        let mut salt = [0; 32];
        getrandom::fill(&mut salt).map_err(io::Error::other)?;
        let bytes = sealed::seal(contents, device, salt, passphrase);
        if bytes.len() > KEY_FILE_BYTES_MAX {
            return Err(io::Error::other("too many servers for one key"));
        }
        write_atomically(&path, &bytes)
    };
    write().map_err(|error| unwritable(&path, &error))
}

/// The device of `key_dir`; makes the folder and its `device` file with a random serial number
/// where there is none.
///
/// # Errors
///
/// As [`read_device`], and `internal` where the folder cannot be written.
pub fn ensure_device(key_dir: &Path) -> Result<DeviceId, Failure> {
    let path = key_dir.join("device");
    if path.symlink_metadata().is_err() && stick::mounted_at(key_dir).is_none() {
        make_device(&path, "directory").map_err(|error| unwritable(&path, &error))?;
    }
    read_device(key_dir)
}

/// Makes the folder of a key that is kept on this machine and opens nowhere else; its device.
///
/// # Errors
///
/// As [`ensure_device`].
pub fn ensure_machine(key_dir: &Path) -> Result<DeviceId, Failure> {
    let path = key_dir.join("device");
    if path.symlink_metadata().is_err() {
        make_device(&path, machine::PRODUCT).map_err(|error| unwritable(&path, &error))?;
    }
    read_device(key_dir)
}

fn key_file(key_dir: &Path) -> PathBuf {
    key_dir.join("p2pfs").join("key")
}

/// Reads what a `device` file says.
///
/// # Errors
///
/// What is wrong with it, for people.
pub fn parse_device(text: &str) -> Result<DeviceId, String> {
    let names = ["serial", "vendor", "product"];
    let mut values = [const { None }; 3];
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let known = line
            .split_once('=')
            .and_then(|(name, value)| Some((names.iter().position(|it| *it == name)?, value)));
        let (at, value) = known.ok_or("a line that is not known")?;
        let value = value.trim();
        if value.len() > DEVICE_TEXT_BYTES_MAX || value.contains(char::is_control) {
            return Err(format!(
                "{} is longer than {DEVICE_TEXT_BYTES_MAX} bytes or not text",
                names[at]
            ));
        }
        if values[at].replace(value.to_owned()).is_some() {
            return Err(format!("{} stands there twice", names[at]));
        }
    }
    let [Some(serial), Some(vendor), Some(product)] = values else {
        return Err("a line is missing".into());
    };
    Ok(DeviceId { serial, vendor, product })
}

fn make_device(path: &Path, product: &str) -> io::Result<()> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let serial: String = random.iter().map(|byte| format!("{byte:02X}")).collect();
    let text = format!("serial={serial}\nvendor=p2pfs\nproduct={product}\n");
    write_atomically(path, text.as_bytes())
}

fn read_key_file(path: &Path) -> Result<Vec<u8>, Failure> {
    read_bounded(path, KEY_FILE_BYTES_MAX).map_err(|error| unreadable(path, &error))
}

/// Reads a regular file; one that is longer is `InvalidData`.
fn read_bounded(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    // Not blocking: what pretends to be a key may be a FIFO
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long"));
    }
    Ok(bytes)
}

fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = path.with_extension("new");
    if let Err(error) = fs::remove_file(&temporary)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()?;
    // The folder itself may be new
    dir.parent().map_or(Ok(()), |above| File::open(above)?.sync_all())
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let shown = path.display();
    if error.kind() == io::ErrorKind::NotFound {
        return Failure::new(
            Code::KeyMissing,
            format!("there is no key here: {shown} is missing"),
            "name the key's folder, or pair it on the host: p2pfs-hostd pair --key FOLDER",
        );
    }
    if error.kind() == io::ErrorKind::InvalidData {
        return corrupt(path, &error.to_string());
    }
    Failure::new(
        Code::KeyMissing,
        format!("cannot read {shown}: {error}"),
        "let this user read the key's folder",
    )
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        Code::Internal,
        format!("cannot write {}: {error}", path.display()),
        "let this user write the key's folder, and check that the stick is neither full nor locked",
    )
}

fn unopened(path: &Path, error: OpenError) -> Failure {
    let what = format!("{}: {error}", path.display());
    match error {
        OpenError::Corrupt => corrupt(path, "it is damaged"),
        OpenError::Version(_) => {
            Failure::new(Code::KeyCorrupt, what, "install the newer p2pfs on this machine")
        }
        OpenError::Copied => Failure::new(
            Code::KeyCopied,
            what,
            "use the stick that was paired, or remove p2pfs from this one and pair it too",
        ),
        OpenError::PassphraseMissing | OpenError::PassphraseWrong => Failure::new(
            Code::Passphrase,
            what,
            "type the passphrase that was given at pairing, or name a file that holds it: \
             -o passphrase-file=FILE, --passphrase-file FILE",
        ),
    }
}

fn corrupt(path: &Path, why: &str) -> Failure {
    Failure::new(
        Code::KeyCorrupt,
        format!("{} is not a key's file: {why}", path.display()),
        "remove the p2pfs folder from the key and pair it again on the host",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_directory_is_made_written_and_opened() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("K");
        assert_eq!(open_key(&key, None).unwrap_err().code, Code::KeyMissing);
        let device = ensure_device(&key).unwrap();
        assert_eq!(ensure_device(&key).unwrap(), device);
        assert_eq!(sealed::serial_weakness(&device.serial), None);
        assert_eq!(open_key(&key, None).unwrap_err().code, Code::KeyMissing);
        write_key(&key, &device, &KeyContents::example(), None).unwrap();
        write_key(&key, &device, &KeyContents::example(), None).unwrap();
        let opened = open_key(&key, None).unwrap();
        assert_eq!(opened.device, device);
        assert_eq!(opened.contents.id, read_public(&key).unwrap().id);
    }

    #[test]
    fn a_folder_beside_another_device_is_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let device = ensure_device(&one).unwrap();
        write_key(&one, &device, &KeyContents::example(), None).unwrap();
        ensure_device(&two).unwrap();
        fs::create_dir(two.join("p2pfs")).unwrap();
        fs::copy(key_file(&one), key_file(&two)).unwrap();
        assert_eq!(open_key(&two, None).unwrap_err().code, Code::KeyCopied);
    }

    #[test]
    fn a_device_file_that_is_not_in_order_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = "serial=A\nvendor=b\nproduct=c\n";
        assert!(parse_device(good).is_ok());
        let long = format!("serial={}\nvendor=b\nproduct=c\n", "x".repeat(127));
        for bad in [
            "",
            "serial=A\nvendor=b\n",
            "serial=A\nserial=A\nvendor=b\nproduct=c\n",
            "serial=A\nvendor=b\nproduct=c\ncolour=red\n",
            "serial=A\nvendor=b\nproduct=c\nrubbish\n",
            &long,
            &"#".repeat(2000),
        ] {
            fs::write(dir.path().join("device"), bad).unwrap();
            assert_eq!(read_device(dir.path()).unwrap_err().code, Code::KeyCorrupt);
        }
    }
}
