//! A server that introduces whom it should, writes down all that it hears, and may lead a client to
//! somebody else than its host.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use p2pfs::identity::{PeerId, SecretKey};
use p2pfs::net::rendezvous::{Acceptor, receive, send};
use p2pfs::usb;
use p2pfs::wire::datagrams;
use p2pfs::wire::relay::{RelayGrant, RelayId, RelayToken};
use p2pfs::wire::rendezvous::{FromServer, MatchId, Public, Relayed, Role, StunAddress, ToServer};
use p2pfs::wire::stun;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::world::lab::{Kind, Lab, SERVER, need_lab};
use crate::world::{Daemon, Paired, Side, World, need_mount};

use super::attacker::Attacker;
use super::clients::runtime;
use super::secrets::{Heard, Recorded, Secrets, contains};

const SHARE: &str = "a-share-of-no-servers-business";
const NAME: &str = "a name that no server may know";
const CONTENTS: &str = "what no server may read";
const MOUNT: &str = "timeout=20";
/// Of the side that is led astray.
const RELAY: RelayId = RelayId([7; 8]);

/// The server, until it is dropped.
struct Curious {
    /// As daemons know it.
    address: String,
    heard: Heard,
    attacker: Option<Attacker>,
    _runtime: Runtime,
}

/// What its connections share.
struct Hub {
    heard: Heard,
    stun: u16,
    attacker: Option<Attacker>,
    known: Mutex<Known>,
}

/// Who is there.
#[derive(Default)]
struct Known {
    host: Option<Guest>,
    client: Option<Guest>,
    matches: u8,
}

#[derive(Clone)]
struct Guest {
    key: PeerId,
    public: Public,
    outbox: mpsc::UnboundedSender<FromServer>,
}

#[test]
fn a_curious_server_learns_no_name_and_no_private_address() {
    need_mount!();
    need_lab!();
    let world = World::in_lab(Lab::new(Kind::Port, Kind::Port));
    let ip = SERVER[0].parse().unwrap();
    let server = world.lab().inside("server", || Curious::start(ip, false));
    let (_host, key) = home(&world, &server);
    let mountpoint = world.directory("home");
    world.mount(&key.source(SHARE), &mountpoint, MOUNT).ok();
    assert_eq!(fs::read_to_string(mountpoint.join(NAME)).unwrap(), CONTENTS);
    fs::write(mountpoint.join(format!("{NAME} either")), CONTENTS).unwrap();
    world.sync(&mountpoint);
    world.unmount(&mountpoint);

    let contents = usb::open_key(&key.dir, None).unwrap().contents;
    let heard = server.heard.bytes();
    let index = contents.pair_key.blind(contents.host_mac);
    assert!(contains(&heard, &index.0), "it was told whom to look for");
    assert!(contains(&heard, &[203, 0, 113, 10]), "it was told where the host is seen");
    let addresses = [[10, 1, 0, 2], [10, 2, 0, 2]].map(Ipv4Addr::from);
    let secrets = Secrets::new(contents.host_mac, &[SHARE, NAME, CONTENTS]);
    secrets.and_addresses(&addresses).assert_unheard("the server", &server.heard);
}

#[test]
fn who_is_put_into_the_hosts_place_learns_nothing_and_is_told_apart() {
    need_mount!();
    need_lab!();
    // each side's only address that the other can try is the server's word
    let world = World::in_lab(Lab::new(Kind::Port, Kind::Port));
    let ip = SERVER[0].parse().unwrap();
    let server = world.lab().inside("server", || Curious::start(ip, true));
    let (_host, key) = home(&world, &server);
    let mountpoint = world.directory("home");
    let mount = world.mount(&key.source(SHARE), &mountpoint, MOUNT);
    let mount = mount.refused(1, "host-mismatch");
    assert!(mount.stderr.contains("somebody is in its place"), "{mount:#?}");
    world.assert_nothing_left(&mountpoint);
    assert_eq!(world.status(Side::Host)["sessions"], serde_json::json!([]));
    server.assert_attacker_ignorant(&key, &[[10, 1, 0, 2].into(), [10, 2, 0, 2].into()]);
}

#[test]
fn who_stands_beside_the_right_path_is_not_taken_for_the_host() {
    need_mount!();
    let world = World::on_loopback();
    let server = Curious::start(Ipv4Addr::LOCALHOST.into(), true);
    let (_host, key) = home(&world, &server);
    let mountpoint = world.directory("home");
    let mount = world.mount(&key.source(SHARE), &mountpoint, MOUNT);
    if mount.code == Some(0) {
        assert_eq!(fs::read_to_string(mountpoint.join(NAME)).unwrap(), CONTENTS);
        let path = world.mount_status()["path"].clone();
        assert_ne!(path["address"], server.attacker.as_ref().unwrap().at().to_string());
        assert_ne!(path["kind"], "relay", "{path:#}");
        world.unmount(&mountpoint);
    } else {
        mount.refused(1, "host-mismatch");
        world.assert_nothing_left(&mountpoint);
    }
    // the server is where the daemons are: there is no private address here
    server.assert_attacker_ignorant(&key, &[]);
}

/// A host with a share, and a key of it.
fn home(world: &World, server: &Curious) -> (Daemon, Paired) {
    let disk = world.directory("disk");
    fs::write(disk.join(NAME), CONTENTS).unwrap();
    let host = world.host(&server.address, &[format!("{SHARE}={}", disk.display())]);
    let key = world.pair("key", &["--authorise", "--server", &server.address]);
    (host, key)
}

impl Curious {
    /// With threads that stay where this is called.
    fn start(ip: IpAddr, leads_astray: bool) -> Self {
        let runtime = runtime();
        let secret = SecretKey::from_seed([0x5f; 32]);
        let fingerprint = PeerId(secret.peer_id().fingerprint()).to_text();
        let heard = Heard::default();
        let (at, attacker) = runtime.block_on(async {
            let attacker = leads_astray.then(|| Attacker::start(ip));
            let listener = TcpListener::bind((ip, 0)).await.unwrap();
            let at = listener.local_addr().unwrap();
            let stun = UdpSocket::bind((ip, 0)).await.unwrap();
            let hub = Hub {
                heard: heard.clone(),
                stun: stun.local_addr().unwrap().port(),
                attacker: attacker.clone(),
                known: Mutex::default(),
            };
            tokio::spawn(answer_stun(stun, heard.clone()));
            tokio::spawn(Arc::new(hub).run(listener, secret));
            (at, attacker)
        });
        Self { address: format!("p2pfs://{at}#{fingerprint}"), heard, attacker, _runtime: runtime }
    }

    #[track_caller]
    fn assert_attacker_ignorant(&self, key: &Paired, addresses: &[Ipv4Addr]) {
        let attacker = self.attacker.as_ref().unwrap();
        let contents = usb::open_key(&key.dir, None).unwrap().contents;
        let words = [SHARE, NAME, CONTENTS, &key.id, &contents.host_name];
        // a short name may be in any noise
        let words: Vec<&str> = words.into_iter().filter(|word| word.len() > 5).collect();
        let secrets = Secrets::new(contents.host_mac, &words).and_addresses(addresses);
        let secrets = secrets.and_keys(&[contents.secret.peer_id(), contents.host]);
        assert!(!attacker.heard.bytes().is_empty(), "nobody was led to him");
        secrets.assert_unheard("the attacker", &attacker.heard);
        assert_eq!(attacker.guests(), 0, "somebody took him for the host");
    }
}

async fn answer_stun(socket: UdpSocket, heard: Heard) {
    let mut datagram = [0; 2000];
    while let Ok((length, from)) = socket.recv_from(&mut datagram).await {
        heard.keep(&datagram[..length]);
        if let Some(answer) = stun::answer(&datagram[..length], from, None) {
            let _ = socket.send_to(&answer.bytes, from).await;
        }
    }
}

impl Hub {
    async fn run(self: Arc<Self>, listener: TcpListener, secret: SecretKey) {
        let acceptor = Acceptor::new(&secret);
        while let Ok((tcp, from)) = listener.accept().await {
            let (hub, acceptor) = (Arc::clone(&self), acceptor.clone());
            tokio::spawn(async move {
                hub.peek(&tcp).await;
                if let Ok((key, stream)) = acceptor.accept(tcp).await {
                    hub.talk(key, from, stream).await;
                }
            });
        }
    }

    /// What is said in the clear, before there is TLS.
    async fn peek(&self, tcp: &TcpStream) {
        let mut hello = [0; 4096];
        if let Ok(length) = tcp.peek(&mut hello).await {
            self.heard.keep(&hello[..length]);
        }
    }

    async fn talk<S>(&self, key: PeerId, observed: SocketAddr, stream: S) -> Option<()>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (read, mut write) = tokio::io::split(stream);
        let mut read = Recorded::new(read, &self.heard);
        let (outbox, mut outgoing) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(message) = outgoing.recv().await {
                if send(&mut write, &message).await.is_err() {
                    return;
                }
            }
        });
        let public = Public { tcp: Some(observed), udp: None };
        let mut guest = Guest { key, public, outbox };
        let mut role = Role::Host;
        let mut astray = None;
        loop {
            match receive::<ToServer>(&mut read).await.ok()? {
                ToServer::Hello { role: said } => {
                    role = said;
                    let stun = vec![StunAddress { ip: None, port: self.stun }];
                    guest.say(FromServer::Welcome { observed, stun });
                }
                ToServer::Refresh { number, udp_public } => {
                    guest.say(FromServer::Confirmed { number });
                    guest.public.udp = udp_public;
                }
                ToServer::Relayed(relayed) => self.lead_on(&relayed, &guest, &mut astray).await?,
                message => self.introduce(message, &guest),
            }
            self.note(role, &guest);
        }
    }

    /// Remembers somebody, and tells the other side where he is.
    fn note(&self, role: Role, guest: &Guest) {
        let mut known = self.known.lock().unwrap();
        let (place, other) = match role {
            Role::Host => (0, known.client.clone()),
            Role::Client => (1, known.host.clone()),
        };
        let last = if place == 0 { &mut known.host } else { &mut known.client };
        let moved = last.as_ref().is_none_or(|last| last.public != guest.public);
        *last = Some(guest.clone());
        if let Some(other) = other.filter(|_| moved && known.matches > 0) {
            let match_id = MatchId([known.matches; 16]);
            other.say(FromServer::Moved { match_id, public: self.shown(guest) });
        }
    }

    fn introduce(&self, message: ToServer, guest: &Guest) {
        let mut known = self.known.lock().unwrap();
        match (message, known.host.clone(), known.client.clone()) {
            (ToServer::Seek { index, sealed }, Some(host), _) => {
                known.matches += 1;
                let match_id = MatchId([known.matches; 16]);
                let (client, public) = (guest.key, self.shown(guest));
                host.say(FromServer::Sought { match_id, index, client, public, sealed });
            }
            (ToServer::Seek { .. }, None, _) => guest.say(FromServer::NoMatch),
            (ToServer::Accept { match_id, sealed }, _, Some(client)) => {
                if self.attacker.is_some() {
                    let grant = RelayGrant { id: RELAY, token: RelayToken([7; 32]), udp: None };
                    client.say(FromServer::Relay { match_id, grant });
                }
                let (host, public) = (guest.key, self.shown(guest));
                client.say(FromServer::Introduced { match_id, host, public, sealed });
                if self.attacker.is_some() {
                    // what looks like QUIC makes the client answer the same way
                    client.say(brought(&[0x40; 60]));
                }
            }
            _ => {}
        }
    }

    /// Where it says that somebody is.
    fn shown(&self, guest: &Guest) -> Public {
        self.attacker.as_ref().map_or(guest.public, |attacker| attacker.public)
    }

    /// Carries datagrams to the attacker, and back.
    async fn lead_on(
        &self,
        relayed: &Relayed,
        guest: &Guest,
        astray: &mut Option<Arc<UdpSocket>>,
    ) -> Option<()> {
        let attacker = self.attacker.as_ref()?;
        if astray.is_none() {
            let socket = Arc::new(UdpSocket::bind((attacker.at().ip(), 0)).await.ok()?);
            socket.connect(attacker.at()).await.ok()?;
            let (back, guest) = (Arc::clone(&socket), guest.clone());
            tokio::spawn(async move {
                let mut datagram = [0; 2000];
                while let Ok(length) = back.recv(&mut datagram).await {
                    guest.say(brought(&datagram[..length]));
                }
            });
            *astray = Some(socket);
        }
        for datagram in datagrams::split(&relayed.bytes, relayed.segment) {
            let _ = astray.as_ref()?.send(datagram).await;
        }
        Some(())
    }
}

impl Guest {
    fn say(&self, message: FromServer) {
        // whoever has left hears nothing
        let _ = self.outbox.send(message);
    }
}

/// A datagram, as if the relay had brought it.
fn brought(datagram: &[u8]) -> FromServer {
    FromServer::Relayed(Relayed { relay: RELAY, segment: 0, bytes: datagram.to_vec() })
}
