//! How a machine proves on a new connection that its keys are its own: a signature over all that was said.

use base::{Incarnation, MachineId};

use crate::{MachineKeys, TrustError, machine_of, sha256, verify};

/// How long a challenge's nonce is.
pub const NONCE_BYTES: usize = 32;

/// What begins the transcript, so that this signature means nothing anywhere else.
const DOMAIN: &[u8] = b"phalanx/1 registration of a machine";

/// Everything that was said before the proof: the fields of the first message, and the challenge that answered it.
/// Each is part of the transcript, so none can be changed on the way, and no proof serves a second connection.
#[derive(Clone, Copy)]
pub struct Registration<'a> {
    /// The coordinator's challenge.
    pub nonce: &'a [u8],
    /// The protocol's version.
    pub protocol: u32,
    /// The join token. Only its hash enters the transcript.
    pub token: &'a str,
    /// Who the machine says it is.
    pub machine: MachineId,
    /// Which start of the provider this is.
    pub incarnation: Incarnation,
    /// What people call the machine.
    pub name: &'a str,
    /// Program and version.
    pub agent: &'a str,
    /// Its Ed25519 public key.
    pub signing_key: &'a [u8],
    /// Its X25519 public key.
    pub sealing_key: &'a [u8],
    /// What it can do, in the order in which it said so.
    pub capabilities: &'a [String],
}

impl Registration<'_> {
    /// The bytes that are signed: each field behind its length (`u64`, little-endian), so that no two
    /// registrations give the same bytes.
    pub fn transcript(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        let mut put = |field: &[u8]| {
            out.extend_from_slice(&(field.len() as u64).to_le_bytes());
            out.extend_from_slice(field);
        };
        put(DOMAIN);
        put(self.nonce);
        put(&self.protocol.to_le_bytes());
        put(&sha256(self.token.as_bytes()));
        put(&self.machine.0.to_be_bytes());
        put(&self.incarnation.0.to_le_bytes());
        put(self.name.as_bytes());
        put(self.agent.as_bytes());
        put(self.signing_key);
        put(self.sealing_key);
        put(&(self.capabilities.len() as u64).to_le_bytes());
        for capability in self.capabilities {
            put(capability.as_bytes());
        }
        out
    }

    /// The provider's proof.
    pub fn prove(&self, keys: &MachineKeys) -> Vec<u8> {
        keys.sign(&self.transcript())
    }

    /// Checks a provider's proof: the machine's id is the hash of its key, and the key signed this transcript.
    ///
    /// # Errors
    /// [`TrustError::BadSignature`] or [`TrustError::KeyLength`]; a claimed id that is another key's counts as a
    /// bad signature.
    pub fn check(&self, signature: &[u8]) -> Result<(), TrustError> {
        if machine_of(self.signing_key) != self.machine {
            return Err(TrustError::BadSignature);
        }
        verify(self.signing_key, &self.transcript(), signature)
    }
}
