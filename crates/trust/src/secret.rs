//! Secrets that people and programs hold: API keys and join tokens, drawn, hashed and compared.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::sha256;

/// What every API key begins with.
pub const API_KEY_PREFIX: &str = "sk-phx-";

/// What every join token begins with.
pub const JOIN_TOKEN_PREFIX: &str = "join-phx-";

/// 43 of 62 characters: 256 bits.
const SECRET_CHARACTERS: usize = 43;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `N` bytes from the operating system's generator.
///
/// # Panics
/// Where the operating system has no randomness to give, since no key made then would be one.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    aws_lc_rs::rand::fill(&mut out).expect("the operating system gives randomness, or nothing can go on");
    out
}

/// A new API key: the secret, seen only now, and the hash to store.
pub fn new_api_key() -> (Zeroizing<String>, [u8; 32]) {
    let secret = draw(API_KEY_PREFIX);
    let hash = hash_secret(&secret);
    (secret, hash)
}

/// A new token with which providers join.
pub fn new_join_token() -> Zeroizing<String> {
    draw(JOIN_TOKEN_PREFIX)
}

/// The hash under which a secret is stored. Plain SHA-256: the secrets are drawn here with 256 bits, so that there
/// is nothing to guess that a slow hash would protect.
pub fn hash_secret(secret: &str) -> [u8; 32] {
    sha256(secret.as_bytes())
}

/// Whether two secrets are the same, in a time that does not tell where they differ (only whether their lengths do).
pub fn secrets_equal(one: &[u8], other: &[u8]) -> bool {
    verify_slices_are_equal(one, other).is_ok()
}

/// What proves of an announcement that whoever made it knows this join token, and meant these places: an HMAC-SHA256.
pub fn announced(token: &str, places: &str) -> [u8; 32] {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(b"phalanx announcement 1\n");
    context.update(places.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

fn draw(prefix: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(prefix.len() + SECRET_CHARACTERS));
    out.push_str(prefix);
    while out.len() < prefix.len() + SECRET_CHARACTERS {
        let bytes = Zeroizing::new(random_bytes::<64>());
        // 248 is the largest multiple of 62 in a byte: beyond it some characters would come more often.
        let characters = bytes.iter().filter(|b| **b < 248).map(|b| ALPHABET[usize::from(b % 62)]);
        let missing = prefix.len() + SECRET_CHARACTERS - out.len();
        out.extend(characters.take(missing).map(char::from));
    }
    out
}
