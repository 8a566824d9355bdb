//! Pairing over the local network by a one-time code (R13): broadcast on loopback.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::Duration;

use super::{Client, recorded};
use crate::world::outcome::wait;
use crate::world::{Home, Side, need_mount};

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
    errors: std::path::PathBuf,
}

impl Pairing {
    #[track_caller]
    fn start(home: &Home, args: &[&str]) -> Self {
        let errors = home.world.path("pairing.errors");
        let mut pair = home.world.program(Side::Host, &[&["pair", "--code"], args].concat());
        pair.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&errors).unwrap());
        let mut child = pair.spawn().unwrap();
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
