//! `status`.

use std::path::Path;

use p2pfs::failure::Failure;
use serde_json::Value;

use crate::owner::{self, Request};

/// Prints what goes on.
///
/// # Errors
///
/// The host's files cannot be read.
pub fn run(dir: &Path, json: bool) -> Result<(), Failure> {
    let status = owner::ask(dir, &Request::Status)?;
    if json {
        println!("{status:#}");
    } else {
        print!("{}", text(&status));
    }
    Ok(())
}

fn text(status: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let mut lines = vec![format!(
        "host {} ({}), MAC {}, {}, {} keys",
        word(&status["name"]),
        word(&status["id"]),
        word(&status["mac"]),
        if status["running"] == true { "running" } else { "not running" },
        status["keys"],
    )];
    for share in list("shares") {
        let mut notes = String::new();
        if share["read_only"] == true {
            notes.push_str(", read only");
        }
        if share["online"] == false {
            notes.push_str(", OFFLINE");
        }
        lines.push(format!("share {}: {}{notes}", word(&share["name"]), word(&share["path"])));
    }
    for server in list("servers") {
        let state = if server["connected"] == true { "connected" } else { "not reachable" };
        let age = server["age_s"].as_f64();
        let age = age.map_or_else(String::new, |age| format!(", registered {age:.0} s ago"));
        lines.push(format!("server {}: {state}{age}", word(&server["address"])));
    }
    for session in list("sessions") {
        lines.push(format!(
            "session of key {} on {}: share {}, {}, {}",
            word(&session["key"]),
            word(&session["client"]),
            word(&session["share"]),
            word(&session["state"]),
            session["path"]["rung"].as_str().unwrap_or("no path"),
        ));
    }
    for client in list("absent") {
        let left = match (client["entries"].as_u64(), client["bytes"].as_u64()) {
            (Some(entries), Some(bytes)) => format!("keeps {entries} changes ({bytes} bytes)"),
            _ => "changes may be missing".into(),
        };
        lines.push(format!(
            "away: {} with key {}, share {}: {left}",
            word(&client["client"]),
            word(&client["key"]),
            word(&client["share"]),
        ));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_told_in_lines() {
        let status = json!({
            "id": "ID", "name": "home", "mac": "02:00:00:00:00:01", "running": true, "keys": 2,
            "shares": [{ "name": "a", "path": "/a", "read_only": true, "online": false }],
            "servers": [{ "address": "p2pfs://s", "connected": true, "age_s": 1.2 }],
            "sessions": [{
                "key": "0123", "client": "laptop", "share": "a", "state": "connected",
                "path": { "rung": "udp-private" },
            }],
            "absent": [
                { "client": "desktop", "key": "4567", "share": "a", "entries": 2, "bytes": 9 },
                { "client": "phone", "key": "89ab", "share": "a", "entries": null, "bytes": null },
            ],
        });
        assert_eq!(
            text(&status),
            "host home (ID), MAC 02:00:00:00:00:01, running, 2 keys\n\
             share a: /a, read only, OFFLINE\nserver p2pfs://s: connected, registered 1 s ago\n\
             session of key 0123 on laptop: share a, connected, udp-private\n\
             away: desktop with key 4567, share a: keeps 2 changes (9 bytes)\n\
             away: phone with key 89ab, share a: changes may be missing\n"
        );
    }
}
