//! A client of a coordinator's HTTP API, for the verbs that ask one.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::place::{ClientFile, DataOption};

/// Which coordinator to ask, and with which key.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ClientOptions {
    /// The coordinator's address [default: the one that runs on this machine].
    #[arg(long, env = "PHALANX_URL")]
    url: Option<String>,
    /// An API key [default: the one that this machine's coordinator keeps].
    #[arg(long, env = "PHALANX_KEY", hide_env_values = true)]
    key: Option<String>,
    #[command(flatten)]
    data: DataOption,
}

/// A client of one coordinator.
pub(crate) struct Client {
    http: reqwest::Client,
    /// Without a slash at its end, without `/v1`.
    pub(crate) url: String,
    key: String,
}

impl ClientOptions {
    /// Where this machine keeps what it keeps.
    pub(crate) fn data(&self) -> &DataOption {
        &self.data
    }

    /// The client that these options mean.
    ///
    /// # Errors
    /// Neither options nor the data folder say whom to ask.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let kept = ClientFile::read(&self.data.folder()?)?;
        let (kept_url, kept_key) = kept.map_or((None, None), |k| (Some(k.url), Some(k.key)));
        let url = self.url.clone().or(kept_url);
        let url = url.context(
            "no coordinator is known on this machine: start one with `phalanx up`, or say --url URL --key KEY",
        )?;
        let key = self.key.clone().or(kept_key);
        let key = key.context("no API key is known: say --key KEY, or set PHALANX_KEY")?;
        Ok(Client::new(&url, &key))
    }
}

/// An address as people give it: perhaps without `http://`, perhaps with `/v1`.
fn plain_url(url: &str) -> String {
    let url = url.trim().trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/');
    if url.contains("://") { url.to_owned() } else { format!("http://{url}") }
}

impl Client {
    /// A client of the coordinator at `url`.
    pub(crate) fn new(url: &str, key: &str) -> Self {
        let url = plain_url(url);
        // Answers may take long; a connection that is not made within ten seconds will not be.
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .no_proxy()
            .build()
            .expect("a client without files of its own");
        Self { http, url, key: key.to_owned() }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    /// `GET path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.read(self.request(Method::GET, path).timeout(Duration::from_secs(30))).await
    }

    /// `POST path` with a JSON body.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> anyhow::Result<T> {
        self.read(self.request(Method::POST, path).json(body).timeout(Duration::from_secs(30))).await
    }

    /// `PUT path` with a JSON body.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> anyhow::Result<T> {
        self.read(self.request(Method::PUT, path).json(body).timeout(Duration::from_secs(30))).await
    }

    /// `DELETE path`.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.read(self.request(Method::DELETE, path).timeout(Duration::from_secs(30))).await
    }

    /// `POST path`, to be read as it comes.
    pub(crate) async fn stream(&self, path: &str, body: &impl serde::Serialize) -> anyhow::Result<Response> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    async fn read<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let answer = self.send(request).await?;
        answer.json().await.with_context(|| format!("reading the answer of {}", self.url))
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        let answer = request.send().await.with_context(|| {
            format!("asking {}: does a coordinator run there? (`phalanx up` starts one)", self.url)
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_default();
        let message = body["error"]["message"].as_str().unwrap_or("no reason given");
        if status == StatusCode::UNAUTHORIZED {
            bail!("{message} ({status}): say --key KEY, or set PHALANX_KEY")
        }
        bail!("{message} ({status})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_understood_with_and_without_scheme_and_path() {
        for given in ["127.0.0.1:8420", "http://127.0.0.1:8420/", "http://127.0.0.1:8420/v1/"] {
            assert_eq!(plain_url(given), "http://127.0.0.1:8420");
        }
        assert_eq!(plain_url("https://llm.example/v1"), "https://llm.example");
    }
}
