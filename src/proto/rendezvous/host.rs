//! A host's side: registers an index for every recorded key, and answers those who look for one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use crate::identity::{BlindedMac, MacAddress, PeerId};
use crate::limits::KEYS_MAX;
use crate::proto::PeerMisbehaved;
use crate::proto::rendezvous::matcher::REGISTRATION_LIFE;
use crate::proto::rendezvous::upkeep::{Draw, Due, Upkeep};
use crate::proto::rendezvous::{Introduction, MAPPING_PATIENCE, Output, RecordedKey};
use crate::wire::relay::RelayGrant;
use crate::wire::rendezvous::{
    FromServer, INDICES_PER_MESSAGE, MatchId, Public, Role, Routing, Seal, Sealed, ToServer,
    probe_key,
};

/// A host's registration with one server.
#[derive(Debug)]
pub struct HostSide {
    mac: MacAddress,
    keys: BTreeMap<BlindedMac, RecordedKey>,
    routing: Routing,
    registration: Registration,
    /// Indices that the server has refused, for people.
    refused: BTreeSet<BlindedMac>,
    upkeep: Upkeep,
    draw: Draw,
    /// Of the introduction that follows.
    grant: Option<(MatchId, RelayGrant)>,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
enum Registration {
    /// Not connected, or nothing to do.
    None,
    /// As soon as our mapping is known, or then.
    Held { until: Instant },
    /// Sent, and kept up to date; what is not is tried again then.
    Sent { indices: BTreeSet<BlindedMac>, again: Option<Instant> },
}

impl HostSide {
    /// A host without keys and connection; nonces come from `seed`, which must be fresh.
    pub fn new(mac: MacAddress, seed: [u8; 32]) -> Self {
        Self {
            mac,
            keys: BTreeMap::new(),
            routing: Routing::default(),
            registration: Registration::None,
            refused: BTreeSet::new(),
            upkeep: Upkeep::new(false),
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

    /// The recorded keys, all of them; beyond [`KEYS_MAX`] they are left out.
    pub fn set_keys(&mut self, keys: &[RecordedKey], now: Instant) {
        let keys: BTreeMap<_, _> = keys
            .iter()
            .take(KEYS_MAX)
            .map(|key| (key.pair_key.blind(self.mac), key.clone()))
            .collect();
        let old = std::mem::replace(&mut self.keys, keys);
        if let Registration::Sent { indices: sent, .. } = &mut self.registration {
            // an index whose key is another now is registered again: somebody may wait for it
            sent.retain(|index| match (old.get(index), self.keys.get(index)) {
                (Some(old), Some(new)) => old.peer == new.peer,
                (_, new) => new.is_some(),
            });
            let gone: Vec<_> =
                old.into_keys().filter(|index| !self.keys.contains_key(index)).collect();
            for indices in gone.chunks(INDICES_PER_MESSAGE) {
                self.outputs
                    .push_back(Output::Send(ToServer::Withdraw { indices: indices.to_vec() }));
            }
            self.register();
        }
        self.handle_timeout(now);
    }

    /// Where we are now.
    pub fn set_routing(&mut self, routing: Routing, now: Instant) {
        let routing = Routing { mac: Some(self.mac), ..routing.bounded() };
        if routing.udp_public != self.routing.udp_public {
            self.upkeep.hurry(now);
        }
        self.routing = routing;
        self.handle_timeout(now);
    }

    /// There is a connection to the server.
    pub fn handle_connected(&mut self, now: Instant) {
        self.upkeep.connected(now);
        self.registration = Registration::Held { until: now + MAPPING_PATIENCE };
        self.refused.clear();
        self.outputs.push_back(Output::Send(ToServer::Hello { role: Role::Host }));
        self.handle_timeout(now);
    }

    /// The connection is gone; what was to be sent over it is dropped.
    pub fn handle_disconnected(&mut self) {
        self.upkeep.disconnected();
        self.registration = Registration::None;
        self.outputs.retain(|output| !matches!(output, Output::Send(_)));
    }

    /// A message of the server.
    ///
    /// # Errors
    ///
    /// [`PeerMisbehaved`] if the server says what a server cannot say to a host.
    pub fn handle_message(
        &mut self,
        message: FromServer,
        now: Instant,
    ) -> Result<(), PeerMisbehaved> {
        match message {
            // what is relayed is none of ours
            FromServer::Welcome { .. } | FromServer::Relayed(_) => {}
            FromServer::Relay { match_id, grant } => self.grant = Some((match_id, grant)),
            FromServer::Moved { match_id, public } => {
                self.outputs.push_back(Output::Moved(match_id, public));
            }
            FromServer::Confirmed { number } => {
                self.upkeep.handle_confirmed(number, now)?;
                self.outputs.push_back(Output::Confirmed);
            }
            FromServer::Taken { indices } => {
                let count = self.refuse(&indices, now);
                if count > 0 {
                    tracing::warn!(
                        count,
                        "another machine has registered with this host's pair keys: keys paired \
                         on both cannot be served by this server"
                    );
                }
            }
            FromServer::Full { indices } => {
                let count = self.refuse(&indices, now);
                if count > 0 {
                    tracing::warn!(
                        count,
                        "the server has no room for some of the keys: they are tried again, and \
                         do not find this host until then"
                    );
                }
            }
            FromServer::Sought { match_id, index, client, public, sealed } => {
                self.answer(match_id, index, client, public, &sealed);
            }
            FromServer::Introduced { .. }
            | FromServer::NoMatch
            | FromServer::Branch(_)
            | FromServer::EndBranch { .. } => {
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
        if let Registration::Held { until } = self.registration
            && (self.routing.udp_public.is_some() || until <= now)
        {
            self.registration = Registration::Sent { indices: BTreeSet::new(), again: None };
            self.register();
        }
        if let Registration::Sent { again, .. } = &mut self.registration
            && again.is_some_and(|at| at <= now)
        {
            *again = None;
            self.register();
        }
    }

    /// What to do next; to be drained after everything else.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = match self.registration {
            Registration::None => None,
            Registration::Held { until } => Some(until),
            Registration::Sent { again, .. } => again,
        };
        self.upkeep.wake().into_iter().chain(next).min()
    }

    /// Registers what is not registered yet.
    fn register(&mut self) {
        let Registration::Sent { indices: sent, .. } = &mut self.registration else {
            return;
        };
        let new: Vec<_> = self.keys.keys().copied().filter(|index| sent.insert(*index)).collect();
        for indices in new.chunks(INDICES_PER_MESSAGE) {
            self.outputs.push_back(Output::Send(ToServer::Register { indices: indices.to_vec() }));
        }
    }

    /// These are not registered, and are tried again when whoever has them may have gone; tells of
    /// how many that is news.
    fn refuse(&mut self, indices: &[BlindedMac], now: Instant) -> usize {
        let Registration::Sent { indices: sent, again } = &mut self.registration else {
            return 0;
        };
        let mut news = 0;
        for index in indices {
            if sent.remove(index) {
                again.get_or_insert(now + REGISTRATION_LIFE);
                news += usize::from(self.refused.insert(*index));
            }
        }
        news
    }

    fn answer(
        &mut self,
        match_id: MatchId,
        index: BlindedMac,
        client: PeerId,
        public: Public,
        sealed: &Sealed,
    ) {
        let Some((accept, introduction)) = self.accept(match_id, index, client, public, sealed)
        else {
            tracing::debug!(?index, ?client, "declined: not a recorded key");
            self.outputs.push_back(Output::Send(ToServer::Decline { match_id }));
            return;
        };
        self.outputs.push_back(Output::Send(accept));
        self.outputs.push_back(Output::Introduced(introduction));
    }

    fn accept(
        &mut self,
        match_id: MatchId,
        index: BlindedMac,
        client: PeerId,
        public: Public,
        sealed: &Sealed,
    ) -> Option<(ToServer, Introduction)> {
        let key = self.keys.get(&index).filter(|key| key.peer == client)?;
        let (theirs, first) = Seal::Client(client)
            .open_with(&key.pair_key, sealed)
            .filter(|(theirs, _)| theirs.mac == Some(self.mac))?;
        let relay = self.grant.take().filter(|(of, _)| *of == match_id).map(|(_, grant)| grant);
        let nonce = self.draw.bytes();
        let ours =
            Seal::Host(match_id, &sealed.nonce).seal(&key.pair_key, nonce, &self.routing).ok()?;
        let introduction = Introduction {
            match_id,
            peer: client,
            routing: Routing { tcp_public: public.tcp, udp_public: public.udp, ..theirs },
            probe_key: probe_key(&key.pair_key, match_id, &sealed.nonce, &nonce),
            relay,
            first,
        };
        let accept = ToServer::Accept { match_id, sealed: ours };
        Some((accept, introduction))
    }
}
