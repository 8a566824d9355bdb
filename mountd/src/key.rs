//! A mount's key, opened; `key show`: what is on a key, without its secrets.

use std::path::Path;

use p2pfs::failure::Failure;
use p2pfs::identity::passphrase::Passphrase;
use p2pfs::identity::sealed::KeyContents;
use p2pfs::usb::{open_key, read_public};
use p2pfs::wire::session::DeviceId;
use serde_json::json;

use crate::mounted::MountRequest;
use crate::{identity, store};

/// A key that opened.
pub(crate) struct Opened {
    /// What it is sealed to.
    pub(crate) device: DeviceId,
    /// What the host is shown.
    pub(crate) shown: DeviceId,
    pub(crate) contents: KeyContents,
    passphrase: Option<Passphrase>,
}

/// Opens the key in `dir`, with what was typed for it.
pub(crate) fn open(request: &MountRequest, dir: &Path) -> Result<Opened, Failure> {
    let passphrase = request.secrets.passphrase(&request.options)?;
    let opened = open_key(dir, passphrase.as_ref())?;
    let (device, contents) = (opened.device, opened.contents);
    let shown = identity::shown(request, dir, &device, &contents)?;
    Ok(Opened { device, shown, contents, passphrase })
}

impl Opened {
    /// The host has approved it: a copy is kept here if its owner allows that.
    pub(crate) fn follow(&self, request: &MountRequest, dir: &Path) {
        if store::is_kept(&request.state, dir) {
            return;
        }
        let passphrase = self.passphrase.as_ref();
        let followed = store::follow(&request.state, dir, &self.device, &self.contents, passphrase);
        if let Err(failure) = followed {
            tracing::warn!("the key is not kept on this machine: {failure}");
        }
    }
}

/// Prints the readable part of a key.
pub(crate) fn show(key: &Path, as_json: bool) -> Result<(), Failure> {
    let public = read_public(key)?;
    let servers: Vec<String> = public.servers.iter().map(ToString::to_string).collect();
    if as_json {
        let value = json!({
            "id": public.id.to_string(),
            "host_mac": public.host_mac.to_string(),
            "host_key": public.host.to_text(),
            "host_name": public.host_name,
            "servers": servers,
            "portable": public.portable,
            "kind": public.kind,
            "passphrase": public.passphrase.is_some(),
        });
        println!("{value:#}");
    } else {
        println!("key       {}", public.id);
        println!("host      {} ({})", public.host_name, public.host);
        println!("host MAC  {}", public.host_mac);
        for server in servers {
            println!("server    {server}");
        }
        let yes = |it: bool| if it { "yes" } else { "no" };
        println!("portable  {}", yes(public.portable));
        println!("kind      {}", public.kind);
        println!(
            "sealed    {}",
            if public.passphrase.is_some() { "to a passphrase too" } else { "to its device" }
        );
    }
    Ok(())
}
