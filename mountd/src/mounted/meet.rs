//! Meeting the host of a key.

use std::sync::Arc;

use p2pfs::failure::Failure;
use p2pfs::identity::MacAddress;
use p2pfs::identity::sealed::KeyContents;
use p2pfs::net::session::{ClientConfig, ClientSession};
use p2pfs::wire::session::DeviceId;

use super::MountRequest;
use crate::{key, known_hosts, sealed, store};

/// Opens a session with the key's host, after what earlier ones have left is delivered.
pub(super) async fn meet(
    request: &MountRequest,
    shown: &DeviceId,
    key: &KeyContents,
) -> Result<Arc<ClientSession>, Failure> {
    let config = config(request, shown, key);
    sealed::deliver(&request.state, key, &config).await?;
    let session = ClientSession::establish(config).await?;
    let grant = session.grant();
    let mac = MacAddress(grant.host_mac);
    if let Err(error) =
        known_hosts::record(&request.state, key.host, &grant.host_name, mac, &key.servers)
    {
        tracing::warn!(%error, "the host could not be recorded");
    }
    Ok(session)
}

/// The shares that the host has for the key of a request that names none.
pub(crate) async fn shares(request: &MountRequest) -> Result<Vec<String>, Failure> {
    let opened = key::open(request, &store::locate(&request.state, &request.spec))?;
    ClientSession::shares(config(request, &opened.shown, &opened.contents)).await
}

fn config(request: &MountRequest, shown: &DeviceId, key: &KeyContents) -> ClientConfig {
    let options = &request.options;
    ClientConfig {
        secret: key.secret.clone(),
        device: shown.clone(),
        pair_key: key.pair_key.clone(),
        host: key.host,
        host_mac: key.host_mac,
        servers: key.servers.clone(),
        share: request.spec.share.clone(),
        client_name: machine_name(),
        timeout: options.timeout,
        grace: options.grace,
        wait: options.wait,
        wanted: options.wanted,
        resume: None,
    }
}

pub(crate) fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.chars().take(p2pfs::limits::LABEL_BYTES_MAX / 4).collect()
}
