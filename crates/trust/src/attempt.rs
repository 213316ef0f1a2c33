//! Sealing an attempt to a machine, and its answer back: one HPKE exchange per attempt, never a key twice.
//!
//! ```text
//! coordinator                                              provider
//! seal_attempt(machine's sealing key) -- encapsulated key, job -->  open_attempt(own keys)
//!   ResponseOpener      <-- chunk 0, chunk 1, ... --                 ResponseSealer
//! ```
//! The job is sealed in HPKE's base mode, so only the holder of the sealing key reads it. Chunks are sealed with
//! AES-256-GCM under a key and a base nonce that both sides export from the same exchange: fresh per attempt, so
//! counters begin at 0 and no nonce is used twice. What a frame's header says (kind, attempt, counter) is associated
//! data: a chunk that was moved to another attempt or another place does not open.

use base::AttemptId;
use zeroize::Zeroizing;

use crate::hpke::{Context, KEY_BYTES, SUITE, Sealing};
use crate::{MachineKeys, TrustError};

/// Bytes of the encapsulated key beside a sealed job.
pub const ENCAPSULATED_BYTES: usize = KEY_BYTES;

/// Bytes that sealing adds to a job or a chunk.
pub const TAG_BYTES: usize = crate::hpke::TAG_BYTES;

const ABOUT: &[u8] = b"phalanx/1 attempt";
const RESPONSE_KEY: &[u8] = b"phalanx/1 response key";
const RESPONSE_NONCE: &[u8] = b"phalanx/1 response nonce";

/// The numbers of the frame kinds in crate `wire`, which this crate does not know.
const KIND_ATTEMPT: u8 = 1;
const KIND_CHUNK: u8 = 2;

/// What a frame's header says, as associated data: kind, attempt, counter, little-endian.
fn associated(kind: u8, attempt: AttemptId, counter: u64) -> [u8; 25] {
    let mut out = [0; 25];
    out[0] = kind;
    out[1..17].copy_from_slice(&attempt.0.to_le_bytes());
    out[17..].copy_from_slice(&counter.to_le_bytes());
    out
}

/// A job that only one machine can open.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedAttempt {
    /// The sender's ephemeral public key.
    pub encapsulated: [u8; ENCAPSULATED_BYTES],
    /// The job, [`TAG_BYTES`] longer than it was.
    pub ciphertext: Vec<u8>,
}

/// The half of sealing that needs neither job nor attempt: fresh keys, agreed with one machine.
///
/// Nearly all the time that sealing takes goes into the agreement (`benches/seal.rs`), so a coordinator may hold a
/// few of these for each machine, and make the next one when nobody waits. Each seals one attempt and is gone.
pub struct PreparedAttempt {
    context: Context,
    encapsulated: [u8; ENCAPSULATED_BYTES],
}

impl PreparedAttempt {
    /// Agrees on fresh keys with the machine that holds `sealing_key`'s private half.
    ///
    /// # Errors
    /// `sealing_key` is not 32 bytes, or is a point with which nothing can be agreed.
    pub fn new(sealing_key: &[u8]) -> Result<Self, TrustError> {
        let recipient = key_bytes(sealing_key, "the machine's sealing key")?;
        let (context, encapsulated) = Context::to_recipient(&SUITE, recipient, ABOUT)?;
        Ok(Self { context, encapsulated })
    }

    /// Seals `plaintext` for one attempt.
    pub fn seal(self, attempt: AttemptId, plaintext: &[u8]) -> (SealedAttempt, ResponseOpener) {
        let Self { context, encapsulated } = self;
        let ciphertext = context.sealing().seal(0, &associated(KIND_ATTEMPT, attempt, 0), plaintext);
        let opener = ResponseOpener { sealing: response(&context), attempt, next: 0, broken: false };
        (SealedAttempt { encapsulated, ciphertext }, opener)
    }
}

/// Seals `plaintext` to the machine that holds `sealing_key`'s private half, for one attempt.
///
/// # Errors
/// As [`PreparedAttempt::new`].
pub fn seal_attempt(
    sealing_key: &[u8],
    attempt: AttemptId,
    plaintext: &[u8],
) -> Result<(SealedAttempt, ResponseOpener), TrustError> {
    Ok(PreparedAttempt::new(sealing_key)?.seal(attempt, plaintext))
}

/// Opens what [`seal_attempt`] sealed to these keys for this attempt.
///
/// # Errors
/// The encapsulated key is no key, or the ciphertext was sealed to another key or attempt, or changed.
pub fn open_attempt(
    keys: &MachineKeys,
    attempt: AttemptId,
    encapsulated: &[u8],
    ciphertext: &[u8],
) -> Result<(Zeroizing<Vec<u8>>, ResponseSealer), TrustError> {
    let encapsulated = key_bytes(encapsulated, "the encapsulated key")?;
    let context =
        Context::from_sender(&SUITE, keys.sealing_private(), &keys.sealing_key(), encapsulated, ABOUT)?;
    let plaintext = context
        .sealing()
        .open(0, &associated(KIND_ATTEMPT, attempt, 0), ciphertext)
        .ok_or(TrustError::DoesNotOpen { what: "the attempt" })?;
    Ok((plaintext, ResponseSealer { sealing: response(&context), attempt, next: 0 }))
}

fn key_bytes<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a [u8; KEY_BYTES], TrustError> {
    bytes.try_into().map_err(|_| TrustError::KeyLength { what, length: bytes.len(), expected: KEY_BYTES })
}

fn response(context: &Context) -> Sealing {
    Sealing::aes_256_gcm(&context.export(RESPONSE_KEY), context.export(RESPONSE_NONCE))
}

/// Seals the chunks of one attempt, in order. Held by the provider.
pub struct ResponseSealer {
    sealing: Sealing,
    attempt: AttemptId,
    next: u64,
}

impl ResponseSealer {
    /// The next chunk: its counter, for the frame's header, and its ciphertext.
    pub fn seal(&mut self, plaintext: &[u8]) -> (u64, Vec<u8>) {
        let counter = self.next;
        self.next = counter.checked_add(1).expect("an answer has fewer than 2^64 chunks");
        (counter, self.sealing.seal(counter, &associated(KIND_CHUNK, self.attempt, counter), plaintext))
    }
}

/// Opens the chunks of one attempt, in order. Held by the coordinator.
pub struct ResponseOpener {
    sealing: Sealing,
    attempt: AttemptId,
    next: u64,
    broken: bool,
}

impl ResponseOpener {
    /// The counter of the chunk that is due.
    pub fn next_counter(&self) -> u64 {
        self.next
    }

    /// Opens the chunk whose frame says `counter`.
    ///
    /// # Errors
    /// The chunk is not the next one, or does not open. After an error every later chunk is refused too
    /// ([`TrustError::Broken`]): an answer with a hole in it is not an answer.
    pub fn open(&mut self, counter: u64, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, TrustError> {
        if self.broken {
            return Err(TrustError::Broken);
        }
        let opened = self.open_next(counter, ciphertext);
        match opened {
            // A peer cannot reach the end: it would have to send 2^64 chunks.
            Ok(_) => self.next = self.next.saturating_add(1),
            Err(_) => self.broken = true,
        }
        opened
    }

    fn open_next(&self, counter: u64, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, TrustError> {
        if counter != self.next {
            return Err(TrustError::OutOfOrder { expected: self.next, got: counter });
        }
        self.sealing
            .open(counter, &associated(KIND_CHUNK, self.attempt, counter), ciphertext)
            .ok_or(TrustError::DoesNotOpen { what: "the chunk" })
    }
}
