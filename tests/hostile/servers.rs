//! A hostile server: it is the one that was pinned, and does what it likes.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use p2pfs::identity::sealed::KeyContents;
use p2pfs::identity::{BlindedMac, PeerId, SecretKey};
use p2pfs::net::rendezvous::{Acceptor, receive, send};
use p2pfs::usb;
use p2pfs::wire::relay::{RelayGrant, RelayId, RelayToken};
use p2pfs::wire::rendezvous::{FromServer, MatchId, Relayed, Role, Sealed, StunAddress, ToServer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use crate::world::{Outcome, Side, World, eventually, need_mount};

use super::attacker::Attacker;
use super::memory::Memory;
use super::secrets::{self, Recorded, Secrets};

/// What a daemon may grow by, KiB, whatever its server says.
const DAEMON_KIB_MAX: u64 = 64 << 10;
const SHARE: &str = "a-share-of-no-servers-business";
const NAME: &str = "a name that no server may know";
/// Messages of a flood.
const FLOOD: u32 = 20_000;

/// What the server does to whoever has said hello.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Mood {
    /// It accepts everything and answers nothing.
    Silent,
    /// Lengths of 4 GiB.
    Frames,
    /// A message that never ends.
    Endless,
    /// Matches that nobody has asked for, at the attacker's address, with seals of its own making.
    Invented,
    /// The host's and the client's own words, to both, again and again, in another order.
    Replayed,
    /// Relayed datagrams and confirmations that nobody waits for.
    Relayed,
}

const MOODS: [Mood; 6] =
    [Mood::Silent, Mood::Frames, Mood::Endless, Mood::Invented, Mood::Replayed, Mood::Relayed];

/// What it has heard.
#[derive(Default)]
struct Heard {
    hellos: u64,
    /// Messages that it has sent in floods, to hosts and clients.
    sent: [u64; 2],
    indices: Vec<BlindedMac>,
    seek: Option<(PeerId, BlindedMac, Sealed)>,
    accepted: Vec<Sealed>,
}

#[derive(Clone)]
struct HostileServer {
    mood: Arc<Mutex<Mood>>,
    heard: Arc<Mutex<Heard>>,
    /// All that was said to it, under TLS.
    words: secrets::Heard,
    /// Where it says that hosts, clients and its relay are.
    attacker: Attacker,
}

#[test]
fn a_hostile_server_learns_nothing_and_stops_nobody() {
    need_mount!();
    let world = World::on_loopback();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let secret = SecretKey::from_seed([0x5e; 32]);
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let at = listener.local_addr().unwrap();
    let fingerprint = PeerId(secret.peer_id().fingerprint()).to_text();
    let address = format!("p2pfs://{at}#{fingerprint}");
    let server = HostileServer {
        mood: Arc::new(Mutex::new(Mood::Silent)),
        heard: Arc::default(),
        words: secrets::Heard::default(),
        attacker: runtime.block_on(async { Attacker::start(Ipv4Addr::LOCALHOST.into()) }),
    };
    runtime.spawn(server.clone().run(listener, secret));

    let disk = world.directory("disk");
    fs::write(disk.join(NAME), "from home\n").unwrap();
    let shares = [format!("{SHARE}={}", disk.display())];
    let host = world.host(&address, &shares);
    let key = world.pair("key", &["--authorise"]);
    let mountpoint = world.directory("home");
    for mood in MOODS {
        *server.mood.lock().unwrap() = mood;
        let before = Memory::of(host.pid());
        let hellos = server.heard.lock().unwrap().hellos;
        let refused = refused(&world, &key.source(SHARE), &mountpoint);
        // the host is a guest of it too, for as long as the mount was
        eventually("the daemons to come", Duration::from_secs(30), || {
            server.heard.lock().unwrap().hellos > hellos
        });
        before.grown(host.pid(), &format!("hostd of a server: {mood:?}"), DAEMON_KIB_MAX);
        let (sent, accepted) = {
            let heard = server.heard.lock().unwrap();
            (heard.sent, heard.accepted.len())
        };
        println!("{:<44} sent to hosts, clients: {sent:?}; accepted: {accepted}; {refused}", "");
        assert_eq!(world.status(Side::Host)["sessions"], serde_json::json!([]));
    }
    server.assert_nobody_learnt(&usb::open_key(&key.dir, None).unwrap().contents);
    drop(runtime);
    // a server that keeps to the protocol is all that it takes
    host.stop();
    let server = world.server("127.0.0.1:0");
    let _host = world.host(&server.ready, &shares);
    let key = world.pair("other", &["--authorise", "--server", &server.ready]);
    world.mount(&key.source(SHARE), &mountpoint, "timeout=20").ok();
    assert_eq!(fs::read(mountpoint.join(NAME)).unwrap(), b"from home\n");
    world.unmount(&mountpoint);
}

/// The mount fails in time, in words, and leaves nothing.
#[track_caller]
fn refused(world: &World, source: &str, mountpoint: &Path) -> String {
    let mount = world.mount(source, mountpoint, "timeout=4");
    let Outcome { code, stderr, took, .. } = &mount;
    assert_eq!(*code, Some(1), "{mount:#?}");
    assert!(took.as_secs() < 12, "{mount:#?}");
    world.assert_nothing_left(mountpoint);
    let line = stderr.lines().find(|line| line.starts_with("error[")).unwrap_or_default();
    assert!(!line.is_empty(), "{mount:#?}");
    line.to_owned()
}

impl HostileServer {
    /// On loopback the server sees the only addresses there are: private ones have their own test.
    #[track_caller]
    fn assert_nobody_learnt(&self, key: &KeyContents) {
        let words = [SHARE, NAME, "from home\n", &key.host_name];
        // a short name may be in any noise
        let words: Vec<&str> = words.into_iter().filter(|word| word.len() > 5).collect();
        let index = key.pair_key.blind(key.host_mac);
        assert!(secrets::contains(&self.words.bytes(), &index.0), "it was told whom to look for");
        Secrets::new(key.host_mac, &words).assert_unheard("the server", &self.words);
        let attacker = &self.attacker;
        assert!(!attacker.heard.bytes().is_empty(), "nobody went where the server said");
        let secrets = Secrets::new(key.host_mac, &words);
        let secrets = secrets.and_keys(&[key.secret.peer_id(), key.host]);
        secrets.assert_unheard("the attacker", &attacker.heard);
        assert_eq!(attacker.guests(), 0, "somebody took him for the host");
    }

    async fn run(self, listener: TcpListener, secret: SecretKey) {
        let acceptor = Acceptor::new(&secret);
        while let Ok((tcp, from)) = listener.accept().await {
            let (server, acceptor) = (self.clone(), acceptor.clone());
            tokio::spawn(async move {
                if let Ok((key, stream)) = acceptor.accept(tcp).await {
                    server.talk(key, from, stream).await;
                }
            });
        }
    }

    async fn talk<S>(&self, key: PeerId, observed: SocketAddr, stream: S) -> Option<()>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        let (read, mut write) = tokio::io::split(stream);
        let mut read = Recorded::new(read, &self.words);
        let mut role = Role::Host;
        loop {
            let message = receive::<ToServer>(&mut read).await.ok()?;
            let seek = match message {
                ToServer::Hello { role: said } => {
                    role = said;
                    let stun = vec![StunAddress { ip: None, port: 9 }];
                    send(&mut write, &FromServer::Welcome { observed, stun }).await.ok()?;
                    false
                }
                ToServer::Refresh { number, .. } => {
                    send(&mut write, &FromServer::Confirmed { number }).await.ok()?;
                    false
                }
                ToServer::Register { indices } => {
                    self.heard.lock().unwrap().indices.extend(indices);
                    true
                }
                ToServer::Seek { index, sealed } => {
                    self.heard.lock().unwrap().seek = Some((key, index, sealed));
                    true
                }
                ToServer::Accept { sealed, .. } => {
                    self.heard.lock().unwrap().accepted.push(sealed);
                    false
                }
                _ => false,
            };
            let mood = *self.mood.lock().unwrap();
            if seek || role == Role::Host {
                self.heard.lock().unwrap().hellos += 1;
                self.misbehave(mood, role, &mut write).await?;
            }
        }
    }

    async fn misbehave<W>(&self, mood: Mood, role: Role, write: &mut W) -> Option<()>
    where
        W: tokio::io::AsyncWrite + Unpin,
    {
        match mood {
            Mood::Silent => {}
            Mood::Frames => write.write_all(&[0xff; 64]).await.ok()?,
            Mood::Endless => {
                let lengths = (16_u32 << 10).to_le_bytes();
                write.write_all(&lengths).await.ok()?;
                write.write_all(&[0; 9000]).await.ok()?;
                write.flush().await.ok()?;
            }
            Mood::Invented | Mood::Replayed => {
                for number in 0..FLOOD {
                    let Some(message) = self.introduction(mood, role, number) else { break };
                    send(write, &message).await.ok()?;
                    self.heard.lock().unwrap().sent[usize::from(role == Role::Client)] += 1;
                }
            }
            Mood::Relayed => {
                for number in 0..FLOOD {
                    let relayed = Relayed {
                        relay: RelayId(u64::from(number).to_le_bytes()),
                        segment: 1,
                        bytes: vec![0x43; 1200],
                    };
                    let message = match number % 3 {
                        0 => FromServer::Relayed(relayed),
                        1 => FromServer::Taken { indices: Vec::new() },
                        _ => {
                            let public = self.attacker.public;
                            FromServer::Moved { match_id: match_of(number), public }
                        }
                    };
                    send(write, &message).await.ok()?;
                    self.heard.lock().unwrap().sent[usize::from(role == Role::Client)] += 1;
                }
            }
        }
        Some(())
    }

    /// A match that nobody wanted, or one more of the same.
    fn introduction(&self, mood: Mood, role: Role, number: u32) -> Option<FromServer> {
        let heard = self.heard.lock().unwrap();
        let public = self.attacker.public;
        let match_id = match_of(number);
        if number.is_multiple_of(16) {
            let token = RelayToken([7; 32]);
            let udp = Some(StunAddress { ip: None, port: self.attacker.at().port() });
            let grant = RelayGrant { id: RelayId([7; 8]), token, udp };
            return Some(FromServer::Relay { match_id, grant });
        }
        let made_up = Sealed { nonce: [3; 24], bytes: vec![0x5a; 300] };
        let (client, index, seek) = heard.seek.clone().unwrap_or_else(|| {
            let index = heard.indices.first().copied().unwrap_or(BlindedMac([1; 16]));
            (PeerId([1; 32]), index, made_up.clone())
        });
        let replayed = heard.accepted.get(number as usize % heard.accepted.len().max(1)).cloned();
        let host = PeerId([2; 32]);
        Some(match (role, mood) {
            (Role::Host, Mood::Replayed) => {
                FromServer::Sought { match_id, index, client, public, sealed: seek }
            }
            (Role::Host, _) => {
                FromServer::Sought { match_id, index, client, public, sealed: made_up }
            }
            (Role::Client, Mood::Replayed) => {
                let sealed = replayed.unwrap_or(seek);
                FromServer::Introduced { match_id, host, public, sealed }
            }
            (Role::Client, _) => FromServer::Introduced { match_id, host, public, sealed: made_up },
        })
    }
}

fn match_of(number: u32) -> MatchId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_le_bytes());
    MatchId(id)
}
