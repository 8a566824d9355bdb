//! Meeting the host of a key.

use std::pin::pin;
use std::sync::Arc;

use p2pfs::failure::{Code, Failure};
use p2pfs::identity::MacAddress;
use p2pfs::identity::sealed::KeyContents;
use p2pfs::net::remote::Remote;
use p2pfs::net::session::journal::Journals;
use p2pfs::net::session::{ClientConfig, ClientSession};
use p2pfs::wire::errno::Errno;

use super::MountRequest;
use super::absent::Absentees;
use crate::fs::Fs;
use crate::fuse::notify::KernelLink;
use crate::gate::{self, valve::Valve, watch::KeyWatch};
use crate::journal::JournalDir;
use crate::key::Opened;
use crate::sealed::deliver::{Delivered, Over, deliver, tell};
use crate::sealed::others::Others;
use crate::spec::Spec;
use crate::{key, known_hosts, store};

/// A host that was met.
pub(super) struct Met {
    pub(super) session: Arc<ClientSession>,
    pub(super) fs: Arc<Fs>,
    pub(super) absentees: Absentees,
}

/// Meets the host, which gets what was left here before anything else is read or written.
pub(super) async fn meet(
    request: &MountRequest,
    opened: &Opened,
    link: &Arc<KernelLink>,
    watch: &KeyWatch,
) -> Result<Met, Failure> {
    let (session, delivered) = seek(request, opened).await?;
    let remote: Arc<dyn Remote> = session.clone();
    let fs = Fs::new(remote, link.clone(), request.options.cache);
    // asked along with the session's opening
    let (mut asked, mut said) = (pin!(session.absent()), None);
    let mut met = pin!(met(request, &session, &fs, &opened.contents));
    loop {
        tokio::select! {
            met = &mut met => break met?,
            answer = &mut asked, if said.is_none() => said = Some(answer),
        }
    }
    let grant = session.grant();
    if !grant.read_only {
        delivered.check(&grant.share)?;
    }
    let absentees = Absentees::default();
    tokio::select! {
        settled = settle(request, opened, &session, delivered.over) => match (settled, said) {
            (true, _) => absentees.ask(&session).await,
            (false, Some(said)) => absentees.hear(std::future::ready(said)).await,
            (false, None) => absentees.hear(asked).await,
        },
        () = pulled(watch, opened) => return Err(Failure::new(
            Code::KeyMissing,
            "the key was pulled while what was left here was delivered",
            "plug it in, and mount it again",
        )),
    }
    Ok(Met { session: session.clone(), fs: fs.clone(), absentees })
}

/// Resolves when the key is pulled, if that ends anything.
async fn pulled(watch: &KeyWatch, opened: &Opened) {
    match opened.contents.portable {
        true => std::future::pending().await,
        false => {
            // nobody can read anything yet
            let valve = Valve::default();
            gate::pulled(watch, &opened.contents.id, &opened.device, &valve).await;
        }
    }
}

/// Begins a session with the key's host, after what earlier ones have left is delivered. Tells also
/// which are over with nothing left.
async fn seek(
    request: &MountRequest,
    opened: &Opened,
) -> Result<(Arc<ClientSession>, Delivered), Failure> {
    let (config, key) = (config(request, opened), &opened.contents);
    let delivered = deliver(&request.state, key, &config).await?;
    let journal: Arc<dyn Journals> = Arc::new(JournalDir::new(&request.state, key)?);
    let session = ClientSession::begin(ClientConfig { journal: Some(journal), ..config })?;
    Ok((session, delivered))
}

/// Returns when the host has approved, and serves the share.
async fn met(
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

/// What is to be done before the share is used, besides: the host gets what other keys of its owner
/// have left here, and hears which sessions are over. Tells whether there was any of that.
async fn settle(
    request: &MountRequest,
    opened: &Opened,
    session: &ClientSession,
    mut over: Vec<Over>,
) -> bool {
    let (state, key) = (&request.state, &opened.contents.id);
    let others = Others::new(state, key, config(request, opened), session);
    let any = others.are_there();
    over.extend(others.deliver().await);
    tell(&over, session).await;
    any || !over.is_empty()
}

/// The shares that the host has for the key of a request that names none.
pub(crate) async fn shares(request: &MountRequest) -> Result<Vec<String>, Failure> {
    let opened = key::open(request, &store::locate(&request.state, &request.spec))?;
    ClientSession::shares(config(request, &opened)).await
}

fn config(request: &MountRequest, opened: &Opened) -> ClientConfig {
    let Opened { contents: key, shown, .. } = opened;
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
