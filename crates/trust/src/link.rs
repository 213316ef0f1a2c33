//! The sealed link between two machines: TLS 1.3 with raw public keys (RFC 7250), each side pinned to the other's key.
//!
//! The handshake is rustls's, driven over bytes so that the caller owns the socket. After it the traffic keys are taken
//! out (as for kernel TLS) and [`RecordSealer`] and [`RecordOpener`] write and read TLS 1.3 records themselves: rustls's
//! own buffers cost a copy and an allocation a record on the path that every layer of every token waits for.
//! One cipher suite, TLS13_AES_256_GCM_SHA384; no tickets, no resumption, no early data.

mod record;

use std::sync::Arc;

pub use record::{
    RECORD_BYTES_MAX, RECORD_OVERHEAD, RECORD_PLAINTEXT_MAX, RecordOpener, RecordSealer, record_bytes,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs as library;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, Connection, DigitallySignedStruct,
    DistinguishedName, Error as TlsError, ServerConfig, ServerConnection, SignatureScheme,
};

use crate::machine::MachineKeys;

/// An Ed25519 private key in PKCS #8 (RFC 8410), up to its 32 bytes.
const PKCS8_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// An Ed25519 public key as SubjectPublicKeyInfo (RFC 8410), up to its 32 bytes.
const SPKI_ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What no handshake needs more of: a peer that sends more is none of ours.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// Why two machines did not come to share a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The other side proved to be someone else than it should be.
    #[error(
        "the other end holds the key of {found}, which is not one that the coordinator's roster names here"
    )]
    WrongKey {
        /// The machine whose key it is.
        found: base::MachineId,
    },
    /// The other side took us for someone else.
    #[error("the other end refused this machine's key: its roster does not name it")]
    KeyRefused,
    /// What came is no handshake of ours.
    #[error("the handshake failed: {0}")]
    Tls(String),
    /// Too much came without an end.
    #[error("a handshake of more than {HANDSHAKE_BYTES_MAX} bytes")]
    TooLong,
}

/// A handshake in progress: feed it what arrives, send what it gives, until it is done.
pub struct LinkHandshake {
    connection: Connection,
    fed: usize,
}

/// A finished handshake: who is at the other end, and the two directions.
pub struct SealedLink {
    /// The other side's Ed25519 public key, proved.
    pub peer_key: [u8; 32],
    /// Seals what goes out.
    pub sealer: RecordSealer,
    /// Opens what comes in.
    pub opener: RecordOpener,
}

impl LinkHandshake {
    /// The dialling side: the other end must hold `peer_key`'s private half.
    pub fn dial(keys: &MachineKeys, peer_key: [u8; 32]) -> Self {
        let pinned = Arc::new(Pinned::new(vec![peer_key]));
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the one suite is of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(pinned)
            .with_client_cert_resolver(Arc::new(rustls::client::AlwaysResolvesClientRawPublicKeys::new(
                certified(keys),
            )));
        config.enable_secret_extraction = true;
        config.enable_sni = false;
        config.resumption = rustls::client::Resumption::disabled();
        let name = ServerName::try_from("phalanx.invalid").expect("a DNS name");
        let connection =
            ClientConnection::new(Arc::new(config), name).expect("the configuration is whole").into();
        Self { connection, fed: 0 }
    }

    /// The accepting side: the other end must hold the private half of one of `roster`.
    pub fn accept(keys: &MachineKeys, roster: Vec<[u8; 32]>) -> Self {
        let pinned = Arc::new(Pinned::new(roster));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the one suite is of TLS 1.3")
            .with_client_cert_verifier(pinned)
            .with_cert_resolver(Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(
                keys,
            ))));
        config.enable_secret_extraction = true;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        let connection = ServerConnection::new(Arc::new(config)).expect("the configuration is whole").into();
        Self { connection, fed: 0 }
    }

    /// Appends what is to be sent now.
    pub fn outgoing(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("a vector takes what is written");
        }
    }

    /// Whether both sides have proved their keys. What [`LinkHandshake::outgoing`] still gives must be sent.
    pub fn is_done(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// Takes in one whole record (see [`record_bytes`]). Not to be called once done: what follows is not the
    /// handshake's.
    ///
    /// # Errors
    /// The other side is not who it should be, or speaks something else. What [`LinkHandshake::outgoing`] gives then
    /// is the alert that tells it so.
    pub fn record(&mut self, record: &[u8]) -> Result<(), HandshakeError> {
        self.fed += record.len();
        if self.fed > HANDSHAKE_BYTES_MAX {
            return Err(HandshakeError::TooLong);
        }
        let mut rest = record;
        while !rest.is_empty() {
            match self.connection.read_tls(&mut rest) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return Err(HandshakeError::Tls("it ended early".into())),
            }
        }
        self.connection.process_new_packets().map(drop).map_err(|error| refusal(&error))
    }

    /// The link's two directions.
    ///
    /// # Errors
    /// The handshake is not done, or left something unsent.
    pub fn finish(self) -> Result<SealedLink, HandshakeError> {
        let failed = |error: TlsError| HandshakeError::Tls(error.to_string());
        let peer = self.connection.peer_certificates().and_then(|chain| chain.first());
        let peer_key = peer
            .and_then(|key| key_of(key))
            .ok_or_else(|| HandshakeError::Tls("the other end showed no key".into()))?;
        let secrets = self.connection.dangerous_extract_secrets().map_err(failed)?;
        let (sealer, opener) = record::of_secrets(secrets)
            .ok_or_else(|| HandshakeError::Tls("another cipher than AES-256-GCM was agreed".into()))?;
        Ok(SealedLink { peer_key, sealer, opener })
    }
}

fn refusal(error: &TlsError) -> HandshakeError {
    match error {
        TlsError::InvalidCertificate(CertificateError::Other(other)) => {
            match other.0.downcast_ref::<NotOnRoster>() {
                Some(stranger) => HandshakeError::WrongKey { found: stranger.0 },
                None => HandshakeError::Tls(error.to_string()),
            }
        }
        TlsError::AlertReceived(
            AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired,
        ) => HandshakeError::KeyRefused,
        other => HandshakeError::Tls(other.to_string()),
    }
}

/// AWS-LC with the one suite; the hybrid with ML-KEM first, so that what is recorded today stays closed.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![library::cipher_suite::TLS13_AES_256_GCM_SHA384],
        kx_groups: vec![library::kx_group::X25519MLKEM768, library::kx_group::X25519],
        ..library::default_provider()
    })
}

fn certified(keys: &MachineKeys) -> Arc<CertifiedKey> {
    let private = zeroize::Zeroizing::new([PKCS8_ED25519.as_slice(), keys.seed()].concat());
    let key = library::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(private.as_slice()))
        .expect("any 32 bytes are an Ed25519 seed");
    let spki = [SPKI_ED25519.as_slice(), &keys.signing_key()].concat();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key))
}

/// The key in a SubjectPublicKeyInfo, where it is an Ed25519 one.
fn key_of(spki: &CertificateDer<'_>) -> Option<[u8; 32]> {
    spki.as_ref().strip_prefix(SPKI_ED25519.as_slice())?.try_into().ok()
}

/// Who showed a key that is not on the roster.
#[derive(Debug, thiserror::Error)]
#[error("the key of {0} is not on the roster")]
struct NotOnRoster(base::MachineId);

/// Takes the keys of a roster, and proof of possession; nothing else.
#[derive(Debug)]
struct Pinned {
    keys: Vec<[u8; 32]>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Pinned {
    fn new(keys: Vec<[u8; 32]>) -> Self {
        Self { keys, algorithms: library::default_provider().signature_verification_algorithms }
    }

    fn check(
        &self,
        shown: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), TlsError> {
        let key = key_of(shown).ok_or(TlsError::InvalidCertificate(CertificateError::BadEncoding))?;
        if !intermediates.is_empty() {
            return Err(TlsError::InvalidCertificate(CertificateError::BadEncoding));
        }
        // These are public keys: there is nothing to hide in the time that this takes.
        if self.keys.contains(&key) {
            return Ok(());
        }
        let stranger = NotOnRoster(crate::machine_of(&key));
        Err(TlsError::InvalidCertificate(CertificateError::Other(rustls::OtherError(Arc::new(stranger)))))
    }

    fn signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let spki = SubjectPublicKeyInfoDer::from(key.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
    }
}

fn no_tls12() -> TlsError {
    TlsError::General("TLS 1.2 is not spoken here".into())
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        self.check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        self.check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
