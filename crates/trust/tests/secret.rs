//! What secrets and hashes promise.

use std::collections::HashSet;

use trust::{Sha256, hash_secret, hex, new_api_key, new_join_token, secrets_equal, sha256, unhex};

#[test]
fn an_api_key_is_new_each_time_and_found_by_its_hash() {
    let drawn: HashSet<String> = (0..100)
        .map(|_| {
            let (secret, hash) = new_api_key();
            assert_eq!(hash, hash_secret(&secret));
            let characters = secret.strip_prefix("sk-phx-").unwrap();
            assert_eq!(characters.len(), 43);
            assert!(characters.bytes().all(|b| b.is_ascii_alphanumeric()));
            secret.to_string()
        })
        .collect();
    assert_eq!(drawn.len(), 100);
}

#[test]
fn secrets_use_their_whole_alphabet_evenly() {
    let mut counts = [0u32; 128];
    for _ in 0..500 {
        let token = new_join_token();
        token.strip_prefix("join-phx-").unwrap().bytes().for_each(|b| counts[usize::from(b)] += 1);
    }
    let seen: Vec<u32> = counts.into_iter().filter(|count| *count > 0).collect();
    assert_eq!(seen.len(), 62);
    // 347 expected of each, standard deviation 18.5: eight deviations to each side.
    assert!(seen.iter().all(|count| (199..=495).contains(count)), "{seen:?}");
}

#[test]
fn secrets_are_equal_only_when_every_byte_is() {
    assert!(secrets_equal(b"", b""));
    assert!(secrets_equal(b"join-phx-1", b"join-phx-1"));
    assert!(!secrets_equal(b"join-phx-1", b"join-phx-2"));
    assert!(!secrets_equal(b"join-phx-1", b"join-phx-11"));
}

#[test]
fn sha_256_is_that_of_fips_180_in_one_piece_and_in_many() {
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(hex(&sha256(b"abc")), expected);
    let mut pieces = Sha256::new();
    pieces.update(b"a");
    pieces.update(b"");
    pieces.update(b"bc");
    assert_eq!(hex(&pieces.finish()), expected);
}

#[test]
fn hexadecimal_reads_back_and_refuses_what_is_none() {
    assert_eq!(hex(&[0x00, 0x9f, 0xff]), "009fff");
    assert_eq!(unhex("009FfF"), Some(vec![0x00, 0x9f, 0xff]));
    assert_eq!(unhex(""), Some(vec![]));
    for text in ["0", "0g", "é0", "+1", " 1"] {
        assert_eq!(unhex(text), None, "{text:?}");
    }
}
