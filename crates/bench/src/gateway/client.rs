//! A client that costs next to nothing: one request at a time over kept connections, written and read as bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where requests go. Cheap to clone.
#[derive(Clone)]
pub(super) struct Target {
    shared: Arc<Shared>,
}

struct Shared {
    address: String,
    head: String,
    model: String,
    idle: Mutex<Vec<TcpStream>>,
    /// No two prompts are the same.
    asked: AtomicU64,
}

/// What came of a request.
pub(super) struct Answer {
    /// From the first byte sent to the last byte of the answer: of a stream, its `[DONE]`.
    pub(super) took: Duration,
    /// Bytes of the answer's text.
    pub(super) text_bytes: usize,
}

impl Target {
    pub(super) fn new(url: &str, key: &str, model: &str) -> anyhow::Result<Self> {
        let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} is no http:// address"))?;
        let rest = rest.trim_end_matches('/');
        let rest = rest.strip_suffix("/v1").unwrap_or(rest);
        let (host, path) = rest.split_once('/').map_or((rest, String::new()), |(h, p)| (h, format!("/{p}")));
        let head = format!(
            "POST {path}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nAccept: */*\r\n"
        );
        let shared = Shared {
            address: host.to_owned(),
            head,
            model: model.to_owned(),
            idle: Mutex::default(),
            asked: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Asks for an answer of so many tokens.
    pub(super) async fn ask(&self, tokens: u32, streaming: bool) -> Result<Answer, String> {
        match tokio::time::timeout(PATIENCE, self.exchange(tokens, streaming)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        }
    }

    async fn exchange(&self, tokens: u32, streaming: bool) -> Result<Answer, String> {
        let number = self.shared.asked.fetch_add(1, Ordering::Relaxed);
        let body = format!(
            "{{\"model\":\"{}\",\"messages\":[{{\"role\":\"user\",\"content\":\"Tell me what number {number} has \
             to do with the weather, and why.\"}}],\"max_tokens\":{tokens},\"temperature\":0,\"stream\":{streaming}}}",
            self.shared.model
        );
        let request = format!("{}Content-Length: {}\r\n\r\n{body}", self.shared.head, body.len());
        let kept = self.shared.idle.lock().pop();
        let began = Instant::now();
        let mut socket = match kept {
            Some(socket) => socket,
            None => {
                let socket = TcpStream::connect(&self.shared.address).await.map_err(|e| e.to_string())?;
                let _ = socket.set_nodelay(true);
                socket
            }
        };
        socket.write_all(request.as_bytes()).await.map_err(|e| format!("sending: {e}"))?;
        let mut got: Vec<u8> = Vec::with_capacity(8 << 10);
        let head = read_head(&mut socket, &mut got).await?;
        match head.length {
            Some(length) => {
                while got.len() < head.bytes + length {
                    read_more(&mut socket, &mut got).await?;
                }
            }
            None => {
                while !got[head.bytes..].ends_with(b"0\r\n\r\n") {
                    read_more(&mut socket, &mut got).await?;
                }
            }
        }
        let took = began.elapsed();
        let said = &got[head.bytes..];
        if head.status != 200 {
            let start = String::from_utf8_lossy(&said[..said.len().min(300)]).into_owned();
            return Err(format!("{}: {start}", head.status));
        }
        if streaming && find(said, b"data: [DONE]").is_none() {
            return Err("a stream without its end".to_owned());
        }
        let text_bytes = text_bytes(said);
        if head.keeps {
            self.shared.idle.lock().push(socket);
        }
        Ok(Answer { took, text_bytes })
    }
}

struct Head {
    status: u16,
    /// Where the body begins.
    bytes: usize,
    /// How long it is; nothing where it comes in chunks.
    length: Option<usize>,
    keeps: bool,
}

async fn read_more(socket: &mut TcpStream, got: &mut Vec<u8>) -> Result<(), String> {
    match socket.read_buf(got).await {
        Ok(0) => Err("the connection ended in the middle of an answer".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("reading: {error}")),
    }
}

async fn read_head(socket: &mut TcpStream, got: &mut Vec<u8>) -> Result<Head, String> {
    let end = loop {
        if let Some(at) = find(got, b"\r\n\r\n") {
            break at;
        }
        read_more(socket, got).await?;
    };
    let text = String::from_utf8_lossy(&got[..end]).to_lowercase();
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let mut head = Head { status: status.unwrap_or(0), bytes: end + 4, length: None, keeps: true };
    for line in lines {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        match (name, value.trim()) {
            ("content-length", value) => head.length = value.parse().ok(),
            ("connection", "close") => head.keeps = false,
            _ => {}
        }
    }
    Ok(head)
}

fn find(all: &[u8], part: &[u8]) -> Option<usize> {
    all.windows(part.len()).position(|window| window == part)
}

/// Bytes of the answer's text in a body, or in a stream of events. Stand-ins say nothing that JSON escapes.
fn text_bytes(said: &[u8]) -> usize {
    const BEFORE: &[u8] = b"\"content\":";
    let mut count = 0;
    let mut rest = said;
    while let Some(at) = find(rest, BEFORE) {
        rest = &rest[at + BEFORE.len()..];
        let space = rest.iter().take_while(|byte| **byte == b' ').count();
        let Some((b'"', text)) = rest[space..].split_first() else { continue };
        let length = text.iter().position(|byte| *byte == b'"').unwrap_or(0);
        count += length;
        rest = &text[length..];
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_bodies_and_events_is_counted() {
        assert_eq!(text_bytes(b"{\"message\":{\"content\":\"wwww\",\"refusal\":null}}"), 4);
        let events = b"data: {\"delta\":{\"content\":\"\"}}\n\ndata: {\"delta\":{\"content\": \"ww\"}}\n\ndata: {\"delta\":{\"content\":null}}";
        assert_eq!(text_bytes(events), 2);
    }
}
