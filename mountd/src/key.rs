//! `key show`: what is on a key, without its secrets.

use std::path::Path;

use p2pfs::failure::Failure;
use p2pfs::usb::read_public;
use serde_json::json;

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
        });
        println!("{value:#}");
    } else {
        println!("key       {}", public.id);
        println!("host      {} ({})", public.host_name, public.host);
        println!("host MAC  {}", public.host_mac);
        for server in servers {
            println!("server    {server}");
        }
        println!("portable  {}", if public.portable { "yes" } else { "no" });
    }
    Ok(())
}
