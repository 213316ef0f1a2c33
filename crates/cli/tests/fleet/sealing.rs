//! What somebody sees who reads every byte between coordinator and provider: neither prompt nor answer.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::api::{Api, coordinator, provider};

const PROMPT: &str = "Hello! My name is Wilhelmina. What is Phalanx?";

#[tokio::test(flavor = "multi_thread")]
async fn the_wire_between_coordinator_and_provider_shows_neither_prompt_nor_answer() {
    let coordinator = coordinator(&[]);
    let api = Api::of(&coordinator);
    let (proxy, seen) = recording_proxy(api.url.trim_start_matches("http://").to_owned()).await;
    let token = coordinator.ready("join_token");
    let _provider = provider(&proxy, token, "watched", &[]).start();
    api.await_eligible(1).await;

    let (code, answer) = api.ask(PROMPT, 48).await;
    assert_eq!(code, 200, "{answer:#}");
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(text.len() > 10);

    let seen = unmasked(&seen.lock().unwrap());
    assert!(contains(&seen, b"heartbeat"), "the proxy did see the connection, WebSocket masks taken off");
    // Words of prompt and answer; the tokenizer, which is no secret, crosses too and is full of short words.
    for secret in ["Wilhelmina", "My name is", "What is Phalanx"] {
        assert!(!contains(&seen, secret.as_bytes()), "{secret:?} crosses in the clear");
    }
    let sentences = text.split_inclusive(['.', '!', '?']).map(str::trim).filter(|s| s.len() > 10);
    for sentence in sentences {
        assert!(!contains(&seen, sentence.as_bytes()), "{sentence:?} crosses in the clear");
    }
}

/// A proxy in front of `target`: its address as a URL, and everything that crosses it, by direction.
async fn recording_proxy(target: String) -> (String, Arc<Mutex<[Vec<u8>; 2]>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
    let recording = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(&target).await.unwrap();
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            tokio::spawn(relay(near_read, far_write, Arc::clone(&recording), 0));
            tokio::spawn(relay(far_read, near_write, Arc::clone(&recording), 1));
        }
    });
    (url, seen)
}

async fn relay(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    seen: Arc<Mutex<[Vec<u8>; 2]>>,
    direction: usize,
) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece).await {
        seen.lock().unwrap()[direction].extend_from_slice(&piece[..count]);
        if to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}

/// Both directions, with the masks of the client's WebSocket frames taken off, so that plaintext would be seen.
fn unmasked(seen: &[Vec<u8>; 2]) -> Vec<u8> {
    let mut all = seen.concat();
    for stream in seen {
        let Some(end) = stream.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let mut rest = &stream[end + 4..];
        while rest.len() >= 2 {
            let masked = rest[1] & 0x80 != 0;
            let (length, mut at) = match rest[1] & 0x7f {
                126 if rest.len() >= 4 => (usize::from(u16::from_be_bytes([rest[2], rest[3]])), 4),
                127 if rest.len() >= 10 => {
                    (usize::try_from(u64::from_be_bytes(rest[2..10].try_into().unwrap())).unwrap(), 10)
                }
                short => (usize::from(short), 2),
            };
            let mask: [u8; 4] =
                if masked && rest.len() >= at + 4 { rest[at..at + 4].try_into().unwrap() } else { [0; 4] };
            at += if masked { 4 } else { 0 };
            if rest.len() < at + length {
                break;
            }
            all.extend(rest[at..at + length].iter().enumerate().map(|(i, b)| b ^ mask[i % 4]));
            all.push(0);
            rest = &rest[at + length..];
        }
    }
    all
}

fn contains(all: &[u8], part: &[u8]) -> bool {
    all.windows(part.len()).any(|window| window == part)
}
