//! What a machine's identity promises: it survives being written down, and nobody else can claim it.

use base::{Incarnation, MachineId};
use proptest::prelude::*;
use trust::{
    KeyFileError, MachineKeys, Registration, SECRET_BYTES, TrustError, machine_of, open_attempt,
    seal_attempt, sha256, unhex, verify,
};

#[test]
fn written_keys_read_back_as_the_same_machine() {
    let keys = MachineKeys::generate();
    let bytes = keys.to_secret_bytes();
    assert_eq!(bytes.len(), SECRET_BYTES);
    let again = MachineKeys::from_secret_bytes(&bytes).unwrap();
    assert_eq!(again.machine(), keys.machine());
    assert_eq!(again.machine(), machine_of(&keys.signing_key()));
    let (sealed, _) = seal_attempt(&keys.sealing_key(), base::AttemptId(1), b"job").unwrap();
    let opened = open_attempt(&again, base::AttemptId(1), &sealed.encapsulated, &sealed.ciphertext);
    assert_eq!(opened.unwrap().0.as_slice(), b"job");
    assert_eq!(verify(&keys.signing_key(), b"message", &again.sign(b"message")), Ok(()));
}

#[test]
fn the_key_file_begins_with_its_name_and_version() {
    let bytes = MachineKeys::generate().to_secret_bytes();
    assert_eq!(&bytes[..16], b"phalanx-keys\x01\0\0\0");
}

#[test]
fn a_key_file_that_is_none_or_damaged_or_newer_says_so_and_what_to_do() {
    let good = MachineKeys::generate().to_secret_bytes().to_vec();
    let error = |bytes: &[u8]| MachineKeys::from_secret_bytes(bytes).err().unwrap();
    assert_eq!(error(b""), KeyFileError::NotKeys);
    assert_eq!(error(b"-----BEGIN PRIVATE KEY-----"), KeyFileError::NotKeys);
    assert_eq!(error(&good[..12]), KeyFileError::Length { length: 12 });
    assert_eq!(error(&good[..SECRET_BYTES - 1]), KeyFileError::Length { length: SECRET_BYTES - 1 });
    assert!(error(&good[..40]).to_string().contains("restore it from a backup"));
    let longer = [good.as_slice(), b"\n"].concat();
    assert_eq!(error(&longer), KeyFileError::Length { length: SECRET_BYTES + 1 });
    let mut newer = good.clone();
    newer[12] = 2;
    assert_eq!(error(&newer), KeyFileError::Version { version: 2 });
    for at in 14..SECRET_BYTES {
        let mut damaged = good.clone();
        damaged[at] ^= 0x10;
        assert_eq!(error(&damaged), KeyFileError::Damaged, "byte {at}");
    }
}

#[test]
fn a_key_file_whose_checksum_fits_but_whose_machine_does_not_is_damaged() {
    let mut bytes = MachineKeys::generate().to_secret_bytes().to_vec();
    bytes[80] ^= 1;
    let check = sha256(&bytes[..96]);
    bytes[96..].copy_from_slice(&check[..16]);
    assert_eq!(MachineKeys::from_secret_bytes(&bytes).err(), Some(KeyFileError::Damaged));
}

#[test]
fn signatures_are_those_of_rfc_8032() {
    // RFC 8032, section 7.1, test 2.
    let public = unhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c").unwrap();
    let signature = unhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da\
         085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    )
    .unwrap();
    assert_eq!(verify(&public, &[0x72], &signature), Ok(()));
    assert_eq!(verify(&public, &[0x73], &signature), Err(TrustError::BadSignature));
    assert_eq!(verify(&public, &[0x72], &signature[..63]), Err(TrustError::BadSignature));
    let short = verify(&public[..31], &[0x72], &signature).unwrap_err();
    assert_eq!(short.to_string(), "the machine's signing key is 31 bytes long, not 32");
}

struct Said {
    keys: MachineKeys,
    nonce: Vec<u8>,
    capabilities: Vec<String>,
}

impl Said {
    fn new() -> Self {
        Self {
            keys: MachineKeys::generate(),
            nonce: trust::random_bytes::<{ trust::NONCE_BYTES }>().to_vec(),
            capabilities: vec!["logprobs".into(), "resume".into()],
        }
    }

    fn with<T>(&self, use_it: impl FnOnce(Registration<'_>) -> T) -> T {
        use_it(Registration {
            nonce: &self.nonce,
            protocol: 1,
            token: "join-phx-secret",
            machine: self.keys.machine(),
            incarnation: Incarnation(5),
            name: "studio",
            agent: "phalanx/0.1.0",
            signing_key: &self.keys.signing_key(),
            sealing_key: &self.keys.sealing_key(),
            capabilities: &self.capabilities,
        })
    }
}

#[test]
fn a_proof_holds_for_what_was_said_and_for_nothing_else() {
    let said = Said::new();
    let proof = said.with(|registration| registration.prove(&said.keys));
    assert_eq!(said.with(|registration| registration.check(&proof)), Ok(()));
    let stranger = MachineKeys::generate();
    let refused = |change: &dyn Fn(&mut Registration<'_>)| {
        said.with(|mut registration| {
            change(&mut registration);
            assert_eq!(registration.check(&proof), Err(TrustError::BadSignature));
        });
    };
    refused(&|r| r.nonce = &[0; 32]);
    refused(&|r| r.protocol = 2);
    refused(&|r| r.token = "join-phx-other");
    refused(&|r| r.machine = MachineId(1));
    refused(&|r| r.incarnation = Incarnation(6));
    refused(&|r| r.name = "laptop");
    refused(&|r| r.agent = "phalanx/0.1.1");
    refused(&|r| r.sealing_key = &[9; 32]);
    refused(&|r| r.capabilities = &[]);
    // Somebody who has only the public key, and somebody with a key of their own under this machine's id.
    let forged = said.with(|registration| registration.prove(&stranger));
    assert_eq!(said.with(|registration| registration.check(&forged)), Err(TrustError::BadSignature));
    let signing_key = stranger.signing_key();
    let claimed = Registration {
        nonce: &said.nonce,
        protocol: 1,
        token: "join-phx-secret",
        machine: said.keys.machine(),
        incarnation: Incarnation(5),
        name: "studio",
        agent: "phalanx/0.1.0",
        signing_key: &signing_key,
        sealing_key: &signing_key,
        capabilities: &[],
    };
    assert_eq!(claimed.check(&claimed.prove(&stranger)), Err(TrustError::BadSignature));
}

#[test]
fn a_transcript_never_holds_the_token_and_moving_text_between_fields_changes_it() {
    let said = Said::new();
    let transcript = said.with(|registration| registration.transcript());
    assert!(!transcript.windows(6).any(|window| window == b"secret"));
    let moved = said.with(|mut registration| {
        registration.name = "studi";
        registration.agent = "ophalanx/0.1.0";
        registration.transcript()
    });
    assert_ne!(transcript, moved);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reading_arbitrary_bytes_as_keys_fails_without_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        named in any::<bool>(),
    ) {
        let bytes = if named { [&b"phalanx-keys\x01\0"[..], &bytes].concat() } else { bytes };
        prop_assert!(MachineKeys::from_secret_bytes(&bytes).is_err());
    }
}
