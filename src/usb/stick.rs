//! Real sticks: USB mass storage, by its descriptors and by where it is mounted.
//!
//! libusb says what is plugged in; the serial number comes from sysfs, where every user may read
//! it, while a string descriptor takes the right to open the device.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rusb::UsbContext;

use crate::failure::{Code, Failure};
use crate::identity::sealed::DEVICE_TEXT_BYTES_MAX;
use crate::wire::session::DeviceId;

const USB_CLASS_MASS_STORAGE: u8 = 8;

/// A stick that is plugged in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stick {
    /// What it says of itself.
    pub device: DeviceId,
    /// Where it is mounted, if it is.
    pub folder: Option<PathBuf>,
}

/// All sticks that are plugged in, in the order of their ports.
///
/// # Errors
///
/// `key-missing` on a machine without USB.
pub fn list() -> Result<Vec<Stick>, Failure> {
    let no_usb = |error: rusb::Error| {
        Failure::new(
            Code::KeyMissing,
            format!("this machine shows no USB: {error}"),
            "use a key directory instead: --key FOLDER",
        )
    };
    // A context of our own: the global one panics where there is no USB
    let context = rusb::Context::new().map_err(no_usb)?;
    let mut sticks = Vec::new();
    for device in context.devices().map_err(no_usb)?.iter() {
        if !is_mass_storage(&device) {
            continue;
        }
        let ports: Vec<String> =
            device.port_numbers().unwrap_or_default().iter().map(u8::to_string).collect();
        let name = format!("{}-{}", device.bus_number(), ports.join("."));
        // It may be gone again
        if let Ok(sysfs) = Path::new("/sys/bus/usb/devices").join(&name).canonicalize()
            && let Some(device) = describe(&sysfs)
        {
            let folder = folder_of(&sysfs);
            sticks.push((name, Stick { device, folder }));
        }
    }
    sticks.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(sticks.into_iter().map(|(_, stick)| stick).collect())
}

/// The folder of the only stick that is plugged in and mounted.
///
/// # Errors
///
/// `key-missing` where there is none, or more than one.
pub fn only_folder() -> Result<PathBuf, Failure> {
    let sticks = list()?;
    let mut folders = sticks.iter().filter_map(|stick| stick.folder.clone());
    let missing = |what: &str, hint: &str| Failure::new(Code::KeyMissing, what, hint);
    match (folders.next(), folders.next()) {
        (Some(folder), None) => Ok(folder),
        (Some(_), Some(_)) => Err(missing(
            "more than one stick is plugged in",
            "unplug the others, or name the folder where it is mounted: --key FOLDER",
        )),
        (None, _) if sticks.is_empty() => Err(missing(
            "no stick is plugged in",
            "plug the stick in and try again, or use a key directory: --key FOLDER",
        )),
        (None, _) => Err(missing(
            "the stick is not mounted",
            "mount it so that this user can write to it, and try again",
        )),
    }
}

/// What the stick says of itself whose file system is mounted at exactly `dir`.
///
/// A folder further down is none: a machine may run from a USB disk.
pub fn mounted_at(dir: &Path) -> Option<DeviceId> {
    let device = fs::metadata(dir).ok()?.dev();
    if fs::metadata(dir.join("..")).ok()?.dev() == device {
        return None;
    }
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = format!("/sys/dev/block/{major}:{minor}");
    let block = Path::new(&block).canonicalize().ok()?;
    block.ancestors().find_map(describe)
}

fn is_mass_storage(device: &rusb::Device<rusb::Context>) -> bool {
    let Ok(config) = device.active_config_descriptor() else {
        return false;
    };
    config
        .interfaces()
        .flat_map(|interface| interface.descriptors())
        .any(|descriptor| descriptor.class_code() == USB_CLASS_MASS_STORAGE)
}

/// Reads a USB device's folder in sysfs; `None` for any other folder.
fn describe(sysfs: &Path) -> Option<DeviceId> {
    let read = |name: &str| {
        let text = fs::read_to_string(sysfs.join(name)).ok()?;
        let clean = text.trim().chars().filter(|c| !c.is_control());
        let mut text: String = clean.collect();
        text.truncate(text.floor_char_boundary(DEVICE_TEXT_BYTES_MAX));
        Some(text)
    };
    Some(DeviceId {
        vendor: read("idVendor")?,
        product: read("idProduct")?,
        serial: read("serial").unwrap_or_default(),
    })
}

/// Where a block device below the USB device is mounted.
fn folder_of(sysfs: &Path) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        // ID PARENT MAJOR:MINOR ROOT FOLDER ...
        let mut fields = line.split(' ').skip(2);
        let (device, root, folder) = (fields.next()?, fields.next()?, fields.next()?);
        let block = Path::new("/sys/dev/block").join(device);
        let below = block.canonicalize().ok()?.starts_with(sysfs);
        (below && root == "/").then(|| PathBuf::from(unescape(folder)))
    })
}

/// mountinfo writes space, tab, newline and backslash as `\ooo`.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_usb_gets_an_answer_and_no_panic() {
        match list() {
            Ok(_) => {}
            Err(failure) => assert_eq!(failure.code, Code::KeyMissing),
        }
    }

    #[test]
    fn an_ordinary_folder_is_no_stick() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(mounted_at(dir.path()), None);
        assert_eq!(mounted_at(Path::new("/proc")), None);
    }

    #[test]
    fn escaped_folders_are_read() {
        assert_eq!(unescape("/media/my\\040key"), "/media/my key");
    }
}
