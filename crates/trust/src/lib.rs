//! All cryptography: the keys of machines, sealed attempts and their sealed answers, secrets and hashes.
//!
//! What it is: the only crate that names a cipher, so that one place can be reviewed, and one changed. Everything
//! is bytes in, bytes out. What it is *not*: it opens no file and no socket, keeps no secret longer than its owner
//! does, and decides nobody's standing. Start with [`MachineKeys`] for who a machine is, [`seal_attempt`] and
//! [`open_attempt`] for what travels between coordinator and provider, [`Registration`] for how a machine proves
//! itself, [`LinkHandshake`] for links between machines, and [`new_api_key`] for what clients hold.
//!
//! Ciphers: X25519, HKDF-SHA256, AES-256-GCM (as HPKE, RFC 9180), Ed25519 (RFC 8032), SHA-256, all from AWS-LC; between machines
//! TLS 1.3 with raw public keys (rustls).

mod attempt;
mod hash;
mod hpke;
mod link;
mod machine;
mod registration;
mod secret;

pub use attempt::{
    ENCAPSULATED_BYTES, PreparedAttempt, ResponseOpener, ResponseSealer, SealedAttempt, TAG_BYTES,
    open_attempt, seal_attempt,
};
pub use hash::{GitBlob, Sha256, hex, sha256, sha256_of_files, unhex};
pub use link::{
    HandshakeError, LinkHandshake, RECORD_BYTES_MAX, RECORD_OVERHEAD, RECORD_PLAINTEXT_MAX, RecordOpener,
    RecordSealer, SealedLink, record_bytes,
};
pub use machine::{KeyFileError, MachineKeys, SECRET_BYTES, machine_of, verify};
pub use registration::{NONCE_BYTES, Registration};
pub use secret::{
    API_KEY_PREFIX, JOIN_TOKEN_PREFIX, announced, hash_secret, new_api_key, new_join_token, random_bytes,
    secrets_equal,
};

/// Bytes or text that are wiped when dropped: what secrets, prompts and answers are held in.
pub use zeroize::Zeroizing;

/// Why something was not sealed, opened or believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// A public key of another length than its kind has.
    #[error("{what} is {length} bytes long, not {expected}")]
    KeyLength {
        /// Which key.
        what: &'static str,
        /// How long it is.
        length: usize,
        /// How long it should be.
        expected: usize,
    },
    /// A public key of the right length with which no secret can be agreed (a point of small order).
    #[error("{what} is not a usable X25519 public key")]
    WeakKey {
        /// Which key.
        what: &'static str,
    },
    /// The bytes were sealed to another key, for another attempt or counter, or were changed on the way.
    #[error("{what} does not open: sealed to another key or position, or changed on the way")]
    DoesNotOpen {
        /// What was to be opened.
        what: &'static str,
    },
    /// A chunk that is not the next one: one was lost, repeated or moved.
    #[error("chunk {got} came where chunk {expected} was due")]
    OutOfOrder {
        /// The counter that was due.
        expected: u64,
        /// The counter that came.
        got: u64,
    },
    /// The other end of a link refused to go on, with a TLS alert of this number.
    #[error("the other end refused to go on (TLS alert {alert})")]
    Alert {
        /// As in RFC 8446, section 6.
        alert: u8,
    },
    /// An earlier chunk of this attempt failed to open, so nothing after it is believed.
    #[error("an earlier chunk of this attempt was refused")]
    Broken,
    /// The signature was not made over these bytes with this key.
    #[error("the signature does not belong to this key and message")]
    BadSignature,
}
