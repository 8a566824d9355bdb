//! Introduces clients to hosts: the p2pfs rendezvous server.
//!
//! ```text
//! udp      STUN, and the relay's datagrams
//! control  registration and matching, one TLS connection for each daemon
//! relay    forwards between two that cannot reach each other yet, or not at all
//! admin    status
//! quota    how often an address may come
//! ```
//!
//! Its state is soft: after a restart everybody registers again.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use p2pfs::address::ServerAddress;
use p2pfs::failure::{Code, Failure};
use p2pfs::net::admin::Control;
use p2pfs::net::{daemon, log};
use p2pfs::wire::rendezvous::StunAddress;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::cli::{Command, RunOptions};
use crate::control::Hub;
use crate::relay::Relay;
use crate::udp::{StunCounter, StunSockets};

mod admin;
pub mod cli;
mod control;
mod public;
mod quota;
mod relay;
mod udp;

/// The program.
///
/// # Errors
///
/// A [`Failure`] for the person who started it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let Some(cli) = cli::parse(arguments)? else {
        return Ok(());
    };
    let state = daemon::state_dir(cli.state, "server")?;
    match cli.command {
        Command::Run(options) => {
            log::init();
            tokio::runtime::Runtime::new()?.block_on(serve(&options, &state))
        }
        Command::Status { json } => {
            print!("{}", admin::status(&state, json)?);
            Ok(())
        }
    }
}

async fn serve(options: &RunOptions, state: &Path) -> anyhow::Result<()> {
    daemon::raise_file_limit();
    let terminated = daemon::terminated();
    let server = Server::start(options, state).await?;
    daemon::ready(&format!("ready server {}", server.address()));
    terminated.await;
    tracing::info!("stopped");
    Ok(())
}

/// A running server; it ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: ServerAddress,
    stun: Vec<SocketAddr>,
    _control: Control,
    _tasks: JoinSet<()>,
}

impl Server {
    /// Opens the sockets and serves; its key and its address are kept in `state`.
    ///
    /// # Errors
    ///
    /// [`Failure`] if a port is in use or not allowed, or the state directory is unusable.
    pub async fn start(options: &RunOptions, state: &Path) -> Result<Self, Failure> {
        let secret = daemon::load_or_create_secret(state)?;
        let (listener, listen) = listen(options.listen)
            .await
            .map_err(|error| unusable("TCP", options.listen, "--listen", &error))?;
        let sockets = StunSockets::bind(options.stun, options.stun_alt).await?;
        let stun = sockets.addresses();
        let told = sockets.told().into_iter().map(|stun| told(stun, listen)).collect();

        let mut tasks = JoinSet::new();
        let relay = Relay::new();
        let hub = Hub::start(told, (!options.no_relay).then(|| relay.clone()), &mut tasks);
        let counter = Arc::new(StunCounter::default());
        let control = admin::listen(state, hub.clone(), counter.clone(), relay.clone()).await?;
        sockets.serve(&counter, &relay, &mut tasks);
        tasks.spawn(control::serve(listener, secret.clone(), hub, relay));

        let (host, port) = public::address(options.public.as_ref(), listen);
        let address = ServerAddress { host, port, fingerprint: secret.peer_id().fingerprint() };
        let file = state.join("address");
        daemon::write_private(&file, format!("{address}\n").as_bytes()).map_err(|error| {
            Failure::new(
                Code::Internal,
                format!("cannot write {}: {error}", file.display()),
                "check the owner and mode of the state directory, and the room on its disk",
            )
        })?;
        Ok(Self { address, stun, _control: control, _tasks: tasks })
    }

    /// What hosts and clients are given.
    pub fn address(&self) -> &ServerAddress {
        &self.address
    }

    /// Where STUN answers.
    pub fn stun(&self) -> &[SocketAddr] {
        &self.stun
    }
}

async fn listen(address: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let local = listener.local_addr()?;
    Ok((listener, local))
}

/// What the daemons are told of a STUN socket: where it shares the address that they reach us at,
/// they know it better than we do, who may be behind a NAT ourselves.
fn told(stun: SocketAddr, listen: SocketAddr) -> StunAddress {
    let shared = stun.ip().is_unspecified() || stun.ip() == listen.ip();
    StunAddress { ip: (!shared).then(|| stun.ip()), port: stun.port() }
}

fn unusable(kind: &str, address: SocketAddr, flag: &str, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("stop what uses it, or choose another port with {flag} IP:PORT")
        }
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 are for root or CAP_NET_BIND_SERVICE; choose another with {flag} \
             IP:PORT"
        ),
        _ => format!("choose an address of this machine with {flag} IP:PORT"),
    };
    let what = format!("cannot use {kind} {address}: {error}");
    Failure::new(Code::Internal, what, hint)
}
