//! The server behind gateways: OpenAI's chat and text completions at a fixed pace, so that every gateway has the same to
//! wait for.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::scenarios::print;

/// The largest request that it reads.
const REQUEST_BYTES_MAX: usize = 8 << 20;

/// Where it serves, and how fast.
#[derive(clap::Args, Clone, Debug)]
pub struct StandInOptions {
    /// Where to listen; port 0 takes a free one, which is printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Milliseconds to the first token and between two.
    #[arg(long, value_name = "FIRST,EACH", default_value = "20,5")]
    pace: String,
}

/// Reads `FIRST,EACH` in milliseconds.
pub(super) fn parse(text: &str) -> Result<(Duration, Duration), String> {
    let span = |text: Option<&str>| {
        let ms = text.and_then(|text| text.trim().parse::<f64>().ok());
        ms.filter(|ms| (0.0..=60_000.0).contains(ms)).map(|ms| Duration::from_secs_f64(ms / 1e3))
    };
    let mut parts = text.split(',');
    match (span(parts.next()), span(parts.next()), parts.next()) {
        (Some(first), Some(each), None) => Ok((first, each)),
        _ => Err(format!("{text:?} is no pace: two numbers of milliseconds, as in 20,5")),
    }
}

/// Serves until it is interrupted.
pub(super) async fn serve(options: StandInOptions) -> anyhow::Result<bool> {
    let pace = parse(&options.pace).map_err(anyhow::Error::msg)?;
    let listener = TcpListener::bind(options.listen).await?;
    print(&format!("http://{}", listener.local_addr()?))?;
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((socket, _)) = accepted {
                    let _ = socket.set_nodelay(true);
                    // It ends with its peer, or with this process.
                    drop(tokio::spawn(async move { drop(converse(socket, pace).await) }));
                }
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                return Ok(true);
            }
        }
    }
}

/// Answers request after request on one connection.
async fn converse(mut socket: TcpStream, pace: (Duration, Duration)) -> std::io::Result<()> {
    let mut held: Vec<u8> = Vec::new();
    loop {
        let Some((path, body)) = request(&mut socket, &mut held).await? else { return Ok(()) };
        let arrived = Instant::now();
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        if !path.ends_with("completions") {
            let models =
                json!({"object": "list", "data": [{"id": "stand-in", "object": "model", "created": 0}]});
            whole(&mut socket, &models).await?;
            continue;
        }
        let limit = asked["max_tokens"].as_u64().or(asked["max_completion_tokens"].as_u64());
        let said = Saying {
            chat: path.ends_with("/chat/completions"),
            tokens: limit.unwrap_or(16).clamp(1, 100_000),
            usage: asked["stream_options"]["include_usage"].as_bool().unwrap_or(false),
            arrived,
            pace,
        };
        if asked["stream"].as_bool().unwrap_or(false) {
            said.stream(&mut socket).await?;
        } else {
            said.all(&mut socket).await?;
        }
    }
}

/// The next request's path and body; nothing at the connection's end.
async fn request(socket: &mut TcpStream, held: &mut Vec<u8>) -> std::io::Result<Option<(String, Vec<u8>)>> {
    let end = loop {
        if let Some(at) = held.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if held.len() > REQUEST_BYTES_MAX || socket.read_buf(held).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&held[..end]).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let whole = end.saturating_add(length.unwrap_or(0));
    while held.len() < whole {
        if whole > REQUEST_BYTES_MAX || socket.read_buf(held).await? == 0 {
            return Ok(None);
        }
    }
    let body = held[end..whole].to_vec();
    held.drain(..whole);
    Ok(Some((path, body)))
}

async fn whole(socket: &mut TcpStream, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await
}

/// One answer.
struct Saying {
    chat: bool,
    tokens: u64,
    usage: bool,
    arrived: Instant,
    pace: (Duration, Duration),
}

impl Saying {
    /// Waits until the token at `index` is due.
    async fn due(&self, index: u64) {
        let (first, each) = self.pace;
        let at = self.arrived + first + each * u32::try_from(index).unwrap_or(u32::MAX);
        tokio::time::sleep_until(at.into()).await;
    }

    fn used(&self) -> Value {
        json!({"prompt_tokens": 1, "completion_tokens": self.tokens, "total_tokens": self.tokens + 1})
    }

    async fn all(&self, socket: &mut TcpStream) -> std::io::Result<()> {
        self.due(self.tokens - 1).await;
        let text = "w".repeat(usize::try_from(self.tokens).unwrap_or(0));
        let choice = if self.chat {
            json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"})
        } else {
            json!({"index": 0, "text": text, "logprobs": null, "finish_reason": "length"})
        };
        let object = if self.chat { "chat.completion" } else { "text_completion" };
        let body = json!({
            "id": "cmpl-1", "object": object, "created": 1, "model": "stand-in", "choices": [choice],
            "usage": self.used(),
        });
        whole(socket, &body).await
    }

    async fn stream(&self, socket: &mut TcpStream) -> std::io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut out = head.to_owned();
        for index in 0..self.tokens {
            self.due(index).await;
            let last = index + 1 == self.tokens;
            chunk(&mut out, &format!("data: {}\n\n", self.event(Some("w"), last.then_some("length"), None)));
            socket.write_all(out.as_bytes()).await?;
            out.clear();
        }
        if self.usage {
            chunk(&mut out, &format!("data: {}\n\n", self.event(None, None, Some(self.used()))));
        }
        chunk(&mut out, "data: [DONE]\n\n");
        out.push_str("0\r\n\r\n");
        socket.write_all(out.as_bytes()).await
    }

    fn event(&self, text: Option<&str>, finish: Option<&str>, usage: Option<Value>) -> Value {
        let choices = match (text, self.chat) {
            (None, _) => json!([]),
            (Some(text), true) => {
                json!([{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": finish}])
            }
            (Some(text), false) => {
                json!([{"index": 0, "text": text, "logprobs": null, "finish_reason": finish}])
            }
        };
        let object = if self.chat { "chat.completion.chunk" } else { "text_completion" };
        json!({
            "id": "cmpl-1", "object": object, "created": 1, "model": "stand-in", "choices": choices,
            "usage": usage,
        })
    }
}

fn chunk(out: &mut String, text: &str) {
    out.push_str(&format!("{:x}\r\n{text}\r\n", text.len()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_two_numbers() {
        assert_eq!(parse("20, 5"), Ok((Duration::from_millis(20), Duration::from_millis(5))));
        for wrong in ["", "20", "20,5,1", "a,b", "-1,5", "1e9,1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
