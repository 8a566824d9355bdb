//! Pairing over the local network by a one-time code (R13): broadcast on loopback.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use p2pfs::identity::PeerId;

use super::{Client, recorded};
use crate::world::outcome::{tool, wait};
use crate::world::{Home, Outcome, Side, World, need_mount, need_root};

#[test]
fn a_code_that_is_read_out_pairs_a_client_once() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "laptop");

    let mut pairing = Pairing::start(&home, &[]);
    let typed = pairing.code.to_lowercase().replace('-', " ");
    let printed = client.run(&["import", &typed]).ok().stdout;
    let id = printed.split(' ').nth(1).unwrap();
    assert_eq!(wait(&mut pairing.child, Duration::from_secs(10)), Some(0));
    assert!(pairing.rest().contains(&format!("paired {id} state=unauthorised")));
    client.mount(id, "").refused(1, "key-unauthorised");
    home.world.hostd(&["keys", "authorise", id]).ok();
    client.mounts(id);
    assert_eq!(recorded(&home, id)["kind"], "code");
    // it was good once
    client.run(&["import", &typed]).refused(1, "host-offline");
}

#[test]
fn a_code_pairs_a_stick_that_is_not_in_the_host() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "laptop");
    let stick = home.world.path("stick");

    let mut pairing = Pairing::start(&home, &["--authorise", "--access", "ro"]);
    client.run(&["import", &pairing.code, "--to", stick.to_str().unwrap()]).ok();
    assert_eq!(wait(&mut pairing.child, Duration::from_secs(10)), Some(0));
    client.mounts(stick.to_str().unwrap());
    let shown = client.run(&["key", "show", stick.to_str().unwrap(), "--json"]).ok().json();
    let record = recorded(&home, shown["id"].as_str().unwrap());
    assert_eq!((&record["kind"], &record["access"]), (&"stick".into(), &"ro".into()));
    // as any stick: beside another device it is a copy
    let other = home.world.directory("other");
    fs::create_dir(other.join("p2pfs")).unwrap();
    fs::copy(stick.join("p2pfs/key"), other.join("p2pfs/key")).unwrap();
    fs::write(other.join("device"), "serial=A-B-C-D\nvendor=p2pfs\nproduct=directory\n").unwrap();
    client.mount(other.to_str().unwrap(), "").refused(1, "key-copied");
}

#[test]
fn a_wrong_code_burns_the_attempt() {
    let home = Home::on_loopback();
    let client = Client::new(&home, "laptop");
    let before = home.world.hostd(&["keys", "list", "--json"]).ok().json();

    let mut pairing = Pairing::start(&home, &["--authorise"]);
    let last = if pairing.code.ends_with('7') { '8' } else { '7' };
    let wrong = format!("{}{last}", &pairing.code[..pairing.code.len() - 1]);
    client.run(&["import", &wrong]).refused(1, "key-unauthorised");
    assert_eq!(wait(&mut pairing.child, Duration::from_secs(10)), Some(1));
    assert!(pairing.errors().contains("error[key-unauthorised]"), "{}", pairing.errors());
    // the right one is void now
    client.run(&["import", &pairing.code]).refused(1, "host-offline");
    assert_eq!(home.world.hostd(&["keys", "list", "--json"]).ok().json(), before);
    assert!(!client.state.join("keys").exists());
}

#[test]
fn two_machines_on_one_cable_find_each_other_without_any_address() {
    need_root!();
    let world = World::on_loopback();
    // link-local IPv6 is all that they have
    let (near, far) = (Machine::new("a"), Machine::new("b"));
    let [one, two] = ["va", "vb"].map(|end| format!("{end}{}", std::process::id()));
    let args = ["link", "add", &one, "netns", &near.name, "type", "veth", "peer", "name", &two];
    tool("ip", &[&args[..], &["netns", &far.name]].concat());
    near.run(&["link", "set", &one, "up"]);
    far.run(&["link", "set", &two, "up"]);
    let server = format!("p2pfs://203.0.113.5:443#{}", PeerId([7; 32]).to_text());

    let mut pair = near.command(&world, Side::Host, &["pair", "--code", "--server", &server]);
    let errors = world.path("pairing.errors");
    let mut pairing = Pairing::of(pair.stderr(File::create(&errors).unwrap()), errors);
    let import = far.command(&world, Side::Client, &["import", &pairing.code]);
    Outcome::of(import, Duration::from_secs(20)).ok();
    assert_eq!(wait(&mut pairing.child, Duration::from_secs(10)), Some(0));
}

#[test]
fn a_code_that_nobody_types_expires() {
    let home = Home::on_loopback();

    let mut pairing = Pairing::start(&home, &["--for", "1"]);
    assert_eq!(wait(&mut pairing.child, Duration::from_secs(10)), Some(1));
    assert!(pairing.errors().contains("error[host-offline]"), "{}", pairing.errors());
}

/// `pair --code`, which has printed its code.
struct Pairing {
    child: Child,
    code: String,
    lines: BufReader<std::process::ChildStdout>,
    errors: PathBuf,
}

/// A network namespace.
struct Machine {
    name: String,
}

impl Machine {
    fn new(name: &str) -> Self {
        let name = format!("p2pfs-lan-{name}-{}", std::process::id());
        tool("ip", &["netns", "add", &name]);
        Self { name }
    }

    fn run(&self, args: &[&str]) {
        tool("ip", &[&["-n", &self.name], args].concat());
    }

    fn command(&self, world: &World, side: Side, args: &[&str]) -> Command {
        let inner = world.program(side, args);
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(inner.get_program());
        command.args(inner.get_args());
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

impl Pairing {
    #[track_caller]
    fn start(home: &Home, args: &[&str]) -> Self {
        let errors = home.world.path("pairing.errors");
        let mut pair = home.world.program(Side::Host, &[&["pair", "--code"], args].concat());
        pair.stderr(File::create(&errors).unwrap());
        Self::of(&mut pair, errors)
    }

    #[track_caller]
    fn of(pair: &mut Command, errors: PathBuf) -> Self {
        let mut child = pair.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut code = String::new();
        lines.read_line(&mut code).unwrap();
        Self { child, code: code.trim().to_owned(), lines, errors }
    }

    /// What it printed after its code.
    fn rest(&mut self) -> String {
        std::io::read_to_string(&mut self.lines).unwrap()
    }

    fn errors(&self) -> String {
        fs::read_to_string(&self.errors).unwrap()
    }
}

impl Drop for Pairing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
