//! Every way to become a client: by ticket, over the local network, from paper (R9, R13, R15).

mod lan;
mod stick;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::world::{Home, Outcome, Side, eventually, is_mounted, need_mount};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_client_without_a_stick_comes_with_its_code() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "phone");
    let code = client.identity()["code"].as_str().unwrap().to_owned();

    // R13: typed in as people type
    let typed = code.to_lowercase().replace('-', " ");
    let id = client.import(&client.add(&["--kind", "code", &typed]));
    // recorded first, authorised later (R12)
    client.mount(&id, "").refused(1, "key-unauthorised");
    home.world.hostd(&["keys", "authorise", &id]).ok();
    client.mounts(&id);
    assert_eq!(recorded(&home, &id)["kind"], "code");
    // forgotten while it is mounted: as a stick that is pulled
    client.mount(&id, "").ok();
    client.run(&["forget", &id]).ok();
    eventually("the mount to go", Duration::from_secs(2), || !is_mounted(&home.mountpoint));
    eventually("the mount to be locked", Duration::from_secs(5), || client.is_locked());
    client.unmount();
    client.mount(&id, "").refused(1, "key-missing");

    // R9: another code than this client's
    let id = client.import(&client.add(&["--kind", "code", "AAAA-BBBB-CCCC-DDDD", "--authorise"]));
    client.mount(&id, "").refused(1, "key-unauthorised");
    // until it is told so, by somebody who knows it
    client.run(&["identity", "--code", "aaaa bbbb cccc dddd"]).ok();
    client.mounts(&id);
}

#[test]
fn a_client_without_a_stick_comes_with_its_mac_address() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "nas");
    let identity = client.identity();
    let Some(mac) = identity["mac"][0].as_str() else {
        return crate::world::skip("no network interface with a MAC address");
    };

    let typed = mac.to_uppercase().replace(':', "-");
    let id = client.import(&client.add(&["--kind", "mac", &typed, "--authorise"]));
    client.mounts(&id);
    assert_eq!(recorded(&home, &id)["kind"], "mac");
    let id = client.import(&client.add(&["--kind", "mac", "02:00:5e:00:53:01", "--authorise"]));
    client.mount(&id, "").refused(1, "key-unauthorised");
    client.try_add(&["--kind", "mac", "no address"]).refused(2, "usage");
}

#[test]
fn a_client_comes_with_a_serial_number_that_was_typed_in() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "pc");

    // of the machine
    let serials = client.identity()["serial"].clone();
    let serial = serials[0].as_str().unwrap();
    let id = client.import(&client.add(&["--kind", "serial", serial, "--authorise"]));
    client.mounts(&id);
    // of a stick that never was in the host
    let stick = home.world.directory("stick");
    let device = "serial=0330622110004158\nvendor=0951\nproduct=1666\n";
    fs::write(stick.join("device"), device).unwrap();
    let ticket = client.add(&["--kind", "serial", "0330622110004158", "--authorise"]);
    let to = stick.to_str().unwrap();
    client.run(&["import", &ticket, "--to", to]).ok();
    client.mounts(to);
    // another key is not lost to one that is imported over it
    let other = client.add(&["--kind", "serial", "0330622110004159", "--authorise"]);
    client.run(&["import", &other, "--to", to]).refused(2, "usage");
    fs::remove_dir_all(stick.join("p2pfs")).unwrap();
    client.run(&["import", &other, "--to", to]).ok();
    client.mount(to, "").refused(1, "key-unauthorised");
    // a number that many sticks share is told
    let weak = client.try_add(&["--kind", "serial", "000000000000"]).ok();
    assert!(weak.stderr.contains("warning"), "{weak:#?}");
}

#[test]
fn a_client_comes_with_a_user_name_and_a_password() {
    need_mount!();
    let home = Home::on_loopback();
    let client = Client::new(&home, "pda");
    let right = secret_file(&home, "right", "open sesame");
    let wrong = secret_file(&home, "wrong", "open barley");

    let args = ["--kind", "login", "ann", "--password-file", &right, "--authorise"];
    let id = client.import(&client.add(&args));
    let options = |user: &str, file: &str| format!("login={user},password-file={file}");
    client.mounts_with(&id, &options("ann", &right));
    client.mount(&id, &options("ann", &wrong)).refused(1, "key-unauthorised");
    client.mount(&id, &options("bob", &right)).refused(1, "key-unauthorised");
    client.mount(&id, "").refused(1, "key-unauthorised");
    // nobody is there to type it
    client.mount(&id, "login=ann").refused(1, "passphrase");
    // who guesses must wait
    for _ in 0..3 {
        client.mount(&id, &options("ann", &wrong)).refused(1, "key-unauthorised");
    }
    let late = client.mount(&id, &options("ann", &right)).refused(1, "key-unauthorised");
    assert!(late.stderr.contains("too many"), "{late:#?}");
    // neither side keeps the password, anywhere
    let found = files_with(&home.world.path("state"), b"open sesame");
    assert_eq!(found, Vec::<PathBuf>::new());
    // another key does not take the option for granted
    let stick = home.key.dir.to_str().unwrap();
    client.mount(stick, &options("ann", &right)).refused(2, "usage");
}

#[test]
fn a_ticket_is_whole_or_nothing() {
    let home = Home::on_loopback();
    let client = Client::new(&home, "phone");
    let ticket = client.add(&["--kind", "code", "AAAA-BBBB-CCCC-DDDD"]);

    for bad in [&ticket[..ticket.len() - 1], &ticket.replace("ticket-1:", "ticket-1:A"), "hello"] {
        client.run(&["import", bad]).refused(2, "usage");
    }
    assert!(!home.world.path("state").join("phone/keys").exists());
    // a key that is kept here opens nowhere else: the machine's id is part of what seals it
    let id = client.import(&ticket);
    let kept = home.world.path("state").join("phone/keys").join(&id);
    let device = fs::read_to_string(kept.join("device")).unwrap();
    fs::write(kept.join("device"), device.replace("serial=", "serial=A")).unwrap();
    client.mount(&id, "").refused(1, "key-copied");
    client.run(&["forget", &id]).ok();
    assert!(!kept.exists());
    client.run(&["forget", "../../../etc"]).refused(1, "key-missing");
}

/// A client machine with a state directory of its own.
struct Client<'a> {
    home: &'a Home,
    state: PathBuf,
}

impl<'a> Client<'a> {
    fn new(home: &'a Home, name: &str) -> Self {
        let state = home.world.path("state").join(name);
        Self { home, state }
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Outcome {
        Outcome::of(self.home.world.program_in(Side::Client, &self.state, args), LIMIT)
    }

    #[track_caller]
    fn identity(&self) -> Value {
        self.run(&["identity", "--json"]).ok().json()
    }

    #[track_caller]
    fn try_add(&self, args: &[&str]) -> Outcome {
        self.home.world.hostd(&[&["keys", "add"], args].concat())
    }

    /// The ticket that the host prints.
    #[track_caller]
    fn add(&self, args: &[&str]) -> String {
        self.try_add(args).ok().stdout.trim().to_owned()
    }

    /// Imports; the key's id.
    #[track_caller]
    fn import(&self, ticket: &str) -> String {
        let printed = self.run(&["import", ticket]).ok().stdout;
        printed.split(' ').nth(1).unwrap().to_owned()
    }

    #[track_caller]
    fn mount(&self, key: &str, options: &str) -> Outcome {
        let mountpoint = self.home.mountpoint.to_str().unwrap();
        let options = format!("timeout=10,{options}");
        self.run(&["mount", &format!("{key}:disk"), mountpoint, "-o", &options])
    }

    /// Mounts, reads, and unmounts.
    #[track_caller]
    fn mounts(&self, key: &str) {
        self.mounts_with(key, "");
    }

    #[track_caller]
    fn mounts_with(&self, key: &str, options: &str) {
        self.mount(key, options).ok();
        let hello = fs::read_to_string(self.home.mountpoint.join("hello"));
        self.unmount();
        assert!(hello.is_ok(), "{hello:?}");
    }

    /// Whether a mount waits for its key.
    fn is_locked(&self) -> bool {
        let status = self.run(&["status", "--json"]).ok().json();
        status["mounts"][0]["state"] == "locked"
    }

    #[track_caller]
    fn unmount(&self) {
        self.run(&["unmount", self.home.mountpoint.to_str().unwrap()]).ok();
        self.home.world.assert_nothing_left(&self.home.mountpoint);
    }
}

/// A file with a passphrase in it.
fn secret_file(home: &Home, name: &str, secret: &str) -> String {
    let path = home.world.path(name);
    fs::write(&path, format!("{secret}\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn recorded(home: &Home, id: &str) -> Value {
    let keys = home.world.hostd(&["keys", "list", "--json"]).ok().json();
    let key = keys.as_array().unwrap().iter().find(|key| key["id"] == *id);
    key.unwrap_or_else(|| panic!("{id} is not in {keys:#}")).clone()
}

/// The files below `dir` that hold `secret`.
fn files_with(dir: &Path, secret: &[u8]) -> Vec<PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() {
                let bytes = fs::read(&path).unwrap();
                if bytes.windows(secret.len()).any(|part| part == secret) {
                    found.push(path);
                }
            }
        }
    }
    found
}
