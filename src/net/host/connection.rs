//! One connection: who it is, whether it may, and what its streams carry.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;

use crate::id::HostRun;
use crate::identity::PeerId;
use crate::limits::{CALLS_IN_FLIGHT_MAX, HANDSHAKE, SESSIONS_MAX, SESSIONS_PER_KEY_MAX};
use crate::net::endpoint::Auth;
use crate::net::host::Shared;
use crate::net::host::lane;
use crate::net::host::matches::{Introduced, Knock};
use crate::net::host::session::HostSession;
use crate::net::quic;
use crate::net::serve::Rights;
use crate::net::stream::{self, ReceiveError};
use crate::net::tls;
use crate::proto::path::Rung;
use crate::wire::log::Cursor;
use crate::wire::session::{CloseReason, Denial, Grant, Identify, StreamKind, Verdict};

/// No session lives long enough for more entries.
const ENTRY_MAX: u64 = 1 << 62;

/// Serves a connection until it ends. `knock`: its place among those that nobody has approved.
pub(super) async fn serve(
    shared: Arc<Shared>,
    incoming: Incoming,
    introduced: Introduced,
    knock: Knock,
) {
    let quic = quic::server_on(&shared.quic, shared.endpoint.epoch(introduced.handle));
    let accepted = match incoming.accept_with(quic) {
        Ok(connecting) => tokio::time::timeout(HANDSHAKE, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    let connection = match accepted {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::debug!(%error, "handshake failed");
            return;
        }
        Err(_) => return,
    };
    // The path belongs to one match: nobody else may come over it
    if peer_of(&connection) != Some(introduced.peer) {
        tracing::warn!("a connection proved another key than the one introduced");
        close(&connection, CloseReason::Misbehaved);
        return;
    }
    let admitted = tokio::time::timeout(HANDSHAKE, admit(&shared, &connection, &introduced)).await;
    let Ok(Some(session)) = admitted else {
        // Time for the verdict to arrive; the client closes first
        let _ = tokio::time::timeout(HANDSHAKE, connection.closed()).await;
        close(&connection, CloseReason::Denied);
        return;
    };
    drop(knock);
    quic::widen(&connection);
    let room = Arc::new(Semaphore::new(CALLS_IN_FLIGHT_MAX));
    while let Ok((send, receive)) = connection.accept_bi().await {
        let (session, connection) = (Arc::clone(&session), connection.clone());
        let (run, room) = (shared.run, Arc::clone(&room));
        tokio::spawn(async move {
            if let Err(error) = serve_stream(&session, run, &connection, room, send, receive).await
                && error.is_misbehaviour()
            {
                tracing::warn!(%error, "a client misbehaved: closing its connection");
                close(&connection, CloseReason::Misbehaved);
            }
        });
    }
    let (reason, uses) = (connection.close_reason(), session.uses(&connection));
    tracing::debug!(?reason, uses, "a connection is over");
    session.handle_closed(&connection);
    if is_over(&connection) && session.uses(&connection) {
        let mut state = shared.lock();
        state.sessions.retain(|_, one| !Arc::ptr_eq(one, &session));
        drop(state);
        session.end();
    }
}

/// Whether the client has ended its session.
fn is_over(connection: &Connection) -> bool {
    let Some(ConnectionError::ApplicationClosed(close)) = connection.close_reason() else {
        return false;
    };
    CloseReason::from_code(close.error_code.into_inner()) == CloseReason::Ended
}

pub(super) fn close(connection: &Connection, reason: CloseReason) {
    connection.close(VarInt::from_u32(reason.to_code()), b"");
}

/// Authentication 120 or 140: request 21, the comparison, the verdict (steps 121-123, 141-144).
async fn admit(
    shared: &Arc<Shared>,
    connection: &Connection,
    introduced: &Introduced,
) -> Option<Arc<HostSession>> {
    let (mut send, mut receive) = connection.accept_bi().await.ok()?;
    let kind = stream::receive_kind(&mut receive).await.ok()?;
    let asked = match StreamKind::from_byte(kind) {
        Some(StreamKind::Identify) => false,
        Some(StreamKind::IdentifyAsked) => true,
        _ => return None,
    };
    let (request, over) = stream::receive::<Identify>(&mut receive).await.ok()?;
    let told = over.first().and_then(|byte| Rung::from_byte(*byte));
    let entries = 1..=ENTRY_MAX;
    let in_order = entries.contains(&request.held.0) && entries.contains(&request.unanswered.0);
    if !in_order || !request.is_bounded() {
        return None;
    }
    shared.endpoint.authenticated(introduced.handle);
    let Some(decided) = decide(shared, connection, introduced, &request, (told, asked)) else {
        close(connection, CloseReason::Done);
        return None;
    };
    let verdict = match &decided {
        Ok((session, cursor)) => {
            let grant = Grant {
                share: session.share().to_owned(),
                read_only: session.is_read_only(),
                run: shared.run,
                cursor: cursor.clone(),
                host_name: shared.name.clone(),
                host_mac: shared.mac.0,
            };
            match session.is_identity() {
                true => Verdict::ApprovedIdentity(grant),
                false => Verdict::Approved(grant),
            }
        }
        Err(denial) => {
            tracing::info!(?denial, peer = ?introduced.peer, "session denied");
            Verdict::Denied(denial.clone())
        }
    };
    // a client that is gone again has its session all the same
    if stream::send(&mut send, &[], &verdict, Bytes::new()).await.is_ok() {
        let _ = send.finish();
    }
    decided.ok().map(|(session, _)| session)
}

/// `None`: the session is just being ended, or its client may still be there, and this one is to
/// come again.
fn decide(
    shared: &Arc<Shared>,
    connection: &Connection,
    introduced: &Introduced,
    request: &Identify,
    (told, asked): (Option<Rung>, bool),
) -> Option<Result<(Arc<HostSession>, Cursor), Denial>> {
    let peer = introduced.peer;
    let path = shared.path_of(introduced);
    let from = path.as_ref().filter(|path| path.rung != Rung::Relay).and_then(|path| path.address);
    let from = from.or(introduced.routing.udp_public).or(introduced.routing.tcp_public);
    let over = told.or_else(|| path.as_ref().map(|path| path.rung));
    let auth = over.map(|rung| Auth::over(rung, asked));
    let from = from.unwrap_or_else(|| connection.remote_address());
    let authorised = match shared.policy.authorise(peer, from, request) {
        Ok(authorised) => authorised,
        Err(denial) => return Some(Err(denial)),
    };
    let Rights { share, identity, .. } = &authorised.rights;
    // both may wait for what others do with the lists
    let may_change = shared.policy.may_change(peer, share, *identity);
    let noted = shared.policy.client(request.session);
    let mut state = shared.lock();
    if let Some(known) = state.sessions.get(&request.session).cloned() {
        if known.holder().peer != peer {
            let is_same = share == known.share() && *identity == known.is_identity();
            if !is_same || !(may_change || known.writer == peer) {
                return Some(Err(Denial::Busy));
            }
            if !known.is_left() {
                return None;
            }
            known.hand_over(peer, &authorised.rights);
        }
        let read_only = known.authorised.rights.read_only;
        let rights = Rights { read_only, ..authorised.rights.clone() };
        if rights != known.rights().1 {
            drop(state);
            shared.review();
            return None;
        }
        if authorised.rights.read_only {
            known.restrict();
        }
        let cursor = known.resume(connection.clone(), auth, request.unanswered);
        return Some(Ok((known, cursor)));
    }
    let of_key = state.sessions.values().filter(|session| session.holder().peer == peer).count();
    let is_full = state.sessions.len() >= SESSIONS_MAX || of_key >= SESSIONS_PER_KEY_MAX;
    if is_full {
        return Some(Err(Denial::Busy));
    }
    tracing::info!(?peer, share = authorised.rights.share, "session approved");
    let (session, cursor) =
        HostSession::new(peer, request, authorised, (connection.clone(), auth), (shared, noted));
    state.sessions.insert(request.session, Arc::clone(&session));
    Some(Ok((session, cursor)))
}

async fn serve_stream(
    session: &Arc<HostSession>,
    run: HostRun,
    connection: &Connection,
    room: Arc<Semaphore>,
    send: SendStream,
    mut receive: RecvStream,
) -> Result<(), ReceiveError> {
    let kind = stream::receive_kind(&mut receive).await?;
    match StreamKind::from_byte(kind) {
        Some(StreamKind::Call) => session.serve_call(send, receive).await,
        Some(StreamKind::Log) => session.serve_log(connection, send, receive).await,
        Some(StreamKind::Calls) => lane::serve(session, room, send, receive).await,
        Some(StreamKind::Lease) => session.serve_lease(connection, run, send, receive).await,
        Some(StreamKind::Identify | StreamKind::IdentifyAsked) | None => {
            close(connection, CloseReason::Misbehaved);
            Ok(())
        }
    }
}

fn peer_of(connection: &Connection) -> Option<PeerId> {
    let identity = connection.peer_identity()?;
    let certs = identity.downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>().ok()?;
    tls::peer_of(&certs)
}
