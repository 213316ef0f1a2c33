//! A hub of one repository under whatever name of one organisation, spoken by hand over sockets, so that it can do what no well-behaved server does.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

/// What is done to the next answer for weights (or, with a status, to the next answer of any kind).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Trick {
    /// The connection ends once the file's byte with this number was sent.
    CutAfter(usize),
    /// One byte is another.
    Damage,
    /// As that, of tokenizers instead of weights.
    DamageSmall,
    /// The answer ends early, and says that it is whole.
    Short,
    /// It has more bytes than the file.
    Long,
    /// Everything is sent, whatever part was asked for.
    IgnoreRange,
    /// Another part is sent than was asked for.
    OtherRange,
    /// No answer.
    Drop,
    /// A refusal, with these headers.
    Status(u16, &'static str),
}

#[derive(Default)]
pub(crate) struct State {
    tricks: VecDeque<Trick>,
    asked: Vec<String>,
    authorised: Vec<Option<String>>,
    authorised_elsewhere: Vec<Option<String>>,
    claims: Vec<(String, u64)>,
    elsewhere: Option<String>,
}

/// A hub that runs until its test ends.
pub(crate) struct Hub {
    pub(crate) url: String,
    pub(crate) files: Files,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Hub {
    pub(crate) fn start(files: Vec<(&'static str, Vec<u8>)>, tricks: Vec<Trick>) -> Self {
        let (files, state) = (Arc::new(files), Arc::new(Mutex::new(State::default())));
        state.lock().unwrap().tricks = tricks.into();
        let url = listen(Arc::clone(&files), Arc::clone(&state), false);
        Self { url, files, state }
    }

    /// Files are sent from another place, which is pointed at.
    pub(crate) fn with_files_elsewhere(self) -> Self {
        let url = listen(Arc::clone(&self.files), Arc::clone(&self.state), true);
        self.state.lock().unwrap().elsewhere = Some(url);
        self
    }

    /// Says of a file that it is so long.
    pub(crate) fn claim(&mut self, name: &str, bytes: u64) {
        self.state.lock().unwrap().claims.push((name.to_owned(), bytes));
    }

    /// The first line of each request, and its range.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.state.lock().unwrap().asked.clone()
    }

    pub(crate) fn authorised(&self) -> Vec<Option<String>> {
        self.state.lock().unwrap().authorised.clone()
    }

    pub(crate) fn authorised_elsewhere(&self) -> Vec<Option<String>> {
        self.state.lock().unwrap().authorised_elsewhere.clone()
    }
}

pub(crate) type Files = Arc<Vec<(&'static str, Vec<u8>)>>;

fn listen(files: Files, state: Arc<Mutex<State>>, is_elsewhere: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // Another host by name, so that it is another one to whoever must not send it a token.
    let host = if is_elsewhere { "localhost" } else { "127.0.0.1" };
    let url = format!("http://{host}:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (files, state) = (Arc::clone(&files), Arc::clone(&state));
            std::thread::spawn(move || {
                // A client that is gone is no fault of a hub.
                let _ = answer(stream.unwrap(), &files, &state, is_elsewhere);
            });
        }
    });
    url
}

fn answer(
    mut stream: TcpStream,
    files: &Files,
    state: &Mutex<State>,
    is_elsewhere: bool,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let (mut range, mut token) = (None, None);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "range" => range = Some(value.trim().to_owned()),
            "authorization" => token = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let is_weights = path.ends_with(".safetensors");
    let (trick, elsewhere) = {
        let mut state = state.lock().unwrap();
        state.asked.push(format!("{first} {}", range.clone().unwrap_or_default()));
        if is_elsewhere { &mut state.authorised_elsewhere } else { &mut state.authorised }.push(token);
        let meant = state.tricks.front().is_some_and(|trick| match trick {
            // A listing that is refused ends everything: 404 for what was begun is about its weights.
            Trick::Status(404, _) => is_weights || state.asked.len() == 1,
            Trick::Status(..) | Trick::Drop => true,
            Trick::DamageSmall => path.ends_with("tokenizer.json"),
            _ => is_weights,
        });
        let trick = if meant { state.tricks.pop_front() } else { None };
        (trick, state.elsewhere.clone().filter(|_| !is_elsewhere))
    };
    match trick {
        Some(Trick::Drop) => return Ok(()),
        Some(Trick::Status(status, headers)) => {
            return write!(
                stream,
                "HTTP/1.1 {status} No\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n"
            );
        }
        _ => {}
    }
    if path.starts_with("/api/models/acme/") && path.contains("/revision/main") {
        let body = listing(files, state);
        return write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some((_, bytes)) = files.iter().find(|(file, _)| *file == name) else {
        return write!(stream, "HTTP/1.1 404 None\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    };
    if let Some(elsewhere) = elsewhere {
        return write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {elsewhere}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
    }
    send(&mut stream, bytes, range.as_deref(), trick)
}

fn send(
    stream: &mut TcpStream,
    bytes: &[u8],
    range: Option<&str>,
    trick: Option<Trick>,
) -> std::io::Result<()> {
    let asked =
        range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = match (asked, trick) {
        (None, _) | (_, Some(Trick::IgnoreRange)) => None,
        (Some(from), Some(Trick::OtherRange)) => Some(from / 2),
        (Some(from), _) => Some(from),
    };
    let mut body = bytes[from.unwrap_or(0).min(bytes.len())..].to_vec();
    match trick {
        Some(Trick::Damage | Trick::DamageSmall) => {
            let middle = body.len() / 2;
            body[middle] ^= 0x55;
        }
        Some(Trick::Long) => body.extend_from_slice(b"more"),
        Some(Trick::Short) => body.truncate(body.len() / 2),
        _ => {}
    }
    let length = body.len();
    let head = match from {
        None => "HTTP/1.1 200 OK\r\n".to_owned(),
        Some(from) => {
            let last = from + length.max(1) - 1;
            format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{last}/{}\r\n", bytes.len())
        }
    };
    write!(stream, "{head}Content-Length: {length}\r\nConnection: close\r\n\r\n")?;
    if let Some(Trick::CutAfter(at)) = trick {
        body.truncate(at.saturating_sub(from.unwrap_or(0)));
    }
    stream.write_all(&body)
}

fn listing(files: &Files, state: &Mutex<State>) -> String {
    let claims = state.lock().unwrap().claims.clone();
    let mut all = trust::Sha256::new();
    let siblings: Vec<_> = files
        .iter()
        .map(|(name, bytes)| {
            all.update(bytes);
            let size = claims.iter().find(|(of, _)| of == name).map_or(bytes.len() as u64, |(_, size)| *size);
            let mut blob = trust::GitBlob::new(size);
            blob.update(bytes);
            let sha256 = trust::hex(&trust::sha256(bytes));
            if name.ends_with(".safetensors") {
                json!({"rfilename": name, "size": size, "lfs": {"sha256": sha256, "size": size, "pointerSize": 134}})
            } else {
                json!({"rfilename": name, "size": size, "blobId": blob.finish()})
            }
        })
        .collect();
    let sha = &trust::hex(&all.finish())[..40];
    json!({"id": "acme/tiny", "sha": sha, "siblings": siblings}).to_string()
}
