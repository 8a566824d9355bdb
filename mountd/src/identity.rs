//! What this machine is known by where no stick says it: what `identity` prints, for the host's
//! owner to type in, is what is shown to the host later (R9, R13).

use std::fs;
use std::io;
use std::path::Path;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::kind::{Kind, MAC_ADDRESSES_MAX};
use p2pfs::identity::sealed::{DEVICE_TEXT_BYTES_MAX, KeyContents};
use p2pfs::identity::{base32, login_proof};
use p2pfs::net::daemon;
use p2pfs::usb::machine;
use p2pfs::wire::session::DeviceId;
use serde_json::json;

use crate::mounted::MountRequest;
use crate::store;

const CODE_FILE: &str = "code";

/// `identity`.
pub(crate) fn show(state: &Path, as_json: bool) -> Result<(), Failure> {
    let code = code(state)?;
    let macs: Vec<String> = machine::mac_addresses().iter().map(ToString::to_string).collect();
    let serials = machine::serials();
    if as_json {
        println!("{:#}", json!({ "code": code, "mac": macs, "serial": serials }));
        return Ok(());
    }
    println!("code    {code}");
    for mac in macs {
        println!("mac     {mac}");
    }
    for serial in serials {
        println!("serial  {serial}");
    }
    eprintln!("hint: on the host: p2pfs-hostd keys add --kind code {code}; it prints a ticket");
    Ok(())
}

/// `identity --code CODE`: keys that came with the code from before are no longer good here.
pub(crate) fn set_code(state: &Path, code: &str) -> Result<(), Failure> {
    let code = code.trim();
    let is_text = (1..=DEVICE_TEXT_BYTES_MAX).contains(&code.len())
        && !code.contains(|c: char| c.is_control());
    if !is_text {
        let hint = "type the code that was typed in on the host";
        return Err(Failure::new(Code::Usage, "the code is empty, too long, or no text", hint));
    }
    let path = state.join(CODE_FILE);
    daemon::write_private(&path, format!("{code}\n").as_bytes())
        .map_err(|error| unusable(&path, &error))
}

/// The identification code of this state directory; made at the first time.
pub(crate) fn code(state: &Path) -> Result<String, Failure> {
    let path = state.join(CODE_FILE);
    let failed = |error: io::Error| unusable(&path, &error);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let code = base32::grouped(&base32::encode(&daemon::random::<10>()));
            daemon::write_private(&path, format!("{code}\n").as_bytes()).map_err(failed)?;
            Ok(code)
        }
        Err(error) => Err(failed(error)),
    }
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    let hint = "check the owner of the state directory and the space on its disk";
    Failure::new(Code::Internal, format!("{}: {error}", path.display()), hint)
}

/// What the host is shown with this key, which was opened in `dir` beside `device`.
pub(crate) fn shown(
    request: &MountRequest,
    dir: &Path,
    device: &DeviceId,
    key: &KeyContents,
) -> Result<DeviceId, Failure> {
    let (kind, options) = (key.kind, &request.options);
    if options.login.is_some() && kind != Kind::Login {
        let what = "this key is no login";
        return Err(Failure::new(Code::Usage, what, "leave the option login= away"));
    }
    if let Some(shown) = &key.shows {
        return Ok(shown.clone());
    }
    Ok(match kind {
        Kind::Serial if store::is_kept(&request.state, dir) => {
            kind.identifier(&machine::serials().join(","), "")
        }
        Kind::Stick | Kind::Serial => device.clone(),
        Kind::Code => kind.identifier(&code(&request.state)?, ""),
        Kind::Mac => {
            let macs = machine::mac_addresses();
            let macs: Vec<String> =
                macs.iter().take(MAC_ADDRESSES_MAX).map(ToString::to_string).collect();
            kind.identifier(&macs.join(","), "")
        }
        Kind::Login => {
            let (Some(user), Some(stretch)) = (&options.login, &key.login) else {
                return Err(Failure::new(
                    Code::KeyUnauthorised,
                    "this key wants a user name and a password",
                    "mount it with -o login=USER",
                ));
            };
            let password = request.secrets.password(options)?;
            kind.identifier(&login_proof(stretch, &password), user)
        }
    })
}
