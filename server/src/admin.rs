//! The status, as the running server tells it and as the command prints it.

use std::path::Path;
use std::sync::Arc;

use p2pfs::failure::{Code, Failure};
use p2pfs::net::admin::{self, Control};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::control::Hub;
use crate::relay::Relay;
use crate::udp::StunCounter;

/// What `status` tells.
#[derive(Debug, Deserialize, Serialize)]
struct Status {
    hosts: usize,
    clients: usize,
    /// Introductions since the start.
    matches: u64,
    /// Answered since the start.
    stun_requests: u64,
    relay: Relayed,
}

/// The relay's share of it.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Relayed {
    /// Matches that were relayed and are still kept.
    sessions: usize,
    /// Forwarded since the start.
    bytes: u64,
}

/// Opens the control socket.
pub(crate) async fn listen(
    state: &Path,
    hub: Hub,
    counter: Arc<StunCounter>,
    relay: Arc<Relay>,
) -> Result<Control, Failure> {
    Control::listen(state, move |request| {
        let (hub, counter, relay) = (hub.clone(), counter.clone(), relay.clone());
        Box::pin(async move { answer(&request, &hub, &counter, &relay).await })
    })
    .await
}

async fn answer(
    request: &Value,
    hub: &Hub,
    counter: &StunCounter,
    relay: &Relay,
) -> Result<Value, Failure> {
    if request["command"] != "status" {
        return Err(Failure::new(
            Code::Usage,
            "the server knows no such command",
            "use the p2pfs-server program of the same version",
        ));
    }
    let stats = hub.stats().await.unwrap_or_default();
    let (sessions, bytes) = relay.stats();
    let status = Status {
        hosts: stats.hosts,
        clients: stats.clients,
        matches: stats.matches,
        stun_requests: counter.get(),
        relay: Relayed { sessions, bytes },
    };
    Ok(json!(status))
}

/// The `status` command's output.
pub(crate) fn status(state: &Path, as_json: bool) -> Result<String, Failure> {
    let answer = admin::request(state, &json!({ "command": "status" }))?.ok_or_else(|| {
        Failure::new(
            Code::Internal,
            format!("no server is running with the state directory {}", state.display()),
            "start it with `p2pfs-server run`, or say which one with --state DIR",
        )
    })?;
    if as_json {
        return Ok(format!("{answer}\n"));
    }
    let status: Status = serde_json::from_value(answer).map_err(|error| {
        Failure::new(
            Code::Internal,
            format!("the server's answer is not a status: {error}"),
            "use the p2pfs-server program of the same version",
        )
    })?;
    Ok(format!(
        "hosts          {}\nclients        {}\nmatches        {}\nSTUN requests  {}\n\
         relay          {} matches, {} bytes\n",
        status.hosts,
        status.clients,
        status.matches,
        status.stun_requests,
        status.relay.sessions,
        status.relay.bytes
    ))
}
