//! Who a machine is: an Ed25519 key that signs and an X25519 key that attempts are sealed to.
//!
//! The secret's bytes, as a provider keeps them in a file that only its owner reads:
//! ```text
//! offset  0  12 bytes  "phalanx-keys"
//!        12  u16       version, 1, little-endian
//!        14  u16       0
//!        16  32 bytes  Ed25519 seed
//!        48  32 bytes  X25519 private key
//!        80  16 bytes  the machine's id
//!        96  16 bytes  the first half of the SHA-256 of all bytes before
//! ```

use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base::MachineId;
use zeroize::Zeroizing;

use crate::hpke::{KEY_BYTES, public_of};
use crate::{TrustError, random_bytes, sha256};

/// How long the bytes of [`MachineKeys::to_secret_bytes`] are.
pub const SECRET_BYTES: usize = 112;

const MAGIC: &[u8; 12] = b"phalanx-keys";
const VERSION: u16 = 1;
const SEED_AT: usize = 16;
const PRIVATE_AT: usize = 48;
const MACHINE_AT: usize = 80;
const CHECK_AT: usize = 96;

/// Why bytes are not a machine's keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// Cut off, or something was appended.
    #[error(
        "a machine's key file is {SECRET_BYTES} bytes long, not {length}; restore it from a backup, or delete it \
         and the machine joins as a new one"
    )]
    Length {
        /// How long it is.
        length: usize,
    },
    /// Something else altogether.
    #[error("not a machine's key file: it does not begin with \"phalanx-keys\"; is the path right?")]
    NotKeys,
    /// Written by another version of Phalanx.
    #[error("a machine's key file of version {version}; this Phalanx reads version 1: use a newer one")]
    Version {
        /// Its version.
        version: u16,
    },
    /// Changed since it was written.
    #[error(
        "a damaged machine's key file: its checksum is wrong; restore it from a backup, or delete it and the \
         machine joins as a new one"
    )]
    Damaged,
}

/// A machine's identity: its private keys. Neither `Debug` nor `Clone`, and wiped when dropped.
pub struct MachineKeys {
    seed: Zeroizing<[u8; 32]>,
    private: Zeroizing<[u8; KEY_BYTES]>,
    signing: Ed25519KeyPair,
    sealing: PrivateKey,
    signing_key: [u8; 32],
    sealing_key: [u8; KEY_BYTES],
    machine: MachineId,
}

impl MachineKeys {
    /// New keys, from the operating system's randomness.
    pub fn generate() -> Self {
        Self::of(Zeroizing::new(random_bytes()), Zeroizing::new(random_bytes()))
    }

    fn of(seed: Zeroizing<[u8; 32]>, private: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let signing = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).expect("any 32 bytes are a seed");
        let sealing = PrivateKey::from_private_key(&X25519, private.as_slice())
            .expect("any 32 bytes are an X25519 private key");
        let mut signing_key = [0; 32];
        signing_key.copy_from_slice(signing.public_key().as_ref());
        let sealing_key = public_of(&sealing);
        let machine = machine_of(&signing_key);
        Self { seed, private, signing, sealing, signing_key, sealing_key, machine }
    }

    /// Reads what [`MachineKeys::to_secret_bytes`] wrote.
    ///
    /// # Errors
    /// The bytes are of another length, kind or version, or were changed. The message says what to do.
    pub fn from_secret_bytes(bytes: &[u8]) -> Result<Self, KeyFileError> {
        if !bytes.starts_with(MAGIC) {
            return Err(KeyFileError::NotKeys);
        }
        let length = bytes.len();
        // The version comes before the length: a later version may be of another length.
        let version = bytes.get(12..14).ok_or(KeyFileError::Length { length })?;
        let version = u16::from_le_bytes([version[0], version[1]]);
        if version != VERSION {
            return Err(KeyFileError::Version { version });
        }
        if length != SECRET_BYTES {
            return Err(KeyFileError::Length { length });
        }
        if sha256(&bytes[..CHECK_AT])[..16] != bytes[CHECK_AT..] {
            return Err(KeyFileError::Damaged);
        }
        let part = |at: usize| Zeroizing::new(std::array::from_fn(|i| bytes[at + i]));
        let keys = Self::of(part(SEED_AT), part(PRIVATE_AT));
        if keys.machine.0.to_be_bytes() != bytes[MACHINE_AT..CHECK_AT] {
            return Err(KeyFileError::Damaged);
        }
        Ok(keys)
    }

    /// The bytes to keep, [`SECRET_BYTES`] long. Whoever has them is this machine.
    pub fn to_secret_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(SECRET_BYTES));
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(self.seed.as_slice());
        out.extend_from_slice(self.private.as_slice());
        out.extend_from_slice(&self.machine.0.to_be_bytes());
        let check = sha256(&out);
        out.extend_from_slice(&check[..16]);
        out
    }

    /// The machine's id: see [`machine_of`].
    pub fn machine(&self) -> MachineId {
        self.machine
    }

    /// The Ed25519 public key.
    pub fn signing_key(&self) -> [u8; 32] {
        self.signing_key
    }

    /// The X25519 public key that attempts are sealed to.
    pub fn sealing_key(&self) -> [u8; 32] {
        self.sealing_key
    }

    /// An Ed25519 signature over `message`, 64 bytes.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.signing.sign(message).as_ref().to_vec()
    }

    pub(crate) fn seed(&self) -> &[u8] {
        self.seed.as_slice()
    }

    pub(crate) fn sealing_private(&self) -> &PrivateKey {
        &self.sealing
    }
}

/// The id of the machine that holds `signing_key`'s private half: the first 16 bytes of the key's SHA-256.
pub fn machine_of(signing_key: &[u8]) -> MachineId {
    let hash = sha256(signing_key);
    MachineId(u128::from_be_bytes(std::array::from_fn(|i| hash[i])))
}

/// Whether `signature` was made over `message` with the private half of `signing_key`.
///
/// # Errors
/// The key is not 32 bytes, or the signature is another's.
pub fn verify(signing_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), TrustError> {
    if signing_key.len() != 32 {
        let length = signing_key.len();
        return Err(TrustError::KeyLength { what: "the machine's signing key", length, expected: 32 });
    }
    UnparsedPublicKey::new(&ED25519, signing_key)
        .verify(message, signature)
        .map_err(|_| TrustError::BadSignature)
}
