//! A client without a stick (R13): its identifier is typed in here, and it gets a ticket.

use std::path::Path;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::MacAddress;
use p2pfs::identity::kind::Kind;
use p2pfs::identity::passphrase::Stretch;
use p2pfs::identity::recovery::Origin;
use p2pfs::identity::sealed::{self, DEVICE_TEXT_BYTES_MAX};
use p2pfs::identity::ticket;
use p2pfs::net::{ask, daemon};
use p2pfs::wire::session::DeviceId;

use super::{check, contents, host, new_key};
use crate::cli::AddArgs;
use crate::keys::login;
use crate::owner::{self, Request};

/// A code that is shorter is guessed.
const CODE_DIGITS_MIN: usize = 8;

/// `keys add`: prints the ticket, alone, on standard output.
///
/// # Errors
///
/// The identifier is none of its kind, or the host's files cannot be written.
pub(crate) fn run(dir: &Path, args: AddArgs) -> Result<(), Failure> {
    check(dir, args.map, &args.rights)?;
    let host = host(dir, &args.rights)?;
    let (device, stretch) = identifier(&args)?;
    let origin = Origin::from_bytes(daemon::random());
    let secrets = (origin.secret(), origin.pair_key());
    let contents = contents(&host, &args.rights, secrets, args.kind, stretch);
    let name = args.rights.name.clone().unwrap_or_else(|| match args.kind {
        // A code is half of what lets a client in
        Kind::Code => "code".to_owned(),
        Kind::Stick | Kind::Serial | Kind::Mac | Kind::Login => args.value.trim().to_owned(),
    });
    let key = new_key(&contents, &args.rights, args.map, &device, &name);
    let recorded = owner::ask(dir, &Request::Record(Box::new(key)))?;
    println!("{}", *ticket::write(&contents));
    let (id, state) = (&contents.id, recorded["state"].as_str().unwrap_or_default());
    eprintln!("recorded {id} state={state} kind={}", args.kind);
    eprintln!("hint: on the client: p2pfs-mountd import TICKET; the ticket is a secret");
    if state != "authorised" {
        eprintln!("hint: here: p2pfs-hostd keys authorise {id}");
    }
    Ok(())
}

/// What is recorded, and how a password is stretched.
fn identifier(args: &AddArgs) -> Result<(DeviceId, Option<Stretch>), Failure> {
    let (kind, value) = (args.kind, args.value.trim());
    let usage = |what: &str, hint: &str| Failure::new(Code::Usage, what, hint);
    if args.password_file.is_some() && kind != Kind::Login {
        return Err(usage("only a login has a password", "leave --password-file away"));
    }
    let device = kind.identifier(value, "");
    let is_text = !device.serial.is_empty()
        && value.len() <= DEVICE_TEXT_BYTES_MAX
        && !value.contains(|c: char| c.is_control());
    // An option on the client names the user, between commas
    if !is_text || (kind == Kind::Login && value.contains(',')) {
        return Err(usage(
            "the identifier is empty, too long, or no text",
            "p2pfs-mountd identity shows on the client what to type in here",
        ));
    }
    match kind {
        Kind::Stick => Err(usage(
            "a stick is paired where it is plugged in",
            "p2pfs-hostd pair --key K, or here --kind serial with its serial number",
        )),
        Kind::Mac if MacAddress::from_text(&device.serial).is_none() => Err(usage(
            "that is no MAC address",
            "it looks like 02:00:5e:10:00:01; p2pfs-mountd identity shows the client's own",
        )),
        Kind::Serial => {
            if let Some(why) = sealed::serial_weakness(value) {
                eprintln!("warning: this identifier is easily another's too: {why}");
                eprintln!("hint: --kind code is a better one");
            }
            Ok((device, None))
        }
        Kind::Code => {
            if device.serial.len() < CODE_DIGITS_MIN {
                eprintln!("warning: that code is short, and so easily guessed with the ticket");
                eprintln!("hint: p2pfs-mountd identity shows the client's own: take that one");
            }
            Ok((device, None))
        }
        Kind::Mac => Ok((device, None)),
        Kind::Login => {
            let prompt = format!("Password for {value}: ");
            let password = ask::passphrase(args.password_file.as_deref(), &prompt, true)?;
            let stretch = Stretch::new(daemon::random());
            Ok((login::recorded(value, &password, &stretch), Some(stretch)))
        }
    }
}
