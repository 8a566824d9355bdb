//! TLS 1.3 with raw public keys (RFC 7250) on both sides: a key is an identity, there are no names.
//!
//! No session tickets and no 0-RTT: a ticket would bring a peer's key back without asking the
//! verifier. A peer with another key than expected is told with the alert `access_denied` (49).

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{
    CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName,
    Error, ServerConfig, SignatureScheme,
};
use zeroize::Zeroizing;

use crate::identity::{PeerId, SecretKey};

/// What comes before the 32 bytes of an Ed25519 key in a `SubjectPublicKeyInfo` (RFC 8410).
const SPKI_PREFIX: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// What comes before the 32 bytes of an Ed25519 seed in PKCS#8 (RFC 8410).
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// Whom the other side must prove to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expected {
    /// The owner of this key.
    Peer(PeerId),
    /// The owner of a key with this SHA-256.
    Fingerprint([u8; 32]),
    /// The owner of any Ed25519 key: who it is, [`peer_of`] tells afterwards.
    Anyone,
}

/// How we dial: TLS 1.3, our key shown, the other side's key checked against `expected`.
pub fn client_config(secret: &SecretKey, expected: Expected, alpn: &[u8]) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier { expected, provider }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified(
            secret,
        ))));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    config
}

/// How we are dialled: TLS 1.3, our key shown, a client's key required and checked.
pub fn server_config(secret: &SecretKey, expected: Expected, alpn: &[u8]) -> ServerConfig {
    let provider = Arc::new(ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3")
        .with_client_cert_verifier(Arc::new(Verifier { expected, provider }))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified(secret))));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config
}

/// The name that a dialler gives; it means nothing, and is never sent.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("p2pfs").expect("a word is a valid host name")
}

/// The key that the other side has proved, from the certificates of a finished handshake.
pub fn peer_of(certs: &[CertificateDer<'_>]) -> Option<PeerId> {
    match certs {
        [only] => peer_of_spki(only),
        _ => None,
    }
}

fn peer_of_spki(spki: &[u8]) -> Option<PeerId> {
    let key = spki.strip_prefix(&SPKI_PREFIX)?;
    Some(PeerId(key.try_into().ok()?))
}

/// Whether a handshake failed because one side expected another key: ours here, or, told by the
/// alert, our own key over there.
pub fn is_wrong_key(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
            | Error::AlertReceived(AlertDescription::AccessDenied)
    )
}

/// [`is_wrong_key`], of the error that a TLS stream gives.
pub fn is_wrong_key_io(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref()).is_some_and(is_wrong_key)
}

fn certified(secret: &SecretKey) -> Arc<CertifiedKey> {
    let mut pkcs8 = Zeroizing::new([0; PKCS8_PREFIX.len() + 32]);
    pkcs8[..PKCS8_PREFIX.len()].copy_from_slice(&PKCS8_PREFIX);
    pkcs8[PKCS8_PREFIX.len()..].copy_from_slice(secret.seed());
    let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8.as_slice()))
        .expect("every 32 bytes are an Ed25519 seed");
    let mut spki = SPKI_PREFIX.to_vec();
    spki.extend_from_slice(&secret.peer_id().0);
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key))
}

/// Checks a raw public key, for both sides.
struct Verifier {
    expected: Expected,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn check(&self, key: &[u8], intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
        let peer = peer_of_spki(key)
            .filter(|peer| intermediates.is_empty() && peer.is_strong())
            .ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let right = match self.expected {
            Expected::Peer(expected) => peer == expected,
            Expected::Fingerprint(expected) => peer.fingerprint() == expected,
            Expected::Anyone => true,
        };
        if right { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }

    fn check_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(key.as_ref()),
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.check_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("expected", &self.expected).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    const ALPN: &[u8] = b"test";

    /// Shakes hands; what each side says of the other.
    async fn shake(
        client: ClientConfig,
        server: ServerConfig,
    ) -> (io::Result<Option<PeerId>>, io::Result<Option<PeerId>>) {
        let (near, far) = tokio::io::duplex(4096);
        let dialling = async {
            let connector = TlsConnector::from(Arc::new(client));
            let mut stream = connector.connect(server_name(), near).await?;
            let peer = stream.get_ref().1.peer_certificates().and_then(peer_of);
            // a server's refusal of our key comes only after our side is done
            stream.read_u8().await?;
            Ok(peer)
        };
        let answering = async {
            let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
            stream.write_u8(1).await?;
            Ok(stream.get_ref().1.peer_certificates().and_then(peer_of))
        };
        tokio::join!(dialling, answering)
    }

    fn secret(seed: u8) -> SecretKey {
        SecretKey::from_seed([seed; 32])
    }

    #[tokio::test]
    async fn both_sides_learn_the_key_that_the_other_has_proved() {
        let (client, server) = (secret(1), secret(2));
        for expected in [
            Expected::Anyone,
            Expected::Peer(server.peer_id()),
            Expected::Fingerprint(server.peer_id().fingerprint()),
        ] {
            let (seen_server, seen_client) = shake(
                client_config(&client, expected, ALPN),
                server_config(&server, Expected::Peer(client.peer_id()), ALPN),
            )
            .await;
            assert_eq!(seen_server.unwrap(), Some(server.peer_id()));
            assert_eq!(seen_client.unwrap(), Some(client.peer_id()));
        }
    }

    #[tokio::test]
    async fn another_key_is_refused_by_either_side_and_told_apart() {
        let other = secret(3).peer_id();
        for expected in [Expected::Peer(other), Expected::Fingerprint(other.fingerprint())] {
            let (seen_server, seen_client) = shake(
                client_config(&secret(1), expected, ALPN),
                server_config(&secret(2), Expected::Anyone, ALPN),
            )
            .await;
            assert!(is_wrong_key_io(&seen_server.unwrap_err()));
            assert!(is_wrong_key_io(&seen_client.unwrap_err()));
        }
        let (seen_server, seen_client) = shake(
            client_config(&secret(1), Expected::Anyone, ALPN),
            server_config(&secret(2), Expected::Peer(other), ALPN),
        )
        .await;
        assert!(is_wrong_key_io(&seen_server.unwrap_err()));
        assert!(is_wrong_key_io(&seen_client.unwrap_err()));
    }

    #[tokio::test]
    async fn another_protocol_or_a_client_without_a_key_is_refused_and_is_no_wrong_key() {
        let (seen_server, seen_client) = shake(
            client_config(&secret(1), Expected::Anyone, b"other"),
            server_config(&secret(2), Expected::Anyone, ALPN),
        )
        .await;
        assert!(!is_wrong_key_io(&seen_server.unwrap_err()));
        assert!(!is_wrong_key_io(&seen_client.unwrap_err()));

        let mut keyless = client_config(&secret(1), Expected::Anyone, ALPN);
        keyless.client_auth_cert_resolver = Arc::new(NoKey);
        let server = server_config(&secret(2), Expected::Anyone, ALPN);
        assert!(shake(keyless, server).await.1.is_err());
    }

    #[derive(Debug)]
    struct NoKey;

    impl rustls::client::ResolvesClientCert for NoKey {
        fn resolve(
            &self,
            _root_hint_subjects: &[&[u8]],
            _sigschemes: &[SignatureScheme],
        ) -> Option<Arc<CertifiedKey>> {
            None
        }

        fn only_raw_public_keys(&self) -> bool {
            true
        }

        fn has_certs(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_key_that_anybody_could_sign_with_is_no_key() {
        let verifier =
            Verifier { expected: Expected::Anyone, provider: Arc::new(ring::default_provider()) };
        let mut neutral = SPKI_PREFIX.to_vec();
        neutral.push(1);
        neutral.extend([0; 31]);
        assert!(verifier.check(&neutral, &[]).is_err());
    }
}
