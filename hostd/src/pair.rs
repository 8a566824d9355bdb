//! Pairing with the key in the host (R12): who the device is goes into the host's list, who the
//! host is goes onto the key.

use std::path::{Path, PathBuf};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::{self, KEY_SERVERS_MAX, KeyContents, KeyId};
use p2pfs::identity::{PairKey, PeerId, SecretKey};
use p2pfs::net::daemon;
use p2pfs::usb;
use p2pfs::wire::session::DeviceId;

use crate::cli::PairArgs;
use crate::export::acting;
use crate::keys::Map;
use crate::machine;
use crate::owner::{self, HostFacts, NewKey, Request};

/// `pair`.
///
/// # Errors
///
/// The key cannot be read or written, belongs to another host or was copied, or the host's files
/// cannot be written.
pub fn run(dir: &Path, args: PairArgs) -> Result<(), Failure> {
    if args.map == Map::Identity && !acting::possible() {
        return Err(Failure::new(
            Code::Usage,
            "map=identity needs p2pfs-hostd as root: only root may act as other users",
            "run this and p2pfs-hostd serve as root, or leave --map identity away",
        ));
    }
    let folder = folder(&args.key)?;
    let device = usb::ensure_device(&folder)?;
    warn_of(&device);
    let host = owner::ask(dir, &Request::Host)?;
    let host: HostFacts = serde_json::from_value(host).map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("the running daemon says something else: {error}"),
            "start it again, with the same version as this program",
        )
    })?;
    let servers = if args.servers.is_empty() { host.servers.clone() } else { args.servers.clone() };
    if servers.is_empty() || servers.len() > KEY_SERVERS_MAX {
        return Err(Failure::new(
            Code::Usage,
            format!("a key names 1 to {KEY_SERVERS_MAX} servers, and this one {}", servers.len()),
            "name the server as p2pfs-server prints it: --server p2pfs://HOST:PORT#FINGERPRINT",
        ));
    }
    let known = known_secrets(dir, &folder, &host)?;
    let new = known.is_none();
    let (secret, pair_key) = known.unwrap_or_else(|| {
        let secret = SecretKey::from_seed(daemon::random());
        (secret, PairKey::from_bytes(daemon::random()))
    });
    let contents = KeyContents {
        id: KeyId::of(secret.peer_id()),
        secret,
        pair_key,
        host: host.peer,
        host_mac: host.mac,
        host_name: host.name,
        servers,
        portable: args.portable,
    };
    let recorded = owner::ask(dir, &Request::Record(new_key(args, &folder, &device, &contents)))?;
    let written = usb::write_key(&folder, &device, &contents);
    if written.is_err() && new {
        // Nobody has the secret of what was recorded
        let id = contents.id.as_str().to_owned();
        owner::ask(dir, &Request::Remove { id })?;
    }
    written?;
    println!(
        "paired {} state={} mac={}; safe to unplug",
        contents.id,
        recorded["state"].as_str().unwrap_or_default(),
        contents.host_mac
    );
    Ok(())
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
        eprintln!("hint: a stick of another make is a better key");
    }
}

/// The secrets of a key that this host knows already: pairing it again keeps them.
fn known_secrets(
    dir: &Path,
    folder: &Path,
    host: &HostFacts,
) -> Result<Option<(SecretKey, PairKey)>, Failure> {
    let contents = match usb::open_key(folder) {
        Ok(opened) => opened.contents,
        Err(failure) if failure.code == Code::KeyMissing => return Ok(None),
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

fn new_key(args: PairArgs, folder: &Path, device: &DeviceId, contents: &KeyContents) -> NewKey {
    let peer: PeerId = contents.secret.peer_id();
    let of_folder = || Some(folder.file_name()?.to_string_lossy().into_owned());
    let name = args.name.or_else(of_folder).unwrap_or_default();
    NewKey {
        peer,
        pair_key: contents.pair_key.clone(),
        device: device.clone(),
        name: machine::label(&name).unwrap_or_else(|| "key".into()),
        authorise: args.authorise,
        access: args.access,
        shares: args.shares,
        map: args.map,
        portable: args.portable,
        servers: contents.servers.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::keys::Access;

    #[test]
    fn a_key_that_was_paired_opens_and_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let (state, key) = (state(dir.path(), "state"), dir.path().join("K"));
        run(&state, args(&key, true)).unwrap();
        let opened = usb::open_key(&key).unwrap();
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
        let first = usb::open_key(&key).unwrap().contents.id;
        run(&state, args(&key, true)).unwrap();
        assert_eq!(usb::open_key(&key).unwrap().contents.id, first);
        let id = first.as_str().to_owned();
        owner::ask(&state, &Request::Remove { id }).unwrap();
        run(&state, args(&key, true)).unwrap();
        assert_ne!(usb::open_key(&key).unwrap().contents.id, first);
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
        without.servers.clear();
        assert_eq!(run(&state, without).unwrap_err().code, Code::Usage);
        let nowhere = args(&dir.path().join("no/where"), false);
        assert_eq!(run(&state, nowhere).unwrap_err().code, Code::KeyMissing);
    }

    fn state(dir: &Path, name: &str) -> PathBuf {
        let state = dir.join(name);
        fs::create_dir(&state).unwrap();
        state
    }

    fn args(key: &Path, authorise: bool) -> PairArgs {
        let server = format!("p2pfs://home.example:443#{}", PeerId([7; 32]).to_text());
        PairArgs {
            key: key.to_owned(),
            authorise,
            access: Access::ReadWrite,
            shares: Vec::new(),
            map: Map::Squash,
            portable: false,
            servers: vec![server.parse().unwrap()],
            name: None,
        }
    }
}
