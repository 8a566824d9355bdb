//! `doctor`: what works from here, what does not, and what to do about it.

use std::fs;
use std::path::Path;

use p2pfs::address::ServerAddress;
use p2pfs::failure::Failure;
use p2pfs::net::admin;
use p2pfs::net::doctor::{self, Check, Report, machine};
use rustix::thread::{CapabilitySet, capabilities};
use serde_json::Value;

use crate::config::Config;
use crate::owner::Request;

/// Prints what was found; the program ends with 1 if something that is needed is missing.
///
/// # Errors
///
/// The settings in `dir` cannot be read.
pub fn run(dir: &Path, servers: Vec<ServerAddress>, json: bool) -> Result<(), Failure> {
    let config = Config::load(dir)?;
    let (daemon, running) = daemon(dir);
    let mut checks = vec![running];
    checks.extend(shares(&config));
    checks.push(privilege());
    checks.extend([machine::state(dir), machine::buffers(), machine::usb()]);
    let servers = if servers.is_empty() { config.servers } else { servers };
    let network = doctor::examine(&servers, "p2pfs-hostd")?;
    Report::new(checks, network, daemon).finish(json);
    Ok(())
}

/// What a running daemon says of itself.
fn daemon(dir: &Path) -> (Value, Check) {
    let asked = serde_json::to_value(Request::Status).unwrap_or_default();
    match admin::request(dir, &asked) {
        Ok(Some(status)) => {
            let age = status["rendezvous"]["age_s"].as_f64();
            let what = age.map_or_else(
                || "hostd runs; no server has confirmed it yet".to_owned(),
                |age| format!("hostd runs; a server confirmed it {age:.0} s ago"),
            );
            (status, Check::works("hostd", what))
        }
        Ok(None) => {
            let hint = "run: p2pfs-hostd serve";
            (Value::Null, Check::note("hostd", "hostd does not run here", hint))
        }
        Err(failure) => (Value::Null, Check::missing("hostd", failure.what, failure.hint)),
    }
}

fn shares(config: &Config) -> Vec<Check> {
    if config.shares.is_empty() {
        let hint = "name one: p2pfs-hostd serve --share NAME=DIR";
        return vec![Check::note("share", "no share is named yet", hint)];
    }
    let check = |(name, share): (&String, &crate::config::ShareConfig)| {
        let path = share.path.display();
        match fs::read_dir(&share.path) {
            Ok(_) => Check::works("share", format!("share {name}: {path} can be read")),
            Err(error) => Check::missing(
                "share",
                format!("share {name}: {path} cannot be read: {error}"),
                "mount its disk, or see to the owner and mode of the directory",
            ),
        }
    };
    config.shares.iter().map(check).collect()
}

/// What only root can do.
fn privilege() -> Check {
    let may = capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::DAC_READ_SEARCH));
    if may {
        return Check::works("privilege", "files stay open over a restart of hostd");
    }
    Check::note(
        "privilege",
        "files that are open do not stay so when hostd is started again, and all changes are made \
         as this user",
        "run hostd as root, or give it CAP_DAC_READ_SEARCH",
    )
}
