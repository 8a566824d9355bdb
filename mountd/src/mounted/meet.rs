//! Meeting the host of a key.

use std::sync::Arc;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::MacAddress;
use p2pfs::identity::sealed::KeyContents;
use p2pfs::net::session::journal::Journals;
use p2pfs::net::session::{ClientConfig, ClientSession};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::session::DeviceId;

use super::MountRequest;
use crate::fs::Fs;
use crate::journal::JournalDir;
use crate::spec::Spec;
use crate::{key, known_hosts, sealed, store};

/// Begins a session with the key's host, after what earlier ones have left is delivered.
pub(super) async fn seek(
    request: &MountRequest,
    shown: &DeviceId,
    key: &KeyContents,
) -> Result<Arc<ClientSession>, Failure> {
    let config = config(request, shown, key);
    sealed::deliver(&request.state, key, &config).await?;
    let journal: Arc<dyn Journals> = Arc::new(JournalDir::new(&request.state, key)?);
    ClientSession::begin(ClientConfig { journal: Some(journal), ..config })
}

/// Returns when the host has approved, and serves the share.
pub(super) async fn met(
    request: &MountRequest,
    session: &ClientSession,
    fs: &Arc<Fs>,
    key: &KeyContents,
) -> Result<(), Failure> {
    // asked along with the session's opening
    let early = async { Ok(fs.check().await) };
    let ((), checked) = tokio::try_join!(session.established(), early)?;
    if session.is_identity() {
        fs.tell_callers();
    }
    let grant = session.grant();
    request.granted.get_or_init(|| grant.share.clone());
    request.key.get_or_init(|| key.id.to_string());
    let mac = MacAddress(grant.host_mac);
    if let Err(error) =
        known_hosts::record(&request.state, key.host, &grant.host_name, mac, &key.servers)
    {
        tracing::warn!(%error, "the host could not be recorded");
    }
    let checked = match checked {
        // it was given up before the owner authorised the key
        Err(Errno::ETIMEDOUT) => fs.check().await,
        checked => checked,
    };
    checked.map(drop).map_err(|error| unusable(&request.spec, error))
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
        share: request.share().cloned(),
        client_name: machine_name(),
        timeout: options.timeout,
        grace: options.grace,
        wait: options.wait,
        wanted: options.wanted,
        loans: Some(request.state.join("loans")),
        resume: None,
        journal: None,
    }
}

pub(crate) fn machine_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.chars().take(p2pfs::limits::LABEL_BYTES_MAX / 4).collect()
}

fn unusable(spec: &Spec, error: Errno) -> Failure {
    Failure::new(
        Code::HostOffline,
        format!(
            "{}: the host granted the share but does not serve it: {error}",
            spec.given.display()
        ),
        "look at p2pfs-hostd's log: the share's directory may be gone",
    )
}
