//! The usual beginning of a test: a server, a host with a share, an authorised key.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

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
        Self::in_lab_with(lab, &[])
    }

    /// The same, with more arguments for the host.
    pub(crate) fn in_lab_with(lab: Lab, host: &[&str]) -> Self {
        let world = World::in_lab(lab);
        let disk = world.directory("disk");
        fs::write(disk.join("hello"), "from home\n").unwrap();
        let server = world.lab_server();
        let hosts = world.server_for(&server, Side::Host);
        let share = format!("disk={}", disk.display());
        let args = [&["serve", "--server", &hosts, "--share", &share], host].concat();
        let host = world.start(Side::Host, &args);
        let clients = world.server_for(&server, Side::Client);
        let key = world.pair("key", &["--authorise", "--server", &clients]);
        let mountpoint = world.directory("home");
        Self { world, server, host, disk, key, mountpoint }
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

    /// The network namespaces.
    #[track_caller]
    pub(crate) fn lab(&self) -> &Lab {
        self.world.lab()
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

    /// Kills the host and starts it again.
    pub(crate) fn restart_host(&mut self) {
        self.restart_host_with_more(&[]);
    }

    /// The same, with more shares (`NAME=DIR`).
    pub(crate) fn restart_host_with_more(&mut self, more: &[String]) {
        let (server, shares) = self.host_args();
        let shares = [&shares[..], more].concat();
        self.host.kill_now();
        self.host = self.world.host(&server, &shares);
    }

    /// Kills the server and starts it again where it was.
    pub(crate) fn restart_server(&mut self) {
        self.server.kill_now();
        self.start_server();
    }

    /// Starts a server that was killed, where it was.
    pub(crate) fn start_server(&mut self) {
        let address = self.server.ready.strip_prefix("p2pfs://").unwrap();
        let (listen, _) = address.split_once('#').unwrap();
        let args = ["run", "--listen", listen, "--stun", "127.0.0.1:0"];
        self.server = self.world.start(Side::Server, &args);
    }

    /// Kills the host and starts it again on a machine that has booted since.
    pub(crate) fn reboot_host(&mut self) {
        self.reboot_host_with(&[]);
    }

    /// The same, with more arguments for the host.
    pub(crate) fn reboot_host_with(&mut self, more: &[&str]) {
        self.host.kill_now();
        self.boot_host(more);
    }

    /// Kills the host; what is done then is done before its machine has booted again.
    pub(crate) fn reboot_host_after(&mut self, meanwhile: impl FnOnce()) {
        self.host.kill_now();
        meanwhile();
        self.boot_host(&[]);
    }

    /// The same, but the host is ended in order.
    pub(crate) fn reboot_ended_host_after(&mut self, meanwhile: impl FnOnce()) {
        self.host.stop_now();
        meanwhile();
        self.boot_host(&[]);
    }

    /// Starts a host that was killed, on a machine that has booted since.
    pub(crate) fn boot_host(&mut self, more: &[&str]) {
        let (server, shares) = self.host_args();
        self.host = self.world.host_after_boot(&server, &shares, more);
    }

    /// Kills the host; what is done then is done before it starts again.
    pub(crate) fn restart_host_after(&mut self, meanwhile: impl FnOnce()) {
        self.host.kill_now();
        meanwhile();
        self.start_killed_host();
    }

    /// Starts a host that was killed.
    pub(crate) fn start_killed_host(&mut self) {
        let (server, shares) = self.host_args();
        self.host = self.world.host(&server, &shares);
    }

    fn host_args(&self) -> (String, [String; 1]) {
        (self.server.ready.clone(), [format!("disk={}", self.disk.display())])
    }

    /// Mounts the disk on another machine, with another key.
    #[track_caller]
    pub(crate) fn second_mount(&self, options: &str) -> Second {
        self.second_mount_told(options).0
    }

    /// The same, and what it said on stderr.
    #[track_caller]
    pub(crate) fn second_mount_told(&self, options: &str) -> (Second, String) {
        let key = self.world.pair("second", &["--authorise"]);
        let mountpoint = self.world.directory("elsewhere");
        let state = self.world.path("state").join("second");
        let args = ["mount", &key.source("disk"), mountpoint.to_str().unwrap(), "-o", options];
        let mount = self.world.program_in(Side::Client, &state, &args);
        let told = Outcome::of(mount, Duration::from_secs(40)).ok().stderr;
        (Second { mountpoint, state }, told)
    }

    /// `-o state=DIR`, for mount(8).
    pub(crate) fn state_option(&self) -> String {
        format!("state={}", self.world.state(Side::Client).display())
    }
}

/// A mount on a second machine.
pub(crate) struct Second {
    pub(crate) mountpoint: PathBuf,
    state: PathBuf,
}

impl Second {
    /// Its one mount of `status --json`.
    #[track_caller]
    pub(crate) fn status(&self, home: &Home) -> Value {
        let status = home.world.program_in(Side::Client, &self.state, &["status", "--json"]);
        let status = Outcome::of(status, Duration::from_secs(40)).ok().json();
        status["mounts"][0].clone()
    }

    /// Unmounts.
    #[track_caller]
    pub(crate) fn unmount(&self, home: &Home) {
        let args = ["unmount", self.mountpoint.to_str().unwrap()];
        let unmount = home.world.program_in(Side::Client, &self.state, &args);
        Outcome::of(unmount, Duration::from_secs(40)).ok();
    }
}
