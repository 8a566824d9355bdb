//! What the host says of other clients that are away, and may have changes that have not arrived.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use p2pfs::net::session::ClientSession;
use p2pfs::wire::call::Absent;
use p2pfs::wire::errno::Errno;
use serde_json::{Value, json};

/// How long whoever asks for the status waits for the host.
const ANSWER: Duration = Duration::from_millis(300);

/// What was said last.
#[derive(Debug, Default)]
pub(super) struct Absentees(Mutex<Vec<Absent>>);

impl Absentees {
    /// Asks the host, where it is there. What it does not answer soon stays as it was.
    pub(super) async fn ask(&self, session: &ClientSession) {
        if session.is_connected() {
            self.hear(session.absent()).await;
        }
    }

    /// The host was asked. What it does not answer soon stays as it was.
    pub(super) async fn hear(&self, asked: impl Future<Output = Result<Vec<Absent>, Errno>>) {
        if let Ok(Ok(said)) = tokio::time::timeout(ANSWER, asked).await {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = said;
        }
    }

    /// As `status --json` shows them.
    pub(super) fn to_json(&self) -> Value {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |one: &Absent| {
            json!({
                "client": one.client,
                "share": one.share,
                "away_s": one.away_s,
                "entries": one.keeps.map(|keeps| keeps.entries),
                "bytes": one.keeps.map(|keeps| keeps.bytes),
            })
        };
        said.iter().map(one).collect()
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        lines(&self.to_json())
    }
}

/// What `status --json` shows, for people.
pub(crate) fn lines(absent: &Value) -> Vec<String> {
    absent.as_array().into_iter().flatten().map(line).collect()
}

fn line(one: &Value) -> String {
    let text = |field: &str| one[field].as_str().unwrap_or_default();
    let (client, share) = (text("client"), text("share"));
    let away = ago(one["away_s"].as_u64().unwrap_or_default());
    match (one["entries"].as_u64(), one["bytes"].as_u64()) {
        (Some(entries), Some(bytes)) => format!(
            "{client} went {away} with {entries} changes of {share} ({bytes} bytes) that have not \
             arrived: plug the key in there",
        ),
        _ => format!(
            "{client} went {away} without a word: what was changed of {share} there last may not \
             have arrived",
        ),
    }
}

fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "days"),
    };
    format!("{count} {unit} ago")
}

#[cfg(test)]
mod tests {
    use p2pfs::wire::call::Backlog;

    use super::*;

    #[test]
    fn who_is_away_is_told_in_a_line() {
        let mut one =
            Absent { client: "laptop".into(), share: "disk".into(), away_s: 7300, keeps: None };
        assert_eq!(
            Absentees(Mutex::new(vec![one.clone()])).lines(),
            [
                "laptop went 2 h ago without a word: what was changed of disk there last may not have \
              arrived"
            ]
        );
        one.keeps = Some(Backlog { entries: 3, bytes: 5000 });
        one.away_s = 61;
        assert_eq!(
            Absentees(Mutex::new(vec![one])).lines(),
            ["laptop went 1 min ago with 3 changes of disk (5000 bytes) that have not arrived: \
              plug the key in there"]
        );
    }
}
