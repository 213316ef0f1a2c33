//! A hub: what a repository holds, where its files are, and what its refusals mean.

use std::time::Duration;

use anyhow::{Context as _, bail};
pub(super) use provider::stock::Entry as File;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

/// Nothing heard for so long: a new try.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// The longest listing of a repository: those with thousands of files have some hundred kilobytes.
const LISTING_BYTES_MAX: usize = 16 << 20;
/// Files of a repository that are looked at.
const FILES_MAX: usize = 10_000;
/// The largest file that is believed in.
const FILE_BYTES_MAX: u64 = 1 << 44;
/// The longest pause that a hub may ask for between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// What a repository holds at one commit.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) revision: String,
    pub(super) files: Vec<File>,
}

/// How a try ended that was no success.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another try may do.
    Again { detail: String, pause: Option<Duration> },
    /// It will not.
    Never(String),
}

impl Failure {
    pub(super) fn again(detail: impl Into<String>) -> Self {
        Self::Again { detail: detail.into(), pause: None }
    }
}

/// A hub.
#[derive(Clone)]
pub(super) struct Hub {
    client: Client,
    endpoint: Url,
    token: Option<String>,
    /// How long nothing new may come before it is given up.
    pub(super) patience: Duration,
}

impl Hub {
    pub(super) fn new(endpoint: &str, token: Option<&str>, patience: Duration) -> anyhow::Result<Self> {
        let text = if endpoint.ends_with('/') { endpoint.to_owned() } else { format!("{endpoint}/") };
        let endpoint = Url::parse(&text).with_context(|| format!("{endpoint:?} is no address of a hub"))?;
        if !matches!(endpoint.scheme(), "http" | "https") {
            bail!("{endpoint} is no address of a hub: http or https");
        }
        let token = token.map(str::trim).filter(|token| !token.is_empty()).map(str::to_owned);
        let secure = endpoint.scheme() == "https";
        let redirects = reqwest::redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > 10 {
                return attempt.error("more than ten redirections");
            }
            // Never out of encryption. The token goes to the hub's own host alone: reqwest takes it off for others.
            if secure && attempt.url().scheme() != "https" {
                return attempt.error("a redirection away from https");
            }
            attempt.follow()
        });
        let client = Client::builder()
            .user_agent(concat!("phalanx/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_secs(10))
            .read_timeout(SILENCE_MAX.min(patience))
            .redirect(redirects)
            .build()?;
        Ok(Self { client, endpoint, token, patience })
    }

    fn authorised(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.endpoint.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            for segment in segments {
                path.extend(segment.split('/'));
            }
        }
        url
    }

    /// Where a file is.
    pub(super) fn url_of(&self, name: &str, revision: &str, path: &str) -> Url {
        self.url(&[name, "resolve", revision, path])
    }

    /// Asks for a file from byte `from` on.
    pub(super) async fn file(&self, url: &Url, from: u64) -> Result<Response, Failure> {
        let mut request = self.authorised(self.client.get(url.clone()));
        // Bytes as they are: of a compressed answer no part could be gone on with.
        request = request.header("accept-encoding", "identity");
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        let answer = request.send().await.map_err(|error| unreachable(&error))?;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => Ok(answer),
            _ => Err(self.refusal(answer.status(), answer.headers(), url.path())),
        }
    }

    /// What the repository `name` holds at `revision`.
    pub(super) async fn listing(&self, name: &str, revision: &str) -> anyhow::Result<Listing> {
        check_name(name, revision)?;
        let mut url = self.url(&["api", "models", name, "revision", revision]);
        url.set_query(Some("blobs=true"));
        let mut tries = Tries::new(self.patience);
        loop {
            match self.try_listing(&url, name).await {
                Ok(listing) => return Ok(listing),
                Err(Failure::Never(why)) => bail!(why),
                Err(Failure::Again { detail, pause }) => {
                    tries
                        .wait(&detail, pause)
                        .await
                        .with_context(|| format!("asking {} for {name}", self.endpoint))?;
                }
            }
        }
    }

    async fn try_listing(&self, url: &Url, name: &str) -> Result<Listing, Failure> {
        let request = self.authorised(self.client.get(url.clone()));
        let mut answer = request.send().await.map_err(|error| unreachable(&error))?;
        if !answer.status().is_success() {
            return Err(self.refusal(answer.status(), answer.headers(), name));
        }
        let mut body = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(|error| unreachable(&error))? {
            if body.len() + piece.len() > LISTING_BYTES_MAX {
                return Err(Failure::Never(format!(
                    "{name}: a listing of more than {LISTING_BYTES_MAX} bytes"
                )));
            }
            body.extend_from_slice(&piece);
        }
        read_listing(&body)
            .map_err(|detail| Failure::Never(format!("{} says of {name}: {detail}", self.endpoint)))
    }

    /// What a status other than success means, and what to do.
    fn refusal(&self, status: StatusCode, headers: &HeaderMap, what: &str) -> Failure {
        let token =
            if self.token.is_some() { "the token given is not let in there" } else { "no token is given" };
        let remedy =
            "set HF_TOKEN to a token of an account that may read it, and accept the model's terms on the hub";
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::Never(format!("{what}: the hub does not give it ({status}): {token}; {remedy}"))
            }
            StatusCode::NOT_FOUND | StatusCode::GONE => Failure::Never(format!(
                "{what}: the hub at {} has none ({status}); if it is private, {remedy}",
                self.endpoint
            )),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => again(status, headers),
            _ if status.is_server_error() => again(status, headers),
            _ => Failure::Never(format!("{what}: the hub answers {status}")),
        }
    }
}

fn again(status: StatusCode, headers: &HeaderMap) -> Failure {
    let pause = headers.get(RETRY_AFTER).and_then(|text| text.to_str().ok()?.trim().parse().ok());
    let pause = pause.map(|seconds| Duration::from_secs(seconds).min(PAUSE_MAX));
    Failure::Again { detail: format!("the hub answers {status}"), pause }
}

pub(super) fn unreachable(error: &reqwest::Error) -> Failure {
    let mut detail = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        detail = format!("{detail}: {inner}");
        cause = inner.source();
    }
    if error.is_redirect() || error.is_builder() { Failure::Never(detail) } else { Failure::again(detail) }
}

fn check_name(name: &str, revision: &str) -> anyhow::Result<()> {
    let plain = |part: &str| {
        let fits = (1..=96).contains(&part.len()) && !part.starts_with('.') && !part.contains("..");
        fits && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > 2 || !parts.iter().all(|part| plain(part)) {
        bail!("{name:?} is no model's name: ORGANISATION/NAME, of letters, digits, '-', '_' and '.'");
    }
    if !revision.split('/').all(plain) {
        bail!("{revision:?} is no revision: a branch, a tag or a commit");
    }
    Ok(())
}

#[derive(Deserialize)]
struct RawListing {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<RawFile>,
}

#[derive(Deserialize)]
struct RawFile {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob: Option<String>,
    lfs: Option<RawLfs>,
}

#[derive(Deserialize)]
struct RawLfs {
    sha256: Option<String>,
    size: Option<u64>,
}

fn read_listing(body: &[u8]) -> Result<Listing, String> {
    let raw: RawListing =
        serde_json::from_slice(body).map_err(|error| format!("no listing of files: {error}"))?;
    let digits = |text: &String, length| text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
    let revision = raw.sha.filter(|sha| digits(sha, 40)).ok_or("a listing without its commit")?;
    if raw.siblings.len() > FILES_MAX {
        return Err(format!("{} files, and {FILES_MAX} are looked at", raw.siblings.len()));
    }
    let mut files = Vec::with_capacity(raw.siblings.len());
    for file in raw.siblings {
        if !is_safe(&file.rfilename) {
            return Err(format!("a file {:?}, which is no path inside a folder", clip(&file.rfilename)));
        }
        let (sha256, size) = match file.lfs {
            Some(lfs) => (lfs.sha256, lfs.size.or(file.size)),
            None => (None, file.size),
        };
        let size = size
            .ok_or_else(|| format!("no size of {:?}: does this hub know `blobs`?", clip(&file.rfilename)))?;
        if size > FILE_BYTES_MAX {
            return Err(format!("{size} bytes of {:?}", clip(&file.rfilename)));
        }
        let sha256 = sha256.map(|hash| hash.to_ascii_lowercase()).filter(|hash| digits(hash, 64));
        let blob = file.blob.map(|hash| hash.to_ascii_lowercase());
        let blob = blob.filter(|hash| digits(hash, 40) && sha256.is_none());
        files.push(File { path: file.rfilename, size, sha256, blob });
    }
    Ok(Listing { revision, files })
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Whether a path of a listing stays inside the folder that it is put into, on every system.
fn is_safe(path: &str) -> bool {
    let part = |part: &str| {
        let hidden = part == "." || part == "..";
        !part.is_empty() && !hidden && !part.chars().any(|c| c.is_control() || "\\:*?\"<>|".contains(c))
    };
    path.len() <= 512 && path.split('/').all(part)
}

/// New tries after failures: pauses that grow, until nothing new came for too long.
pub(super) struct Tries {
    patience: Duration,
    since: std::time::Instant,
    failures: u32,
}

impl Tries {
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, since: std::time::Instant::now(), failures: 0 }
    }

    /// Something new came.
    pub(super) fn progress(&mut self) {
        *self = Self::new(self.patience);
    }

    /// Waits before the next try; the error where there is none.
    pub(super) async fn wait(&mut self, detail: &str, asked: Option<Duration>) -> anyhow::Result<()> {
        self.failures += 1;
        let grown = Duration::from_millis(250).saturating_mul(1 << self.failures.min(8)).min(PAUSE_MAX / 2);
        let pause = asked.unwrap_or(grown);
        if self.since.elapsed() + pause > self.patience {
            bail!("{detail}; nothing new came in {} s and {} tries", self.patience.as_secs(), self.failures);
        }
        tracing::info!(detail, pause_ms = pause.as_millis() as u64, "another try");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(files: &str) -> Result<Listing, String> {
        let sha = "0123456789abcdef0123456789abcdef01234567";
        read_listing(format!(r#"{{"sha":"{sha}","siblings":[{files}],"new":1}}"#).as_bytes())
    }

    #[test]
    fn a_listing_gives_sizes_and_hashes_and_lets_nothing_out_of_its_folder() {
        let lfs = format!(
            r#"{{"rfilename":"m.safetensors","size":9,"lfs":{{"sha256":"{}","size":9}}}}"#,
            "AB".repeat(32)
        );
        let read = listing(&lfs).unwrap();
        assert_eq!(read.files[0].sha256.as_deref(), Some("ab".repeat(32).as_str()));
        for path in ["../x", "/etc/passwd", "a//b", "a/../b", "C:x", "a\\b", "", "a\u{0}b"] {
            let path = serde_json::to_string(path).unwrap();
            let error = listing(&format!(r#"{{"rfilename":{path},"size":1}}"#)).unwrap_err();
            assert!(error.contains("no path inside a folder"), "{path}: {error}");
        }
        assert!(listing(r#"{"rfilename":"a"}"#).unwrap_err().contains("no size of \"a\""));
        assert!(listing(r#"{"rfilename":"a","size":99999999999999999}"#).is_err());
        assert!(read_listing(b"{}").unwrap_err().contains("without its commit"));
        assert!(read_listing(b"<html>").is_err());
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused_and_addresses_are_built_from_parts() {
        for name in ["a/b", "gpt2", "Qwen/Qwen2.5-0.5B"] {
            check_name(name, "main").unwrap();
        }
        for name in ["", "a/b/c", "../a", "a/..", "a b", "a/b?x", "a/%2e%2e"] {
            assert!(check_name(name, "main").is_err(), "{name}");
        }
        assert!(check_name("a/b", "../main").is_err());
        let hub = Hub::new("http://localhost:1/mirror", Some(" t\n"), Duration::from_secs(1)).unwrap();
        let url = hub.url_of("a/b", "main", "sub/one file.json");
        assert_eq!(url.as_str(), "http://localhost:1/mirror/a/b/resolve/main/sub/one%20file.json");
        assert_eq!(hub.token.as_deref(), Some("t"));
        assert!(Hub::new("ftp://x", None, Duration::from_secs(1)).is_err());
    }
}
