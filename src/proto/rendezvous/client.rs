//! A client's side: looks for one host, now or as soon as it comes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::identity::{BlindedMac, MacAddress, PairKey, PeerId};
use crate::proto::PeerMisbehaved;
use crate::proto::rendezvous::upkeep::{Draw, Due, Upkeep};
use crate::proto::rendezvous::{Introduction, Output};
use crate::wire::relay::RelayGrant;
use crate::wire::rendezvous::{
    FirstFlight, FromServer, MatchId, Public, Role, Routing, Seal, Sealed, ToServer, probe_key,
};

/// Between two requests to be matched: well inside what the server lets a client do.
const SEEK_PAUSE: Duration = Duration::from_millis(250);
/// After another host answered for ours.
const SQUATTED_PAUSE: Duration = Duration::from_secs(5);

/// What a client's side needs to know.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Our own public key.
    pub peer: PeerId,
    /// What was made at the pairing.
    pub pair_key: PairKey,
    /// The host's hardware address.
    pub mac: MacAddress,
    /// The host's key.
    pub host: PeerId,
}

/// A client's registration with one server.
#[derive(Debug)]
pub struct ClientSide {
    config: ClientConfig,
    index: BlindedMac,
    routing: Routing,
    seeking: Seeking,
    last_seek: Option<Instant>,
    /// For the next request.
    first: Option<FirstFlight>,
    upkeep: Upkeep,
    draw: Draw,
    /// Of the introduction that follows.
    grant: Option<(MatchId, RelayGrant)>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum Seeking {
    /// Introduced: nothing is wanted.
    Content,
    /// To be sent then, if there is a connection. Our mapping need not be known: the host hears of
    /// it when it is.
    Due { at: Instant },
    /// Sent with this nonce, and this along with it.
    Sent { nonce: [u8; 24], first: Option<FirstFlight> },
}

impl ClientSide {
    /// A client without a connection; nonces come from `seed`, which must be fresh.
    pub fn new(config: ClientConfig, seed: [u8; 32], now: Instant) -> Self {
        Self {
            index: config.pair_key.blind(config.mac),
            config,
            routing: Routing::default(),
            seeking: Seeking::Due { at: now },
            last_seek: None,
            first: None,
            upkeep: Upkeep::new(true),
            draw: Draw::new(seed),
            grant: None,
            outputs: VecDeque::new(),
        }
    }

    /// Whether a session stands: the registration is then repeated more often.
    pub fn set_in_use(&mut self, in_use: bool, now: Instant) {
        self.upkeep.set_in_use(in_use, now);
        self.handle_timeout(now);
    }

    /// Where we are now.
    pub fn set_routing(&mut self, routing: Routing, now: Instant) {
        let routing = Routing { mac: Some(self.config.mac), ..routing.bounded() };
        if routing.udp_public != self.routing.udp_public {
            self.upkeep.hurry(now);
        }
        let moved = routing.udp_private != self.routing.udp_private
            || routing.tcp_private != self.routing.tcp_private;
        self.routing = routing;
        if moved && matches!(self.seeking, Seeking::Sent { .. }) {
            // what the server holds for the host is out of date
            self.seek_again(now);
        }
        self.handle_timeout(now);
    }

    /// Asks for a new match: the peer does not answer where it was said to be.
    pub fn seek_again(&mut self, now: Instant) {
        if !matches!(self.seeking, Seeking::Due { .. }) {
            let rested = self.last_seek.map(|last| last + SEEK_PAUSE);
            self.seeking = Seeking::Due { at: rested.map_or(now, |rested| rested.max(now)) };
        }
        self.handle_timeout(now);
    }

    /// What our QUIC has to say goes along with the next request, once.
    pub fn set_first_flight(&mut self, first: FirstFlight) {
        self.first = Some(first).filter(FirstFlight::is_bounded);
    }

    /// There is a connection to the server.
    pub fn handle_connected(&mut self, now: Instant) {
        self.upkeep.connected(now);
        if !matches!(self.seeking, Seeking::Content) {
            self.seeking = Seeking::Due { at: now };
        }
        self.outputs.push_back(Output::Send(ToServer::Hello { role: Role::Client }));
        self.handle_timeout(now);
    }

    /// The connection is gone; what was to be sent over it is dropped.
    pub fn handle_disconnected(&mut self) {
        self.upkeep.disconnected();
        self.outputs.retain(|output| !matches!(output, Output::Send(_)));
    }

    /// A message of the server.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved`] if the server says what a server cannot say to a client.
    pub fn handle_message(
        &mut self,
        message: FromServer,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        match message {
            // what is relayed is none of ours, nor is what others have lent of us
            FromServer::Welcome { .. }
            | FromServer::Relayed(_)
            | FromServer::Branch(_)
            | FromServer::EndBranch { .. } => {}
            FromServer::Full { indices } if indices.is_empty() => {}
            FromServer::Relay { match_id, grant } => self.grant = Some((match_id, grant)),
            FromServer::Moved { match_id, public } => {
                self.outputs.push_back(Output::Moved(match_id, public));
            }
            FromServer::Confirmed { number } => {
                self.upkeep.handle_confirmed(number, now)?;
                self.outputs.push_back(Output::Confirmed);
            }
            FromServer::NoMatch => self.outputs.push_back(Output::NoMatch),
            FromServer::Introduced { match_id, host, public, sealed } => {
                self.introduce(match_id, host, public, &sealed, now);
            }
            FromServer::Taken { .. } | FromServer::Full { .. } | FromServer::Sought { .. } => {
                return Err(PeerMisbehaved::Unasked);
            }
        }
        self.handle_timeout(now);
        Ok(())
    }

    /// Sends what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(due) = self.upkeep.due(now) {
            self.outputs.push_back(match due {
                Due::Refresh(number) => {
                    Output::Send(ToServer::Refresh { number, udp_public: self.routing.udp_public })
                }
                Due::Silent => Output::Silent,
            });
        }
        if let Seeking::Due { at } = self.seeking
            && self.upkeep.is_connected()
            && at <= now
        {
            self.seek(now);
        }
    }

    /// What to do next; to be drained after everything else.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let refresh = self.upkeep.wake()?;
        match self.seeking {
            Seeking::Due { at } => Some(at.min(refresh)),
            Seeking::Content | Seeking::Sent { .. } => Some(refresh),
        }
    }

    fn seek(&mut self, now: Instant) {
        let nonce = self.draw.bytes();
        let seal = Seal::Client(self.config.peer);
        let first = self.first.take();
        match seal.seal_with(&self.config.pair_key, nonce, &self.routing, first.as_ref()) {
            Ok(sealed) => {
                self.outputs.push_back(Output::Send(ToServer::Seek { index: self.index, sealed }));
            }
            // bounded routing always fits
            Err(error) => tracing::error!(%error, "cannot seal our routing information"),
        }
        self.last_seek = Some(now);
        self.seeking = Seeking::Sent { nonce, first };
    }

    fn introduce(
        &mut self,
        match_id: MatchId,
        host: PeerId,
        public: Public,
        sealed: &Sealed,
        now: Instant,
    ) {
        let Seeking::Sent { nonce, first } = &self.seeking else {
            // the answer to an older request crossed our new one
            return;
        };
        let (nonce, first) = (*nonce, first.clone());
        if host != self.config.host {
            tracing::warn!(?host, "another machine answers for the host on this server");
            self.seeking = Seeking::Due { at: now + SQUATTED_PAUSE };
            self.outputs.push_back(Output::NoMatch);
            return;
        }
        let pair_key = &self.config.pair_key;
        let Some(theirs) = Seal::Host(match_id, &nonce)
            .open(pair_key, sealed)
            .filter(|theirs| theirs.mac == Some(self.config.mac))
        else {
            // as above; the answer to our last request follows
            return;
        };
        let introduction = Introduction {
            match_id,
            peer: host,
            routing: Routing { tcp_public: public.tcp, udp_public: public.udp, ..theirs },
            probe_key: probe_key(pair_key, match_id, &nonce, &sealed.nonce),
            relay: self.grant.take().filter(|(of, _)| *of == match_id).map(|(_, grant)| grant),
            first,
        };
        self.seeking = Seeking::Content;
        self.outputs.push_back(Output::Introduced(introduction));
    }
}
