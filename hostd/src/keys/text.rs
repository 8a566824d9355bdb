//! Keys as text: in the file, and on the terminal.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// A line of `keys list`, from what `keys list --json` shows.
pub(super) fn line(key: &Value) -> String {
    let text = |field: &str| key[field].as_str().unwrap_or_default();
    let shares: Vec<&str> = key["shares"]
        .as_array()
        .map(|names| names.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let shares = if shares.is_empty() { "all shares".into() } else { shares.join(",") };
    // What is usual goes without saying
    let map = if text("map") == "identity" { "  map=identity" } else { "" };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs());
    let seen = key["last_seen"].as_u64().map_or_else(
        || "never seen".into(),
        |at| format!("seen {} from {}", ago(now.saturating_sub(at)), text("last_from")),
    );
    let kind = if text("kind") == "stick" { "" } else { &format!("  {}", text("kind")) };
    let mut notes = key["expires"].as_str().map_or_else(String::new, |at| format!("  until {at}"));
    if key["weak_serial"] == true {
        notes.push_str("  weak serial number");
    }
    if key["recovered"] == true {
        notes.push_str("  recovered from paper");
    }
    format!(
        "{}  {:12}{kind}  {}  {shares}{map}  {:?}{notes}  {seen}",
        text("id"),
        text("state"),
        text("access"),
        text("name"),
    )
}

fn ago(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..60 => return "just now".into(),
        60..3600 => (seconds / 60, "min"),
        3600..172_800 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{number} {unit} ago")
}

/// A public key as base64url.
pub(crate) mod peer {
    use p2pfs::identity::PeerId;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(peer: &PeerId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&peer.to_text())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PeerId, D::Error> {
        let text = String::deserialize(from)?;
        PeerId::from_text(&text).ok_or_else(|| de::Error::custom("not a public key"))
    }
}

/// A pair key in the same form; it only goes into private files and sockets.
pub(crate) mod pair_key {
    use p2pfs::identity::{PairKey, PeerId};
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(key: &PairKey, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&PeerId(*key.bytes()).to_text())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PairKey, D::Error> {
        let text = String::deserialize(from)?;
        PeerId::from_text(&text)
            .map(|bytes| PairKey::from_bytes(bytes.0))
            .ok_or_else(|| de::Error::custom("not a pair key"))
    }
}
