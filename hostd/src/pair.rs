//! Pairing (R12, R13): who the client is goes into the host's list, who the host is goes to the
//! client: onto the key in the host, into a ticket, or over the local network.

pub(crate) mod lan;
pub(crate) mod ticket;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::identity::kind::Kind;
use p2pfs::identity::passphrase::{Passphrase, Stretch};
use p2pfs::identity::recovery::{self, Origin};
use p2pfs::identity::sealed::{self, KEY_SERVERS_MAX, KeyContents, KeyId};
use p2pfs::identity::{PairKey, SecretKey};
use p2pfs::net::{ask, daemon};
use p2pfs::usb;
use p2pfs::wire::session::DeviceId;
use serde_json::Value;

use crate::cli::{PairArgs, Rights};
use crate::config::Config;
use crate::export::acting;
use crate::keys::Map;
use crate::owner::{self, HostFacts, NewKey, Request};
use crate::{expires, machine};

/// `pair`.
///
/// # Errors
///
/// The key cannot be read or written, belongs to another host or was copied, or the host's files
/// cannot be written; over the network, nobody came with the right code.
pub fn run(dir: &Path, args: PairArgs) -> Result<(), Failure> {
    check(dir, args.map, &args.rights)?;
    match &args.key {
        Some(key) => stick(dir, &folder(key)?, &args),
        None => lan::run(dir, &args),
    }
}

/// Pairs the key in the host.
fn stick(dir: &Path, folder: &Path, args: &PairArgs) -> Result<(), Failure> {
    let passphrase = args.passphrase_file.as_deref();
    let passphrase = passphrase.map(|file| ask::passphrase(Some(file), "", false)).transpose()?;
    let device = usb::ensure_device(folder)?;
    warn_of(&device);
    let host = host(dir, &args.rights)?;
    let known = known_key(dir, folder, &host, passphrase.as_ref())?;
    let origin = known.is_none().then(|| Origin::from_bytes(daemon::random()));
    let (secret, pair_key) = match (known, &origin) {
        (Some(known), _) => known,
        (None, Some(origin)) => (origin.secret(), origin.pair_key()),
        (None, None) => return Err(Failure::new(Code::Internal, "no secret", "try again")),
    };
    let contents = contents(&host, &args.rights, (secret, pair_key), Kind::Stick, None);
    let of_folder = || Some(folder.file_name()?.to_string_lossy().into_owned());
    let name = args.rights.name.clone().or_else(of_folder).unwrap_or_default();
    let mut key = new_key(&contents, &args.rights, args.map, &device, &name);
    key.recovery = origin.as_ref().map(|origin| recovery::verifier(&origin.proof()));
    let recorded = owner::ask(dir, &Request::Record(Box::new(key)))?;
    let written = usb::write_key(folder, &device, &contents, passphrase.as_ref());
    if written.is_err() && origin.is_some() {
        // Nobody has the secret of what was recorded
        let id = contents.id.as_str().to_owned();
        owner::ask(dir, &Request::Remove { id })?;
    }
    written?;
    print_paired(&contents, &recorded);
    if let Some(origin) = &origin {
        give_paper(origin, &contents, args.recovery_file.as_deref())?;
    } else if args.recovery_file.is_some() {
        eprintln!("warning: this key was paired before: its recovery code stays as it is");
        eprintln!("hint: for another one remove the key (keys remove ID) and pair it again");
    }
    Ok(())
}

/// The recovery code, into a file, or onto a terminal: anything else may be a log.
fn give_paper(origin: &Origin, contents: &KeyContents, file: Option<&Path>) -> Result<(), Failure> {
    let Some(paper) = recovery::write(origin, contents) else { return Ok(()) };
    if let Some(file) = file {
        return daemon::write_private(file, paper.as_bytes()).map_err(|error| {
            let what = format!("paired, but cannot write {}: {error}", file.display());
            let hint = "for a recovery code remove the key (keys remove ID) and pair it again";
            Failure::new(Code::Internal, what, hint)
        });
    }
    if std::io::stdout().is_terminal() {
        println!("\nrecovery code, for paper: whoever has it has the key\n\n{}", *paper);
        println!("if the stick is lost: p2pfs-mountd import --to K -, and type these lines");
    }
    Ok(())
}

fn print_paired(contents: &KeyContents, recorded: &Value) {
    println!(
        "paired {} state={} mac={}; safe to unplug",
        contents.id,
        recorded["state"].as_str().unwrap_or_default(),
        contents.host_mac
    );
}

/// What the key cannot be made with.
fn check(dir: &Path, map: Map, rights: &Rights) -> Result<(), Failure> {
    if map == Map::Identity && !acting::possible() {
        return Err(Failure::new(
            Code::Usage,
            "map=identity needs p2pfs-hostd as root: only root may act as other users",
            "run this and p2pfs-hostd serve as root, or leave --map identity away",
        ));
    }
    if let Some(until) = rights.expires.and_then(|lifetime| lifetime.until())
        && until <= expires::now()
    {
        eprintln!("warning: that time is over already: {}", expires::to_text(until));
        eprintln!("hint: keys authorise ID --expires DATE gives it more");
    }
    let served = Config::load(dir)?.shares;
    for share in rights.shares.iter().filter(|name| !served.contains_key(*name)) {
        eprintln!("warning: this host has no share {share}");
        eprintln!("hint: p2pfs-hostd status shows its shares; --shares names those to use");
    }
    Ok(())
}

/// Who this host is, for a key with these servers.
fn host(dir: &Path, rights: &Rights) -> Result<HostFacts, Failure> {
    let host = owner::ask(dir, &Request::Host)?;
    let mut host: HostFacts = serde_json::from_value(host).map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("the running daemon says something else: {error}"),
            "start it again, with the same version as this program",
        )
    })?;
    if !rights.servers.is_empty() {
        host.servers.clone_from(&rights.servers);
    }
    check_servers(&host.servers)?;
    Ok(host)
}

fn check_servers(servers: &[ServerAddress]) -> Result<(), Failure> {
    if !servers.is_empty() && servers.len() <= KEY_SERVERS_MAX {
        return Ok(());
    }
    Err(Failure::new(
        Code::Usage,
        format!("a key names 1 to {KEY_SERVERS_MAX} servers, and this one {}", servers.len()),
        "name the server as p2pfs-server prints it: --server p2pfs://HOST:PORT#FINGERPRINT",
    ))
}

/// What the client will hold.
fn contents(
    host: &HostFacts,
    rights: &Rights,
    (secret, pair_key): (SecretKey, PairKey),
    kind: Kind,
    login: Option<Stretch>,
) -> KeyContents {
    KeyContents {
        id: KeyId::of(secret.peer_id()),
        secret,
        pair_key,
        host: host.peer,
        host_mac: host.mac,
        host_name: host.name.clone(),
        servers: host.servers.clone(),
        portable: rights.portable,
        kind,
        login,
        shows: None,
    }
}

/// What the host will record of it.
fn new_key(
    contents: &KeyContents,
    rights: &Rights,
    map: Map,
    device: &DeviceId,
    name: &str,
) -> NewKey {
    NewKey {
        peer: contents.secret.peer_id(),
        pair_key: contents.pair_key.clone(),
        device: device.clone(),
        name: machine::label(name).unwrap_or_else(|| "key".into()),
        authorise: rights.authorise,
        access: rights.access,
        shares: rights.shares.clone(),
        map,
        portable: contents.portable,
        kind: contents.kind,
        expires: rights.expires.and_then(|lifetime| lifetime.until()),
        recovery: None,
        servers: contents.servers.clone(),
    }
}

fn folder(key: &Path) -> Result<PathBuf, Failure> {
    if key == Path::new("usb") {
        return usb::stick::only_folder();
    }
    let folder = std::path::absolute(key).unwrap_or_else(|_| key.to_owned());
    // The folder itself may be made, but not a mistyped path to it
    if folder.parent().is_some_and(|above| !above.is_dir()) {
        return Err(Failure::new(
            Code::KeyMissing,
            format!("there is no folder {}", key.display()),
            "plug the stick in and mount it, or name a folder that exists",
        ));
    }
    Ok(folder)
}

/// Weak serial numbers are no reason to refuse, but to say so.
fn warn_of(device: &DeviceId) {
    if let Some(why) = sealed::serial_weakness(&device.serial) {
        eprintln!("warning: this stick is easily mistaken for another: {why}");
        eprintln!(
            "hint: the number does not count as a mark of this stick, so a copy of its folder is \
             noticed less surely; a stick of another make is a better key"
        );
    }
}

/// The secrets of a key that this host knows already: pairing it again keeps them.
fn known_key(
    dir: &Path,
    folder: &Path,
    host: &HostFacts,
    passphrase: Option<&Passphrase>,
) -> Result<Option<(SecretKey, PairKey)>, Failure> {
    let contents = match usb::open_key(folder, passphrase) {
        Ok(opened) => opened.contents,
        Err(failure) if failure.code == Code::KeyMissing && !usb::is_taken(folder) => {
            return Ok(None);
        }
        Err(failure) => return Err(failure),
    };
    if contents.host != host.peer {
        return Err(Failure::new(
            Code::HostMismatch,
            format!("this key is paired with another host, {:?}", contents.host_name),
            "use another stick, or remove the p2pfs folder from this one to give it to this host",
        ));
    }
    let keys = owner::ask(dir, &Request::List)?;
    let ids = keys.as_array().map(Vec::as_slice).unwrap_or_default();
    let recorded = ids.iter().any(|key| key["id"] == contents.id.as_str());
    Ok(recorded.then_some((contents.secret, contents.pair_key)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use p2pfs::identity::PeerId;

    use super::*;
    use crate::keys::Access;

    #[test]
    fn a_key_that_was_paired_opens_and_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (state, key) = (state(dir.path(), "state"), dir.path().join("K"));
        run(&state, args(&key, true)).unwrap();
        let opened = usb::open_key(&key, None).unwrap();
        let keys = owner::ask(&state, &Request::List).unwrap();
        assert_eq!(keys[0]["id"], opened.contents.id.as_str());
        assert_eq!(keys[0]["state"], "authorised");
        assert_eq!(keys[0]["name"], "K");
        let host = owner::ask(&state, &Request::Host).unwrap();
        let host: HostFacts = serde_json::from_value(host).unwrap();
        assert_eq!((opened.contents.host, opened.contents.host_mac), (host.peer, host.mac));
        assert_eq!(host.servers, opened.contents.servers);
    }

    #[test]
    fn pairing_again_keeps_the_identity() {
        let dir = tempfile::tempdir().unwrap();
        let (state, key) = (state(dir.path(), "state"), dir.path().join("K"));
        run(&state, args(&key, false)).unwrap();
        let first = usb::open_key(&key, None).unwrap().contents.id;
        run(&state, args(&key, true)).unwrap();
        assert_eq!(usb::open_key(&key, None).unwrap().contents.id, first);
        let id = first.as_str().to_owned();
        owner::ask(&state, &Request::Remove { id }).unwrap();
        run(&state, args(&key, true)).unwrap();
        assert_ne!(usb::open_key(&key, None).unwrap().contents.id, first);
    }

    #[test]
    fn a_key_of_another_host_and_a_copy_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("K");
        run(&state(dir.path(), "one"), args(&key, false)).unwrap();
        let two = state(dir.path(), "two");
        let refused = run(&two, args(&key, false)).unwrap_err();
        assert_eq!(refused.code, Code::HostMismatch);
        fs::remove_file(key.join("device")).unwrap();
        let refused = run(&two, args(&key, false)).unwrap_err();
        assert_eq!(refused.code, Code::KeyCopied);
    }

    #[test]
    fn a_key_without_a_server_or_a_folder_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = state(dir.path(), "state");
        let mut without = args(&dir.path().join("K"), false);
        without.rights.servers.clear();
        assert_eq!(run(&state, without).unwrap_err().code, Code::Usage);
        let nowhere = args(&dir.path().join("no/where"), false);
        assert_eq!(run(&state, nowhere).unwrap_err().code, Code::KeyMissing);
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_lost_to_another() {
        let dir = tempfile::tempdir().unwrap();
        let (state, key) = (state(dir.path(), "state"), dir.path().join("K"));
        // a dying stick answers like that
        fs::create_dir_all(key.join("p2pfs/key")).unwrap();
        run(&state, args(&key, false)).unwrap_err();
        assert_eq!(owner::ask(&state, &Request::List).unwrap(), Value::Array(Vec::new()));
    }

    fn state(dir: &Path, name: &str) -> PathBuf {
        let state = dir.join(name);
        fs::create_dir(&state).unwrap();
        state
    }

    fn args(key: &Path, authorise: bool) -> PairArgs {
        let server = format!("p2pfs://home.example:443#{}", PeerId([7; 32]).to_text());
        PairArgs {
            key: Some(key.to_owned()),
            code: false,
            seconds: 1,
            rights: Rights {
                authorise,
                access: Access::ReadWrite,
                shares: Vec::new(),
                portable: false,
                expires: None,
                servers: vec![server.parse().unwrap()],
                name: None,
            },
            map: Map::Squash,
            passphrase_file: None,
            recovery_file: None,
        }
    }
}
