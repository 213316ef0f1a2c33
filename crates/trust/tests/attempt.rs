//! What a sealed attempt and its answer promise: only the right machine, the right attempt, the right order.

use base::AttemptId;
use proptest::prelude::*;
use trust::{
    ENCAPSULATED_BYTES, MachineKeys, ResponseOpener, ResponseSealer, TAG_BYTES, TrustError, open_attempt,
    seal_attempt,
};

const ATTEMPT: AttemptId = AttemptId(0x1234_5678_9abc_def0_1122_3344_5566_7788);

fn exchange(keys: &MachineKeys, attempt: AttemptId) -> (ResponseOpener, ResponseSealer) {
    let (sealed, opener) = seal_attempt(&keys.sealing_key(), attempt, b"a job").expect("a good key");
    let (job, sealer) =
        open_attempt(keys, attempt, &sealed.encapsulated, &sealed.ciphertext).expect("sealed to these keys");
    assert_eq!(job.as_slice(), b"a job");
    (opener, sealer)
}

#[test]
fn an_attempt_and_its_answer_arrive_as_they_were() {
    let keys = MachineKeys::generate();
    let (mut opener, mut sealer) = exchange(&keys, ATTEMPT);
    for index in 0..300u64 {
        let chunk = vec![index as u8; index as usize];
        let (counter, ciphertext) = sealer.seal(&chunk);
        assert_eq!(counter, index);
        assert_eq!(ciphertext.len(), chunk.len() + TAG_BYTES);
        assert_eq!(*opener.open(counter, &ciphertext).unwrap(), chunk);
    }
}

#[test]
fn the_same_job_is_sealed_differently_each_time_and_never_shows() {
    let keys = MachineKeys::generate();
    let job = b"the quick brown fox jumps over the lazy dog".repeat(4);
    let (one, _) = seal_attempt(&keys.sealing_key(), ATTEMPT, &job).unwrap();
    let (other, _) = seal_attempt(&keys.sealing_key(), ATTEMPT, &job).unwrap();
    assert_ne!(one.encapsulated, other.encapsulated);
    assert_ne!(one.ciphertext, other.ciphertext);
    assert!(!one.ciphertext.windows(8).any(|window| job.windows(8).any(|plain| plain == window)));
}

#[test]
fn another_machine_or_another_attempt_cannot_open_it() {
    let (keys, stranger) = (MachineKeys::generate(), MachineKeys::generate());
    let (sealed, _) = seal_attempt(&keys.sealing_key(), ATTEMPT, b"a job").unwrap();
    let open = |keys, attempt| open_attempt(keys, attempt, &sealed.encapsulated, &sealed.ciphertext).err();
    assert_eq!(open(&keys, ATTEMPT), None);
    assert_eq!(open(&stranger, ATTEMPT), Some(TrustError::DoesNotOpen { what: "the attempt" }));
    let other = AttemptId(ATTEMPT.0 ^ 1);
    assert_eq!(open(&keys, other), Some(TrustError::DoesNotOpen { what: "the attempt" }));
}

#[test]
fn keys_of_another_length_or_of_small_order_are_refused_by_name() {
    let keys = MachineKeys::generate();
    let short = seal_attempt(&[1; 31], ATTEMPT, b"a job").err().unwrap();
    assert_eq!(short.to_string(), "the machine's sealing key is 31 bytes long, not 32");
    let weak = seal_attempt(&[0; 32], ATTEMPT, b"a job").err().unwrap();
    assert_eq!(weak, TrustError::WeakKey { what: "the machine's sealing key" });
    let empty = open_attempt(&keys, ATTEMPT, &[], b"").err().unwrap();
    assert_eq!(empty, TrustError::KeyLength { what: "the encapsulated key", length: 0, expected: 32 });
    let weak = open_attempt(&keys, ATTEMPT, &[0; ENCAPSULATED_BYTES], &[0; 64]).err().unwrap();
    assert_eq!(weak, TrustError::WeakKey { what: "the encapsulated key" });
}

#[test]
fn a_chunk_lost_repeated_moved_or_from_another_attempt_ends_the_answer() {
    let keys = MachineKeys::generate();

    let (mut opener, mut sealer) = exchange(&keys, ATTEMPT);
    let (first, second) = (sealer.seal(b"first"), sealer.seal(b"second"));
    assert_eq!(opener.open(second.0, &second.1).err(), Some(TrustError::OutOfOrder { expected: 0, got: 1 }));
    assert_eq!(opener.open(first.0, &first.1).err(), Some(TrustError::Broken));

    let (mut opener, mut sealer) = exchange(&keys, ATTEMPT);
    let (counter, first) = sealer.seal(b"first");
    opener.open(counter, &first).unwrap();
    assert_eq!(opener.open(0, &first).err(), Some(TrustError::OutOfOrder { expected: 1, got: 0 }));

    // A header that lies about the counter: the ciphertext is bound to the true one.
    let (mut opener, mut sealer) = exchange(&keys, ATTEMPT);
    let _lost = sealer.seal(b"first");
    let (_, second) = sealer.seal(b"second");
    assert_eq!(opener.open(0, &second).err(), Some(TrustError::DoesNotOpen { what: "the chunk" }));

    let (mut opener, _) = exchange(&keys, ATTEMPT);
    let (_, mut other) = exchange(&keys, AttemptId(1));
    let (counter, chunk) = other.seal(b"of another attempt");
    assert_eq!(opener.open(counter, &chunk).err(), Some(TrustError::DoesNotOpen { what: "the chunk" }));
}

#[test]
fn plaintext_where_a_chunk_is_due_is_refused() {
    let keys = MachineKeys::generate();
    for plain in [&b""[..], b"hello", b"a plaintext that is longer than a tag would be"] {
        let (mut opener, _) = exchange(&keys, ATTEMPT);
        assert_eq!(opener.open(0, plain).err(), Some(TrustError::DoesNotOpen { what: "the chunk" }));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_changed_bit_of_a_sealed_job_keeps_it_shut(
        job in proptest::collection::vec(any::<u8>(), 0..200),
        position in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let keys = MachineKeys::generate();
        let (sealed, _) = seal_attempt(&keys.sealing_key(), ATTEMPT, &job).unwrap();
        let mut bytes = [sealed.encapsulated.as_slice(), &sealed.ciphertext].concat();
        let at = position.index(bytes.len());
        // The top bit of an X25519 public key is ignored by the curve, but the key schedule hashes it.
        bytes[at] ^= 1 << bit;
        let (encapsulated, ciphertext) = bytes.split_at(ENCAPSULATED_BYTES);
        prop_assert!(open_attempt(&keys, ATTEMPT, encapsulated, ciphertext).is_err());
    }

    #[test]
    fn opening_arbitrary_bytes_fails_without_panic(
        encapsulated in proptest::collection::vec(any::<u8>(), 0..40),
        ciphertext in proptest::collection::vec(any::<u8>(), 0..200),
        counter in any::<u64>(),
    ) {
        let keys = MachineKeys::generate();
        prop_assert!(open_attempt(&keys, ATTEMPT, &encapsulated, &ciphertext).is_err());
        let (mut opener, _) = exchange(&keys, ATTEMPT);
        prop_assert!(opener.open(counter, &ciphertext).is_err());
    }
}
