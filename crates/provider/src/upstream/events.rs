//! Server-sent events of `/v1/completions`, as they come off a socket.

use serde::Deserialize;

/// A line longer than this is none of a completion's.
const LINE_BYTES_MAX: usize = 1 << 20;

/// What an event says.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// More text, and maybe why it is the last.
    More { text: String, finish: Option<String> },
    /// The server gave up.
    Error(String),
    /// All was said.
    Done,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    text: String,
    finish_reason: Option<String>,
}

/// Cuts bytes into events.
#[derive(Default)]
pub(super) struct Events {
    held: Vec<u8>,
}

impl Events {
    /// Takes what came.
    ///
    /// # Errors
    /// It is no event stream.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Said>, String> {
        self.held.extend_from_slice(bytes);
        let mut said = Vec::new();
        let mut begin = 0;
        while let Some(length) = self.held[begin..].iter().position(|&byte| byte == b'\n') {
            if let Some(event) = read(&self.held[begin..begin + length])? {
                said.push(event);
            }
            begin += length + 1;
        }
        self.held.drain(..begin);
        if self.held.len() > LINE_BYTES_MAX {
            return Err(format!("a line of more than {LINE_BYTES_MAX} bytes came"));
        }
        Ok(said)
    }
}

/// What a line says; comments, names of events and empty lines say nothing.
fn read(line: &[u8]) -> Result<Option<Said>, String> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some(data) = line.strip_prefix(b"data:") else { return Ok(None) };
    let data = data.trim_ascii();
    if data == b"[DONE]" {
        return Ok(Some(Said::Done));
    }
    let body: Body = serde_json::from_slice(data).map_err(|error| format!("an event is no JSON: {error}"))?;
    if let Some(error) = body.error {
        let message = error.get("message").and_then(serde_json::Value::as_str).map(str::to_owned);
        return Ok(Some(Said::Error(message.unwrap_or_else(|| error.to_string()))));
    }
    let choice = body.choices.into_iter().next();
    Ok(choice.map(|choice| Said::More { text: choice.text, finish: choice.finish_reason }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": a comment\n\ndata: {\"choices\":[{\"text\":\"Gr\u{fc}\",\"finish_reason\":null}]}\r\n\r\n\
        event: x\ndata: {\"choices\":[{\"text\":\"n\",\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{}}\n\n\
        data: [DONE]\n\n";

    #[test]
    fn events_are_the_same_whatever_they_are_cut_into() {
        let more = |text: &str, finish: Option<&str>| Said::More {
            text: text.to_owned(),
            finish: finish.map(str::to_owned),
        };
        let expected = vec![more("Gr\u{fc}", None), more("n", Some("stop")), Said::Done];
        for size in 1..STREAM.len() {
            let mut events = Events::default();
            let said: Vec<Said> =
                STREAM.as_bytes().chunks(size).flat_map(|bytes| events.push(bytes).unwrap()).collect();
            assert_eq!(said, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_stream_is_refused() {
        assert!(Events::default().push(b"data: {\n").unwrap_err().contains("no JSON"));
        assert!(Events::default().push(&vec![b'x'; LINE_BYTES_MAX + 1]).unwrap_err().contains("bytes"));
        let said = Events::default().push(b"data: {\"error\":{\"message\":\"full\"}}\n").unwrap();
        assert_eq!(said, [Said::Error("full".to_owned())]);
    }
}
