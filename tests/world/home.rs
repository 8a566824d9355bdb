//! The usual beginning of a test: a server, a host with a share, an authorised key.

use std::fs;
use std::path::{Path, PathBuf};

use super::lab::Lab;
use super::{Daemon, Outcome, Paired, Side, World};

/// A home: what stands before a client comes. Fields are dropped in this order.
pub(crate) struct Home {
    pub(crate) world: World,
    pub(crate) server: Daemon,
    pub(crate) host: Daemon,
    /// The host's directory, served as `disk`.
    pub(crate) disk: PathBuf,
    /// Paired and authorised.
    pub(crate) key: Paired,
    /// An empty directory.
    pub(crate) mountpoint: PathBuf,
}

impl Home {
    /// On loopback.
    pub(crate) fn on_loopback() -> Self {
        Self::on_loopback_with(&["--authorise"], |_| {})
    }

    /// On loopback, the key paired with `pair`, and the disk prepared before it is served.
    pub(crate) fn on_loopback_with(pair: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        Self::new(World::on_loopback(), "127.0.0.1:0", pair, prepare)
    }

    /// In network namespaces.
    pub(crate) fn in_lab(lab: Lab) -> Self {
        Self::new(World::in_lab(lab), "203.0.113.5:443", &["--authorise"], |_| {})
    }

    fn new(world: World, listen: &str, pair: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let disk = world.directory("disk");
        prepare(&disk);
        fs::write(disk.join("hello"), "from home\n").unwrap();
        let server = world.server(listen);
        let host = world.host(&server.ready, &[format!("disk={}", disk.display())]);
        let key = world.pair("key", pair);
        let mountpoint = world.directory("home");
        Self { world, server, host, disk, key, mountpoint }
    }

    /// Mounts the disk by `p2pfs-mountd mount`.
    #[track_caller]
    pub(crate) fn mount(&self, options: &str) {
        self.try_mount(options).ok();
    }

    /// The same, whatever comes of it.
    #[track_caller]
    pub(crate) fn try_mount(&self, options: &str) -> Outcome {
        self.world.mount(&self.key.source("disk"), &self.mountpoint, options)
    }

    /// Unmounts; nothing may be left.
    #[track_caller]
    pub(crate) fn unmount(&self) {
        self.world.unmount(&self.mountpoint);
    }

    /// Waits until everything is on the host's disk.
    #[track_caller]
    pub(crate) fn sync(&self) {
        self.world.sync(&self.mountpoint);
    }

    /// `-o state=DIR`, for mount(8).
    pub(crate) fn state_option(&self) -> String {
        format!("state={}", self.world.state(Side::Client).display())
    }
}
