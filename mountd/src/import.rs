//! `import`: a key from a ticket, from the host over the local network, or from paper.

use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use p2pfs::address::AddressError;
use p2pfs::failure::{Code as ErrorCode, Failure};
use p2pfs::identity::kind::Kind;
use p2pfs::identity::passphrase::Passphrase;
use p2pfs::identity::sealed::{KeyContents, KeyId, serial_weakness};
use p2pfs::identity::{PairKey, SecretKey, recovery, ticket};
use p2pfs::limits::TICKET_BYTES_MAX;
use p2pfs::net::{ask, daemon, lan};
use p2pfs::proto::pairing::Code;
use p2pfs::usb;
use p2pfs::wire::pairing;
use zeroize::Zeroizing;

use crate::mounted::meet::machine_name;
use crate::{identity, store};

/// How long to look for a host that has the code out.
const SEEK: Duration = Duration::from_secs(10);

/// What `import` is told.
#[derive(Debug)]
pub(crate) struct ImportRequest {
    /// A ticket, a one-time code, a recovery code, or `-` for standard input.
    pub(crate) what: Zeroizing<String>,
    /// The host to ask for a one-time code; without it everybody on the local network is asked.
    pub(crate) host: Option<IpAddr>,
    /// The stick or key directory to put it onto.
    pub(crate) to: Option<PathBuf>,
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// Imports a key, and says how to mount with it.
pub(crate) fn run(state: &Path, request: ImportRequest) -> Result<(), Failure> {
    let text = text(request.what)?;
    let passphrase = request.passphrase_file.as_deref();
    let passphrase = passphrase.map(|file| ask::passphrase(Some(file), "", false)).transpose()?;
    let to = request.to.as_deref().map(destination).transpose()?;
    if Code::is_like(&text) {
        let code: Code = text.parse().map_err(|_| damaged("no code"))?;
        return pair(state, &code, request.host, to.as_deref(), passphrase.as_ref());
    }
    let (contents, must_be_on_stick) = if text.starts_with(ticket::TICKET_START) {
        let read = ticket::read(&text).map_err(|error| damaged(&error.to_string()))?;
        (read, false)
    } else if recovery::is_like(&text) {
        let read = recovery::read(&text).map_err(|error| damaged(&error.to_string()))?;
        let key_only = !read.portable;
        (read, key_only)
    } else {
        return Err(damaged("neither a ticket nor a code"));
    };
    if must_be_on_stick && to.is_none() {
        return Err(Failure::new(
            ErrorCode::Usage,
            "this key's owner does not allow it to be kept without a stick",
            "name the new stick, or a folder: import --to K ...",
        ));
    }
    put(state, &contents, to.as_deref(), passphrase.as_ref())
}

/// Pairs with the host that has the code out. The private key never leaves this machine.
fn pair(
    state: &Path,
    code: &Code,
    host: Option<IpAddr>,
    to: Option<&Path>,
    passphrase: Option<&Passphrase>,
) -> Result<(), Failure> {
    let secret = SecretKey::from_seed(daemon::random());
    let (kind, device) = match to {
        Some(dir) => {
            check_free(dir, &KeyId::of(secret.peer_id()))?;
            (Kind::Stick, usb::ensure_device(dir)?)
        }
        None => (Kind::Code, Kind::Code.identifier(&identity::code(state)?, "")),
    };
    let client_name = machine_name();
    let request = pairing::Request { peer: secret.peer_id(), kind, device, client_name };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        let hint = "see that this user may start threads (ulimit -u)";
        Failure::new(ErrorCode::Internal, format!("cannot start: {error}"), hint)
    })?;
    runtime.block_on(async {
        let joined = lan::join(code, &request, host, SEEK).await?;
        let contents = offered(secret, kind, &joined.offer)?;
        put(state, &contents, to, passphrase)?;
        joined.done().await
    })
}

fn offered(secret: SecretKey, kind: Kind, offer: &pairing::Offer) -> Result<KeyContents, Failure> {
    let servers: Result<_, _> = offer.servers.iter().map(|server| server.parse()).collect();
    let servers = servers.map_err(|error: AddressError| {
        let hint = "use the same version of p2pfs on both sides";
        Failure::new(ErrorCode::Internal, format!("the host names a server: {error}"), hint)
    })?;
    Ok(KeyContents {
        id: KeyId::of(secret.peer_id()),
        secret,
        pair_key: PairKey::from_bytes(offer.pair_key),
        host: offer.host,
        host_mac: offer.host_mac,
        host_name: offer.host_name.clone(),
        servers,
        portable: offer.portable,
        kind,
        login: None,
        shows: None,
    })
}

fn put(
    state: &Path,
    contents: &KeyContents,
    to: Option<&Path>,
    passphrase: Option<&Passphrase>,
) -> Result<(), Failure> {
    let dir = match to {
        None => store::keep(state, contents, passphrase)?,
        Some(dir) => {
            check_free(dir, &contents.id)?;
            let device = usb::ensure_device(dir)?;
            if let Some(why) = serial_weakness(&device.serial) {
                eprintln!("warning: this stick is easily mistaken for another: {why}");
                eprintln!("hint: a stick of another make is a better key");
            }
            usb::write_key(dir, &device, contents, passphrase)?;
            dir.to_owned()
        }
    };
    println!("imported {} to {}", contents.id, dir.display());
    eprintln!("hint: p2pfs-mountd mount {}:SHARE MOUNTPOINT", dir.display());
    Ok(())
}

/// A key that is there is not lost to another.
fn check_free(dir: &Path, id: &KeyId) -> Result<(), Failure> {
    let is_free = match usb::read_public(dir) {
        Ok(public) => public.id == *id,
        Err(failure) => failure.code == ErrorCode::KeyMissing && !usb::is_taken(dir),
    };
    if is_free {
        return Ok(());
    }
    Err(Failure::new(
        ErrorCode::Usage,
        format!("there is another key in {} already", dir.display()),
        "use another stick, or remove the p2pfs folder from this one",
    ))
}

fn destination(to: &Path) -> Result<PathBuf, Failure> {
    if to == Path::new("usb") {
        return usb::stick::only_folder();
    }
    let dir = std::path::absolute(to).unwrap_or_else(|_| to.to_owned());
    // the folder itself may be made, but not a mistyped path to it
    if dir.parent().is_some_and(|above| !above.is_dir()) {
        return Err(Failure::new(
            ErrorCode::KeyMissing,
            format!("there is no folder {}", to.display()),
            "plug the stick in and mount it, or name a folder that exists",
        ));
    }
    Ok(dir)
}

fn text(what: Zeroizing<String>) -> Result<Zeroizing<String>, Failure> {
    let text = if what.as_str() == "-" {
        let mut text = Zeroizing::new(String::with_capacity(TICKET_BYTES_MAX));
        let stdin = std::io::stdin().lock();
        let read = stdin.take(TICKET_BYTES_MAX as u64).read_to_string(&mut text);
        read.map_err(|error| damaged(&error.to_string()))?;
        text
    } else {
        what
    };
    Ok(Zeroizing::new(text.trim().to_owned()))
}

fn damaged(what: &str) -> Failure {
    Failure::new(
        ErrorCode::Usage,
        what,
        "give what p2pfs-hostd keys add or pair --code printed, or the lines of the recovery code; \
         - reads them from standard input",
    )
}
