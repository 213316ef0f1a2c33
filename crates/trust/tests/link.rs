//! Links between machines: who may open one, and that no record can be changed, lost, repeated or moved.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use trust::{
    HandshakeError, LinkHandshake, MachineKeys, RECORD_OVERHEAD, RECORD_PLAINTEXT_MAX, SealedLink,
    TrustError, record_bytes,
};

/// Carries records between both sides until both are done, or one refuses.
fn shake(
    mut a: LinkHandshake,
    mut b: LinkHandshake,
) -> Result<(SealedLink, SealedLink), Vec<HandshakeError>> {
    let mut errors = Vec::new();
    for _ in 0..8 {
        for turn in 0..2 {
            let (from, to) = if turn == 0 { (&mut a, &mut b) } else { (&mut b, &mut a) };
            let mut flight = Vec::new();
            from.outgoing(&mut flight);
            let mut rest = flight.as_slice();
            while let Ok(Some(length)) = record_bytes(rest) {
                let (record, after) = rest.split_at(length);
                rest = after;
                errors.extend(to.record(record).err());
            }
            assert!(rest.is_empty(), "whole records are sent");
        }
    }
    if errors.is_empty() { Ok((a.finish().unwrap(), b.finish().unwrap())) } else { Err(errors) }
}

fn linked() -> (SealedLink, SealedLink) {
    let (a, b) = (MachineKeys::generate(), MachineKeys::generate());
    let stranger = MachineKeys::generate();
    let dial = LinkHandshake::dial(&a, b.signing_key());
    let accept = LinkHandshake::accept(&b, vec![stranger.signing_key(), a.signing_key()]);
    let (left, right) = shake(dial, accept).unwrap();
    assert_eq!((left.peer_key, right.peer_key), (b.signing_key(), a.signing_key()));
    (left, right)
}

#[test]
fn both_sides_prove_their_keys_and_then_speak_in_records() {
    let (mut left, mut right) = linked();
    for length in [0, 1, 8_192, RECORD_PLAINTEXT_MAX] {
        let text = vec![length as u8; length];
        let mut record = Vec::new();
        left.sealer.seal(&text, &mut record);
        assert_eq!(record.len(), length + RECORD_OVERHEAD);
        assert_eq!(record_bytes(&record), Ok(Some(record.len())));
        assert_eq!(record[..3], [23, 3, 3], "it looks like TLS 1.3 on the wire");
        assert!(length < 32 || !record.windows(16).any(|w| w == &text[..16]));
        assert_eq!(right.opener.open(&mut record).unwrap(), text);
        let mut back = Vec::new();
        right.sealer.seal(b"back", &mut back);
        assert_eq!(left.opener.open(&mut back).unwrap(), b"back");
    }
}

#[test]
fn a_machine_that_is_not_on_the_roster_is_named_and_told() {
    let (a, b, c) = (MachineKeys::generate(), MachineKeys::generate(), MachineKeys::generate());
    // The dialler meets another machine than it was sent to.
    let dial = LinkHandshake::dial(&a, c.signing_key());
    let errors = shake(dial, LinkHandshake::accept(&b, vec![a.signing_key()])).err().unwrap();
    assert!(errors.contains(&HandshakeError::WrongKey { found: b.machine() }), "{errors:?}");
    // The acceptor meets one that it does not expect; the dialler is told.
    let dial = LinkHandshake::dial(&c, b.signing_key());
    let errors = shake(dial, LinkHandshake::accept(&b, vec![a.signing_key()])).err().unwrap();
    assert!(errors.contains(&HandshakeError::WrongKey { found: c.machine() }), "{errors:?}");
    assert!(errors.contains(&HandshakeError::KeyRefused), "{errors:?}");
}

#[test]
fn records_that_are_changed_lost_repeated_or_moved_end_the_link() {
    type Harm = fn(&mut Vec<Vec<u8>>);
    let harms: [Harm; 6] = [
        |records| records[0][20] ^= 1,
        |records| records[0][1] ^= 1,
        |records| drop(records.remove(0)),
        |records| records.insert(1, records[0].clone()),
        |records| records.swap(0, 1),
        |records| records[0].truncate(70),
    ];
    for (index, harm) in harms.iter().enumerate() {
        let (mut left, mut right) = linked();
        let mut records: Vec<Vec<u8>> = Vec::new();
        for i in 0..3u8 {
            let mut record = Vec::new();
            left.sealer.seal(&[i; 64], &mut record);
            records.push(record);
        }
        harm(&mut records);
        let results: Vec<_> = records.iter_mut().map(|r| right.opener.open(r).map(<[u8]>::to_vec)).collect();
        let first = results.iter().position(Result::is_err).unwrap();
        assert!(first <= 1, "harm {index}");
        assert_eq!(results[first], Err(TrustError::DoesNotOpen { what: "the record" }));
        for later in &results[first + 1..] {
            assert_eq!(*later, Err(TrustError::Broken), "harm {index}");
        }
    }
}

#[test]
fn a_record_that_was_sent_back_to_its_sender_does_not_open() {
    let (mut left, _right) = linked();
    let mut record = Vec::new();
    left.sealer.seal(b"mine", &mut record);
    assert!(left.opener.open(&mut record).is_err());
}

#[test]
fn noise_is_no_handshake() {
    let keys = MachineKeys::generate();
    for noise in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[99, 3, 1, 0, 1, 0], &[23, 3, 3, 0, 1, 0]] {
        let mut accept = LinkHandshake::accept(&keys, vec![]);
        assert!(matches!(accept.record(noise), Err(HandshakeError::Tls(_))), "{noise:?}");
    }
    assert!(record_bytes(&[23, 3, 3, 0xff, 0xff]).is_err());
    assert_eq!(record_bytes(&[23, 3, 3]), Ok(None));
}
