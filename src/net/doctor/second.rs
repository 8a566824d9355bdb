//! A second opinion on the NAT, by `stun-client`, in a process of its own.
//!
//! That crate runs on another reactor and panics on answers that it does not expect: `doctor` must
//! survive both, so it starts its own program again for this.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use stun_client::nat_behavior_discovery::{
    check_nat_filtering_behavior, check_nat_mapping_behavior,
};
use stun_client::{Client, Options};
use tokio::process::Command;

use super::SECOND_OPINION;

/// Time for it: five requests that may all stay without an answer.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Time for an answer, ms.
const ANSWER_TIMEOUT_MS: u64 = 700;
/// Longer than any answer, bytes.
const ANSWER_BYTES_MAX: usize = 1500;
/// What it may print, bytes.
const PRINTED_BYTES_MAX: usize = 4096;

/// Asks in another process; what it says, or `{"error": ...}`.
pub(super) async fn ask(server: SocketAddr) -> Value {
    let asked = async {
        let program = std::env::current_exe()?;
        Command::new(program)
            .args([SECOND_OPINION, &server.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
    };
    let failed = |why: String| json!({ "error": why });
    match tokio::time::timeout(TIMEOUT, asked).await {
        Err(_) => failed("it took too long".to_owned()),
        Ok(Err(error)) => failed(error.to_string()),
        Ok(Ok(output)) if output.status.success() && output.stdout.len() <= PRINTED_BYTES_MAX => {
            serde_json::from_slice(&output.stdout).unwrap_or_else(|error| failed(error.to_string()))
        }
        Ok(Ok(output)) => failed(format!("it ended with {}", output.status)),
    }
}

/// The other process: what `stun-client` says of the NAT, as JSON.
pub(super) async fn answer(server: SocketAddr) -> Value {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let options =
        || Some(Options { recv_timeout_ms: ANSWER_TIMEOUT_MS, recv_buf_size: ANSWER_BYTES_MAX });
    // a socket for each: who was sent to may answer, which would spoil the filter's test
    let mapping = async {
        let mut client = Client::new(any, options()).await?;
        check_nat_mapping_behavior(&mut client, server).await
    };
    let filtering = async {
        let mut client = Client::new(any, options()).await?;
        check_nat_filtering_behavior(&mut client, server).await
    };
    let filtering = match filtering.await {
        Ok(found) => json!(format!("{:?}", found.filtering_type)),
        Err(error) => json!({ "error": error.to_string() }),
    };
    let (mapping, mapped) = match mapping.await {
        Ok(found) => (
            json!(format!("{:?}", found.mapping_type)),
            found.test1_xor_mapped_addr.map(|mapped| mapped.to_string()),
        ),
        Err(error) => (json!({ "error": error.to_string() }), None),
    };
    json!({ "mapping": mapping, "filtering": filtering, "mapped": mapped })
}
