//! HPKE in base mode (RFC 9180) on AWS-LC: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-GCM.
//!
//! Why not a crate: crate `hpke` 0.15.1 stands on curve25519-dalek and RustCrypto's AES and took 126 to 190 us to seal
//! a 16 KiB job where this takes 39 to 59 (`benches/seal.rs`, alternating, the same two busy cores), and `rustls`'s HPKE
//! has no exporter. What is here is the key schedule alone, about a hundred lines, held to the RFC's own vectors below;
//! curve, hash and cipher are AWS-LC's.

use aws_lc_rs::aead::{AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::TrustError;

/// Bytes of an X25519 key, public or private.
pub(crate) const KEY_BYTES: usize = 32;
/// Bytes of an AES-GCM nonce.
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes that AES-GCM adds to what it seals.
pub(crate) const TAG_BYTES: usize = 16;

const HASH_BYTES: usize = 32;
const VERSION: &[u8] = b"HPKE-v1";
/// "KEM" and DHKEM(X25519, HKDF-SHA256) = 0x0020 (RFC 9180, section 4.1).
const KEM_SUITE: &[u8] = b"KEM\x00\x20";
const MODE_BASE: u8 = 0;

type Secret = Zeroizing<[u8; HASH_BYTES]>;

/// A combination of algorithms. The product has one; the RFC's vectors for X25519 are of another.
pub(crate) struct Suite {
    /// "HPKE", then the identifiers of KEM, KDF and AEAD (RFC 9180, section 5.1).
    id: &'static [u8; 10],
    aead: &'static Algorithm,
}

/// DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.
pub(crate) const SUITE: Suite = Suite { id: b"HPKE\x00\x20\x00\x01\x00\x02", aead: &AES_256_GCM };

fn hmac_sha256(key: &[u8], message: &[u8]) -> Secret {
    let mut out = Zeroizing::new([0; HASH_BYTES]);
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign_to_buffer(&key, message, out.as_mut_slice()).expect("the buffer is as long as the hash");
    out
}

/// LabeledExtract of RFC 9180, section 4.
fn extract(suite: &[u8], salt: &[u8], label: &[u8], material: &[u8]) -> Secret {
    hmac_sha256(salt, &Zeroizing::new([VERSION, suite, label, material].concat()))
}

/// LabeledExpand of RFC 9180, section 4, for outputs of at most one hash: HKDF-Expand's first block.
fn expand<const N: usize>(suite: &[u8], secret: &Secret, label: &[u8], about: &[u8]) -> Zeroizing<[u8; N]> {
    const { assert!(N <= HASH_BYTES) };
    let length = (N as u16).to_be_bytes();
    let block = hmac_sha256(secret.as_slice(), &[&length, VERSION, suite, label, about, &[1]].concat());
    let mut out = Zeroizing::new([0; N]);
    out.copy_from_slice(&block[..N]);
    out
}

/// The secret that both sides agree on (Encap and Decap of RFC 9180, section 4.1, after the exchange itself).
fn shared_secret(
    private: &PrivateKey,
    peer: &[u8; KEY_BYTES],
    encapsulated: &[u8; KEY_BYTES],
    recipient: &[u8; KEY_BYTES],
    what: &'static str,
) -> Result<Secret, TrustError> {
    // AWS-LC refuses an all-zero result, which the RFC asks for in section 7.1.4.
    let peer = UnparsedPublicKey::new(&X25519, peer.as_slice());
    agree(private, peer, TrustError::WeakKey { what }, |exchanged| {
        let extracted = extract(KEM_SUITE, b"", b"eae_prk", exchanged);
        let about = [encapsulated.as_slice(), recipient].concat();
        Ok(expand(KEM_SUITE, &extracted, b"shared_secret", &about))
    })
}

/// The public key that belongs to `private`.
pub(crate) fn public_of(private: &PrivateKey) -> [u8; KEY_BYTES] {
    let public = private.compute_public_key().expect("an X25519 private key has a public key");
    let mut out = [0; KEY_BYTES];
    out.copy_from_slice(public.as_ref());
    out
}

/// One direction of an HPKE exchange, after the key schedule.
pub(crate) struct Context {
    suite: &'static [u8; 10],
    sealing: Sealing,
    exporter_secret: Secret,
}

impl Context {
    /// The sender's side, with a fresh key of its own: the context, and what the recipient needs.
    pub(crate) fn to_recipient(
        suite: &Suite,
        recipient: &[u8; KEY_BYTES],
        about: &[u8],
    ) -> Result<(Self, [u8; KEY_BYTES]), TrustError> {
        let ephemeral = PrivateKey::generate(&X25519)
            .expect("the operating system gives randomness, or nothing can go on");
        Self::to_recipient_with(suite, &ephemeral, recipient, about)
    }

    fn to_recipient_with(
        suite: &Suite,
        ephemeral: &PrivateKey,
        recipient: &[u8; KEY_BYTES],
        about: &[u8],
    ) -> Result<(Self, [u8; KEY_BYTES]), TrustError> {
        let encapsulated = public_of(ephemeral);
        let shared =
            shared_secret(ephemeral, recipient, &encapsulated, recipient, "the machine's sealing key")?;
        Ok((Self::schedule(suite, &shared, about), encapsulated))
    }

    /// The recipient's side.
    pub(crate) fn from_sender(
        suite: &Suite,
        private: &PrivateKey,
        public: &[u8; KEY_BYTES],
        encapsulated: &[u8; KEY_BYTES],
        about: &[u8],
    ) -> Result<Self, TrustError> {
        let shared = shared_secret(private, encapsulated, encapsulated, public, "the encapsulated key")?;
        Ok(Self::schedule(suite, &shared, about))
    }

    /// KeySchedule of RFC 9180, section 5.1, without a pre-shared key.
    fn schedule(suite: &Suite, shared: &Secret, about: &[u8]) -> Self {
        let psk_id_hash = extract(suite.id, b"", b"psk_id_hash", b"");
        let about_hash = extract(suite.id, b"", b"info_hash", about);
        let context = [&[MODE_BASE], psk_id_hash.as_slice(), about_hash.as_slice()].concat();
        let secret = extract(suite.id, shared.as_slice(), b"secret", b"");
        let key = if suite.aead.key_len() == 32 {
            Zeroizing::new(expand::<32>(suite.id, &secret, b"key", &context).to_vec())
        } else {
            Zeroizing::new(expand::<16>(suite.id, &secret, b"key", &context).to_vec())
        };
        let base_nonce = expand(suite.id, &secret, b"base_nonce", &context);
        Self {
            suite: suite.id,
            sealing: Sealing::new(suite.aead, &key, base_nonce),
            exporter_secret: expand(suite.id, &secret, b"exp", &context),
        }
    }

    /// Context.Export of RFC 9180, section 5.3.
    pub(crate) fn export<const N: usize>(&self, label: &[u8]) -> Zeroizing<[u8; N]> {
        expand(self.suite, &self.exporter_secret, b"sec", label)
    }

    /// The AEAD of this direction.
    pub(crate) fn sealing(&self) -> &Sealing {
        &self.sealing
    }
}

/// AES-GCM under one key whose nonces are a base XOR a counter (RFC 9180, section 5.2). The caller must never seal
/// twice with one counter.
pub(crate) struct Sealing {
    // AWS-LC wipes the expanded key when it is dropped.
    key: LessSafeKey,
    base_nonce: Zeroizing<[u8; NONCE_BYTES]>,
}

impl Sealing {
    fn new(aead: &'static Algorithm, key: &[u8], base_nonce: Zeroizing<[u8; NONCE_BYTES]>) -> Self {
        let key = UnboundKey::new(aead, key).expect("the key was made as long as the algorithm's");
        Self { key: LessSafeKey::new(key), base_nonce }
    }

    /// AES-256-GCM under `key`.
    pub(crate) fn aes_256_gcm(key: &[u8; 32], base_nonce: Zeroizing<[u8; NONCE_BYTES]>) -> Self {
        Self::new(&AES_256_GCM, key, base_nonce)
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = *self.base_nonce;
        for (byte, count) in nonce[NONCE_BYTES - 8..].iter_mut().zip(counter.to_be_bytes()) {
            *byte ^= count;
        }
        Nonce::assume_unique_for_key(nonce)
    }

    /// `plaintext` sealed, and its tag.
    pub(crate) fn seal(&self, counter: u64, associated: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plaintext.len() + TAG_BYTES);
        out.extend_from_slice(plaintext);
        self.key
            .seal_in_place_append_tag(self.nonce(counter), Aad::from(associated), &mut out)
            .expect("a message is far below AES-GCM's 64 GiB");
        out
    }

    /// What was sealed, or nothing where key, counter, associated data or bytes are not the same.
    pub(crate) fn open(
        &self,
        counter: u64,
        associated: &[u8],
        ciphertext: &[u8],
    ) -> Option<Zeroizing<Vec<u8>>> {
        let mut out = Zeroizing::new(ciphertext.to_vec());
        let length = self.key.open_in_place(self.nonce(counter), Aad::from(associated), &mut out).ok()?.len();
        out.truncate(length);
        Some(out)
    }
}

#[cfg(test)]
#[path = "hpke/vectors.rs"]
mod vectors;
