//! Pairing over the local network, and tickets.

use p2pfs::address::ServerAddress;
use p2pfs::identity::kind::Kind;
use p2pfs::identity::sealed::{KeyContents, KeyId};
use p2pfs::identity::{MacAddress, PairKey, PeerId, SecretKey, ticket};
use p2pfs::wire::codec::{decode, encode};
use p2pfs::wire::pairing::{Done, Here, MAGIC, Offer, Request, Seek};
use p2pfs::wire::session::{CloseReason, DeviceId};

use super::{golden, golden_bytes};

#[test]
fn pairing_has_its_bytes() {
    let token = [7; 16];
    let (seek, here) =
        (Seek { magic: MAGIC, number: 42, token }, Here { magic: MAGIC, port: 4000, token });
    golden("pairing_seek", &seek);
    golden("pairing_here", &here);
    // nobody is answered more than they asked
    assert!(encode(&here).unwrap().len() <= encode(&seek).unwrap().len());
    let peer = PeerId([4; 32]);
    let device = DeviceId { serial: "KEY".into(), vendor: "0951".into(), product: "1666".into() };
    let client_name = "laptop".to_owned();
    golden("pairing_request", &Request { peer, kind: Kind::Code, device, client_name });
    golden("pairing_done", &Done { peer });
    let server: ServerAddress =
        format!("p2pfs://home.example:443#{}", PeerId([7; 32]).to_text()).parse().unwrap();
    let offer = Offer {
        host: PeerId([3; 32]),
        host_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        host_name: "home".into(),
        servers: vec![server.to_string()],
        pair_key: [2; 32],
        portable: true,
    };
    let bytes = encode(&offer).unwrap();
    golden_bytes("pairing_offer", &bytes);
    assert_eq!(encode(&decode::<Offer>(&bytes).unwrap()).unwrap(), bytes);
    assert_eq!(CloseReason::Expired.to_code(), 6);
}

#[test]
fn tickets_have_their_bytes() {
    let secret = SecretKey::from_seed([1; 32]);
    let server = format!("p2pfs://home.example:443#{}", PeerId([7; 32]).to_text());
    let contents = KeyContents {
        id: KeyId::of(secret.peer_id()),
        secret,
        pair_key: PairKey::from_bytes([2; 32]),
        host: PeerId([3; 32]),
        host_mac: MacAddress([2, 0, 0, 0, 0, 1]),
        host_name: "home".into(),
        servers: vec![server.parse().unwrap()],
        portable: false,
        kind: Kind::Mac,
        login: None,
        shows: None,
    };
    let text = ticket::write(&contents);
    golden_bytes("ticket", text.as_bytes());
    assert_eq!(ticket::read(&text).unwrap().id, contents.id);
}
