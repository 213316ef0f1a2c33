//! The vectors of RFC 9180, appendix A.1.1, and some made with an independent implementation for the suite in use.

use aws_lc_rs::aead::AES_128_GCM;

use super::*;
use crate::unhex;

const RFC_SUITE: Suite = Suite { id: b"HPKE\x00\x20\x00\x01\x00\x01", aead: &AES_128_GCM };

const RFC_INFO: &str = "4f6465206f6e2061204772656369616e2055726e";
const RFC_EPHEMERAL: &str = "52c4a758a802cd8b936eceea314432798d5baf2d7e9235dc084ab1b9cfa2f736";
const RFC_ENCAPSULATED: &str = "37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431";
const RFC_RECIPIENT_PRIVATE: &str = "4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8";
const RFC_RECIPIENT: &str = "3948cfe0ad1ddb695d780e59077195da6c56506b027329794ab02bca80815c4d";
const RFC_PLAINTEXT: &str = "4265617574792069732074727574682c20747275746820626561757479";
const RFC_SEALED: [(u64, &str); 6] = [
    (0, "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a96d8770ac83d07bea87e13c512a"),
    (1, "af2d7e9ac9ae7e270f46ba1f975be53c09f8d875bdc8535458c2494e8a6eab251c03d0c22a56b8ca42c2063b84"),
    (2, "498dfcabd92e8acedc281e85af1cb4e3e31c7dc394a1ca20e173cb72516491588d96a19ad4a683518973dcc180"),
    (4, "583bd32bc67a5994bb8ceaca813d369bca7b2a42408cddef5e22f880b631215a09fc0012bc69fccaa251c0246d"),
    (255, "7175db9717964058640a3a11fb9007941a5d1757fda1a6935c805c21af32505bf106deefec4a49ac38d71c9e0a"),
    (256, "957f9800542b0b8891badb026d79cc54597cb2d225b54c00c5238c25d05c30e3fbeda97d2e0e1aba483a2df9f2"),
];
const RFC_EXPORTED: [(&[u8], &str); 3] = [
    (b"", "3853fe2b4035195a573ffc53856e77058e15d9ea064de3e59f4961d0095250ee"),
    (b"\0", "2e8f0b54673c7029649d4eb9d5e33bf1872cf76d623ff164ac185da9e88c21a5"),
    (b"TestContext", "e9e43065102c3836401bed8c3c3c75ae46be1639869391d62c61f1ec7af54931"),
];

fn bytes(text: &str) -> Vec<u8> {
    unhex(text).unwrap()
}

fn key(text: &str) -> [u8; KEY_BYTES] {
    bytes(text).try_into().unwrap()
}

fn private(text: &str) -> PrivateKey {
    PrivateKey::from_private_key(&X25519, &bytes(text)).unwrap()
}

#[test]
fn the_key_agreement_gives_the_shared_secret_of_rfc_9180_on_both_sides() {
    let expected = bytes("fe0e18c9f024ce43799ae393c7e8fe8fce9d218875e8227b0187c04e7d2ea1fc");
    let (encapsulated, recipient) = (key(RFC_ENCAPSULATED), key(RFC_RECIPIENT));
    assert_eq!(public_of(&private(RFC_EPHEMERAL)), encapsulated);
    assert_eq!(public_of(&private(RFC_RECIPIENT_PRIVATE)), recipient);
    let sent = shared_secret(&private(RFC_EPHEMERAL), &recipient, &encapsulated, &recipient, "").unwrap();
    let received =
        shared_secret(&private(RFC_RECIPIENT_PRIVATE), &encapsulated, &encapsulated, &recipient, "").unwrap();
    assert_eq!(sent.as_slice(), expected);
    assert_eq!(received.as_slice(), expected);
}

#[test]
fn sealing_opening_and_exporting_give_the_values_of_rfc_9180() {
    let info = bytes(RFC_INFO);
    let (sender, encapsulated) =
        Context::to_recipient_with(&RFC_SUITE, &private(RFC_EPHEMERAL), &key(RFC_RECIPIENT), &info).unwrap();
    let receiver = Context::from_sender(
        &RFC_SUITE,
        &private(RFC_RECIPIENT_PRIVATE),
        &key(RFC_RECIPIENT),
        &encapsulated,
        &info,
    )
    .unwrap();
    assert_eq!(sender.sealing.base_nonce.as_slice(), bytes("56d890e5accaaf011cff4b7d"));
    assert_eq!(
        sender.exporter_secret.as_slice(),
        bytes("45ff1c2e220db587171952c0592d5f5ebe103f1561a2614e38f2ffd47e99e3f8")
    );
    for (counter, sealed) in RFC_SEALED {
        let associated = format!("Count-{counter}");
        let plaintext = bytes(RFC_PLAINTEXT);
        assert_eq!(sender.sealing.seal(counter, associated.as_bytes(), &plaintext), bytes(sealed));
        let opened = receiver.sealing.open(counter, associated.as_bytes(), &bytes(sealed)).unwrap();
        assert_eq!(*opened, plaintext);
    }
    for (label, value) in RFC_EXPORTED {
        assert_eq!(sender.export::<32>(label).as_slice(), bytes(value));
        assert_eq!(receiver.export::<32>(label).as_slice(), bytes(value));
    }
}

// Made with crate `hpke` 0.15.1 (on curve25519-dalek and RustCrypto's AES) for the suite in use, with the info
// "golden info": that RFC 9180's appendix has no vector for X25519 with AES-256-GCM is why they are here.
const OTHER_RECIPIENT_PRIVATE: &str = "98a300999027ec7ab4e1ed2c0d39ce965d9d2dec29a0c88d4ab6cb527c588b7d";
const OTHER_RECIPIENT: &str = "ae3bf1cd87c2d2ed25af4a1a239eed04a990f00e7403e4c8065927de010fd17a";
const OTHER_ENCAPSULATED: &str = "6514cb71abdaa95ccf244967f89dc34b5215c4fbc53c315d78bd50aaf3dbe421";
const OTHER_SEALED: [&str; 3] = [
    "548fb612589c39a279d50c947b004b53fba739f21f53d7461f1e5ecc30e32af6efebc973900f0e2a9639d6ee0a",
    "52967a9d5d077b84fede8b5d458679ae185b7271570bdfb7e7fad6e000559e5d430ec888b39d722693009c0f70",
    "3ae3677f1b5681381a8c47538316e5ceacff3effa1caf9437631033424c36f78665366f709711bbf60c531b422",
];
const OTHER_EXPORTED: [(&[u8], &str); 2] = [
    (b"", "cd2b4dd4e8fbbd16790b1badfe7f19c87dba142fe7912aef347f18b21e04289e"),
    (b"phalanx", "1b668eb8e54f48b09bce4ecc576eb4c5d716c75db65e5572003b4a2677e52bcd"),
];

#[test]
fn what_another_implementation_sealed_with_our_suite_opens_here() {
    assert_eq!(public_of(&private(OTHER_RECIPIENT_PRIVATE)), key(OTHER_RECIPIENT));
    let receiver = Context::from_sender(
        &SUITE,
        &private(OTHER_RECIPIENT_PRIVATE),
        &key(OTHER_RECIPIENT),
        &key(OTHER_ENCAPSULATED),
        b"golden info",
    )
    .unwrap();
    for (counter, sealed) in (0..).zip(OTHER_SEALED) {
        let associated = format!("Count-{counter}");
        let opened = receiver.sealing.open(counter, associated.as_bytes(), &bytes(sealed)).unwrap();
        assert_eq!(*opened, bytes(RFC_PLAINTEXT));
    }
    for (label, value) in OTHER_EXPORTED {
        assert_eq!(receiver.export::<32>(label).as_slice(), bytes(value));
    }
}
