//! What both daemons need of the machine that they run on.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::geteuid;

use crate::limits::SOCKET_BUFFER_BYTES;

use super::Check;

/// The state directory: ours, and nobody else's to read.
pub fn state(dir: &Path) -> Check {
    let at = dir.display();
    let Ok(found) = fs::metadata(dir) else {
        return Check::works("state", format!("state directory: {at}, made when it is needed"));
    };
    if found.uid() != geteuid().as_raw() && !geteuid().is_root() {
        return Check::missing(
            "state",
            format!("the state directory {at} belongs to another user"),
            "choose a directory of yours with --state DIR",
        );
    }
    if found.mode() & 0o077 != 0 {
        return Check::note(
            "state",
            format!("others may look into the state directory {at}, where secrets are kept"),
            format!("run: chmod 700 {at}"),
        );
    }
    Check::works("state", format!("state directory: {at}, yours alone"))
}

/// Whether the kernel grants the buffers that a fast link wants.
pub fn buffers() -> Check {
    let granted = fs::read_to_string("/proc/sys/net/core/rmem_max").ok();
    let granted = granted.and_then(|text| text.trim().parse::<usize>().ok());
    match granted {
        Some(granted) if granted < SOCKET_BUFFER_BYTES && !geteuid().is_root() => Check::note(
            "buffers",
            format!("UDP buffers are limited to {granted} bytes: a fast link may lose packets"),
            format!("as root, run: sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES}"),
        ),
        _ => Check::works("buffers", "UDP buffers: as large as wanted"),
    }
}

/// Whether sticks can be seen.
#[cfg(feature = "usb")]
pub fn usb() -> Check {
    match crate::usb::stick::list() {
        Ok(sticks) if sticks.is_empty() => Check::works("usb", "libusb works; no stick is in"),
        Ok(sticks) => Check::works("usb", format!("libusb works; {} in", count(sticks.len()))),
        Err(failure) => Check::note(
            "usb",
            failure.what,
            "key directories work without; in a container: --device /dev/bus/usb",
        ),
    }
}

#[cfg(feature = "usb")]
fn count(sticks: usize) -> String {
    if sticks == 1 { "one stick is".to_owned() } else { format!("{sticks} sticks are") }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::net::doctor::State;

    #[test]
    fn a_state_directory_that_others_read_is_noted() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(state(&dir.path().join("none")).state, State::Works);
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).unwrap();
        assert_eq!(state(dir.path()).state, State::Works);
        fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let check = state(dir.path());
        assert_eq!(check.state, State::Note);
        assert!(check.hint.unwrap().contains("chmod 700"));
    }
}
