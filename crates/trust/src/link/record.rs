//! TLS 1.3 records (RFC 8446, section 5.2) with keys taken from a finished handshake.
//!
//! A record's nonce is its position, so one that was lost, repeated, moved or changed does not open, and nothing after
//! a record that does not open is believed. AES-GCM's bound (RFC 8446, section 5.5: 2^24.5 records a key) is kept by a
//! step that both sides take on their own after every 2^22 records: the next key and initialisation vector are HKDF
//! (RFC 5869, SHA-256) of the former ones, which are wiped. A group of two that sums 32 times a token at 50 tokens a
//! second takes that step every 44 minutes.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets};
use zeroize::Zeroizing;

use crate::TrustError;

/// The most that one record carries (RFC 8446, section 5.1).
pub const RECORD_PLAINTEXT_MAX: usize = 1 << 14;
/// What sealing adds to it: header, the inner content type, the tag.
pub const RECORD_OVERHEAD: usize = HEADER_BYTES + 1 + TAG_BYTES;
/// The longest record that is read: RFC 8446 lets a handshake's be 256 bytes longer than its plaintext.
pub const RECORD_BYTES_MAX: usize = HEADER_BYTES + RECORD_PLAINTEXT_MAX + 256;

const HEADER_BYTES: usize = 5;
const TAG_BYTES: usize = 16;
const APPLICATION_DATA: u8 = 23;
const ALERT: u8 = 21;
/// Records under one key.
const RECORDS_PER_KEY: u64 = 1 << 22;

/// How long the record is that begins with `start`; `None` while too little of it is there.
///
/// # Errors
/// It is longer than a record may be.
pub fn record_bytes(start: &[u8]) -> Result<Option<usize>, TrustError> {
    let Some(head) = start.get(..HEADER_BYTES) else { return Ok(None) };
    let length = HEADER_BYTES + usize::from(u16::from_be_bytes([head[3], head[4]]));
    if length > RECORD_BYTES_MAX {
        return Err(TrustError::DoesNotOpen { what: "the record" });
    }
    Ok(Some(length))
}

/// One direction's key and position.
struct Direction {
    key: LessSafeKey,
    secret: Zeroizing<[u8; 44]>,
    next: u64,
    /// Records until the key is due for its step.
    left: u64,
}

impl Direction {
    fn new(secret: Zeroizing<[u8; 44]>, next: u64) -> Self {
        Self { key: key_of(&secret), secret, next, left: RECORDS_PER_KEY }
    }

    /// The next record's nonce: its position, into the initialisation vector.
    fn advance(&mut self) -> Nonce {
        if self.left == 0 {
            self.secret = stepped(&self.secret);
            self.key = key_of(&self.secret);
            self.left = RECORDS_PER_KEY;
        }
        self.left -= 1;
        let mut nonce: [u8; 12] = std::array::from_fn(|i| self.secret[32 + i]);
        for (byte, position) in nonce[4..].iter_mut().zip(self.next.to_be_bytes()) {
            *byte ^= position;
        }
        self.next = self.next.checked_add(1).expect("a link carries fewer than 2^64 records");
        Nonce::assume_unique_for_key(nonce)
    }
}

fn key_of(secret: &[u8; 44]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &secret[..32]).expect("32 bytes are a key"))
}

/// HKDF-Expand(HKDF-Extract("phalanx link step", secret), "", 44).
fn stepped(secret: &[u8; 44]) -> Zeroizing<[u8; 44]> {
    let hash = |key: &[u8], message: &[&[u8]]| {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
        message.iter().for_each(|part| context.update(part));
        let tag = context.sign();
        let mut out = Zeroizing::new([0; 32]);
        out.copy_from_slice(tag.as_ref());
        out
    };
    let extracted = hash(b"phalanx link step", &[secret]);
    let first = hash(extracted.as_slice(), &[&[1]]);
    let second = hash(extracted.as_slice(), &[first.as_slice(), &[2]]);
    let mut out = Zeroizing::new([0; 44]);
    out[..32].copy_from_slice(first.as_slice());
    out[32..].copy_from_slice(&second[..12]);
    out
}

/// Both directions of a finished handshake; `None` where another cipher was agreed.
pub(super) fn of_secrets(secrets: ExtractedSecrets) -> Option<(RecordSealer, RecordOpener)> {
    let direction = |(next, secrets): (u64, ConnectionTrafficSecrets)| match secrets {
        ConnectionTrafficSecrets::Aes256Gcm { key, iv } => {
            let mut secret = Zeroizing::new([0; 44]);
            secret[..32].copy_from_slice(key.as_ref());
            secret[32..].copy_from_slice(iv.as_ref());
            Some(Direction::new(secret, next))
        }
        _ => None,
    };
    let sealer = RecordSealer { direction: direction(secrets.tx)? };
    Some((sealer, RecordOpener { direction: direction(secrets.rx)?, broken: false }))
}

/// Seals what goes out, record by record.
pub struct RecordSealer {
    direction: Direction,
}

impl RecordSealer {
    /// Appends one record with `plaintext` to `out`.
    ///
    /// # Panics
    /// Where `plaintext` is longer than [`RECORD_PLAINTEXT_MAX`].
    pub fn seal(&mut self, plaintext: &[u8], out: &mut Vec<u8>) {
        assert!(plaintext.len() <= RECORD_PLAINTEXT_MAX, "a record of {} bytes", plaintext.len());
        let length = u16::try_from(plaintext.len() + 1 + TAG_BYTES).expect("checked just above");
        let [high, low] = length.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        out.reserve(plaintext.len() + RECORD_OVERHEAD);
        out.extend_from_slice(&header);
        let start = out.len();
        out.extend_from_slice(plaintext);
        out.push(APPLICATION_DATA);
        let nonce = self.direction.advance();
        let tag = self
            .direction
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..])
            .expect("a record is far below AES-GCM's limit");
        out.extend_from_slice(tag.as_ref());
    }
}

/// Opens what comes in, record by record.
pub struct RecordOpener {
    direction: Direction,
    broken: bool,
}

impl RecordOpener {
    /// Opens the next record, whole and with its header, in place: its plaintext.
    ///
    /// # Errors
    /// It is not the next one, was changed, or is no application data. After an error every later record is refused.
    pub fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<&'a [u8], TrustError> {
        if self.broken {
            return Err(TrustError::Broken);
        }
        self.broken = true;
        let (kind, plaintext) =
            self.open_next(record).ok_or(TrustError::DoesNotOpen { what: "the record" })?;
        match (kind, plaintext) {
            (APPLICATION_DATA, plaintext) => {
                self.broken = false;
                Ok(plaintext)
            }
            (ALERT, &[_, alert]) => Err(TrustError::Alert { alert }),
            // Handshake messages have no place after the handshake.
            _ => Err(TrustError::DoesNotOpen { what: "the record" }),
        }
    }

    fn open_next<'a>(&mut self, record: &'a mut [u8]) -> Option<(u8, &'a [u8])> {
        let header: [u8; HEADER_BYTES] = record.get(..HEADER_BYTES)?.try_into().ok()?;
        if header[0] != APPLICATION_DATA || record_bytes(&header).ok()?? != record.len() {
            return None;
        }
        let nonce = self.direction.advance();
        let body = &mut record[HEADER_BYTES..];
        let opened = self.direction.key.open_in_place(nonce, Aad::from(header), body).ok()?;
        opened.split_last().map(|(kind, plaintext)| (*kind, plaintext))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (RecordSealer, RecordOpener) {
        let secret = || Zeroizing::new(std::array::from_fn(|i| i as u8));
        let opener = RecordOpener { direction: Direction::new(secret(), 3), broken: false };
        (RecordSealer { direction: Direction::new(secret(), 3) }, opener)
    }

    #[test]
    fn the_key_steps_on_both_sides_at_the_same_record() {
        let (mut sealer, mut opener) = pair();
        sealer.direction.left = 2;
        opener.direction.left = 2;
        let before = sealer.direction.secret.clone();
        for round in 0..5u8 {
            let mut record = Vec::new();
            sealer.seal(&[round; 100], &mut record);
            assert_eq!(opener.open(&mut record).unwrap(), [round; 100]);
        }
        assert!(*before != *sealer.direction.secret);
        assert!(*opener.direction.secret == *sealer.direction.secret);
    }
}
