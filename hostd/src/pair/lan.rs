//! Pairing over the local network (R13): a code is shown here and typed there.

use std::path::Path;
use std::time::{Duration, Instant};

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::sealed::KeyId;
use p2pfs::identity::{PairKey, PeerId};
use p2pfs::net::daemon;
use p2pfs::net::lan::{Offering, Refusal};
use p2pfs::wire::pairing::{Offer, Request};
use serde_json::Value;

use super::{host, warn_of};
use crate::cli::PairArgs;
use crate::machine;
use crate::owner::{self, HostFacts, NewKey};

/// `pair --code`: prints the code, waits for who comes with it, and says who it is.
///
/// # Errors
///
/// Nobody came in time, or somebody came with another code; or the host's files cannot be written.
pub(crate) fn run(dir: &Path, args: &PairArgs) -> Result<(), Failure> {
    let facts = host(dir, &args.rights)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| {
        let hint = "check the limits of this user: ulimit -a";
        Failure::new(Code::Internal, format!("cannot start: {error}"), hint)
    })?;
    let (request, recorded) = runtime.block_on(offer(dir, &facts, args))?;
    println!(
        "paired {} state={} mac={}; safe to unplug",
        KeyId::of(request.peer),
        recorded["state"].as_str().unwrap_or_default(),
        facts.mac
    );
    Ok(())
}

async fn offer(
    dir: &Path,
    facts: &HostFacts,
    args: &PairArgs,
) -> Result<(Request, Value), Failure> {
    let offering = Offering::start()?;
    println!("{}", *offering.code().to_text());
    let _ = std::io::Write::flush(&mut std::io::stdout());
    eprintln!(
        "hint: on the client, on the same network: p2pfs-mountd import CODE; good once, for {} s",
        args.seconds
    );
    let until = Instant::now() + Duration::from_secs(args.seconds.into());
    let mut recorded = Value::Null;
    let record = async |request: &Request| {
        if request.device.product == "directory" || request.kind.as_str() == "stick" {
            warn_of(&request.device);
        }
        let pair_key = PairKey::from_bytes(daemon::random());
        let offer = Offer {
            host: facts.peer,
            host_mac: facts.mac,
            host_name: facts.name.clone(),
            servers: facts.servers.iter().map(ToString::to_string).collect(),
            pair_key: *pair_key.bytes(),
            portable: args.rights.portable,
        };
        let key = new_key(request, pair_key, facts, args);
        recorded = owner::ask(dir, &owner::Request::Record(Box::new(key)))?;
        Ok(offer)
    };
    let forget = async |request: &Request| {
        let id = KeyId::of(request.peer).as_str().to_owned();
        if let Err(failure) = owner::ask(dir, &owner::Request::Remove { id }) {
            eprintln!("{}", failure.report());
        }
    };
    let paired = tokio::select! {
        paired = offering.serve(until, record, forget) => paired,
        () = daemon::terminated() => {
            return Err(Failure::new(Code::Internal, "ended by a signal", "the code is void"));
        }
    };
    paired.map(|request| (request, recorded)).map_err(|refusal| refused(refusal, args.seconds))
}

fn new_key(request: &Request, pair_key: PairKey, facts: &HostFacts, args: &PairArgs) -> NewKey {
    let rights = &args.rights;
    let peer: PeerId = request.peer;
    let name = rights.name.as_deref().unwrap_or(&request.client_name);
    NewKey {
        peer,
        pair_key,
        device: request.device.clone(),
        name: machine::label(name).unwrap_or_else(|| "key".into()),
        authorise: rights.authorise,
        access: rights.access,
        shares: rights.shares.clone(),
        map: args.map,
        portable: rights.portable,
        kind: request.kind,
        expires: rights.expires.and_then(|lifetime| lifetime.until()),
        recovery: None,
        servers: facts.servers.clone(),
    }
}

fn refused(refusal: Refusal, seconds: u32) -> Failure {
    match refusal {
        Refusal::Failed(failure) => failure,
        Refusal::WrongCode => Failure::new(
            Code::KeyUnauthorised,
            "somebody came with a wrong code: this one is void",
            "run it again for a new code, and compare what is typed on the client",
        ),
        Refusal::Expired => Failure::new(
            Code::HostOffline,
            format!("nobody came with the code within {seconds} s: it is void"),
            "run it again, with --for SECONDS for more time; both must be on the same network",
        ),
        Refusal::Unconfirmed => Failure::new(
            Code::HostOffline,
            "the client broke off before it had its key: it is not recorded",
            "run it again for a new code, and look at what the client said",
        ),
    }
}
