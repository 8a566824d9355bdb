//! Every decoder that takes bytes from outside, by name: the directory of its corpus.
//!
//! A decoder gets any bytes. It may refuse them, and must do so without a panic; what it takes must
//! survive encoding and decoding, where there is an encoder, and keep its bounds.

/// What a damaged disk or its user may have changed.
mod files;
/// Keys, tickets, what people type.
mod identity;
/// State machines that take what a peer sends.
mod machines;
/// What crosses the network.
mod wire;

/// A decoder and its name.
pub(crate) struct Decoder(pub(crate) &'static str, pub(crate) fn(&[u8]));

/// All of them.
pub(crate) const DECODERS: [Decoder; 39] = [
    Decoder("wire_session", wire::session),
    Decoder("wire_call", wire::call),
    Decoder("wire_reply", wire::reply),
    Decoder("wire_log", wire::log),
    Decoder("wire_ack", wire::ack),
    Decoder("wire_lease", wire::lease),
    Decoder("wire_notice", wire::notice),
    Decoder("wire_to_server", wire::to_server),
    Decoder("wire_from_server", wire::from_server),
    Decoder("wire_routing", wire::routing),
    Decoder("wire_relay", wire::relay),
    Decoder("wire_probe", wire::probe),
    Decoder("wire_stun", wire::stun),
    Decoder("wire_nat", wire::nat),
    Decoder("wire_pairing", wire::pairing),
    Decoder("wire_frame", wire::frame),
    Decoder("wire_name", wire::name),
    Decoder("wire_datagrams", wire::datagrams),
    Decoder("identity_ticket", identity::ticket),
    Decoder("identity_recovery", identity::recovery),
    Decoder("identity_key", identity::key),
    Decoder("identity_device", identity::device),
    Decoder("identity_texts", identity::texts),
    Decoder("identity_handshake", identity::handshake),
    Decoder("identity_wrapped", identity::wrapped),
    Decoder("host_backup", files::backup),
    Decoder("host_config", files::config),
    Decoder("host_keys", files::keys),
    Decoder("host_request", files::request),
    Decoder("host_record", files::record),
    Decoder("host_opens", files::opens),
    Decoder("host_clients", files::clients),
    Decoder("client_sealed", files::sealed),
    Decoder("client_journal", files::journal),
    Decoder("client_files", files::client),
    Decoder("machine_server", machines::server),
    Decoder("machine_host", machines::host),
    Decoder("machine_client", machines::client),
    Decoder("machine_stun", machines::stun),
];
