//! Who calls: the key of a request.

use std::net::SocketAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, header};
use store::KeyInfo;

use wire::admin::{KeyTerms, Scope};

use super::speech::Speech;
use crate::bootstrap::create_key;
use crate::clock::unix_s;
use crate::core::Core;
use crate::problem::Problem;

/// The key that stands for whoever calls Ollama's API from this machine without one, where the operator allows that.
const KEYLESS: &str = "ollama (without a key)";

/// The address at the other end of a call's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What a call says of who makes it. Not `Debug`: it holds a secret.
pub(super) struct Caller {
    secret: Option<String>,
    /// It may come without a key.
    keyless: bool,
}

impl Caller {
    /// Of a call.
    pub(super) fn of(core: &Core, request: &Request) -> Self {
        let keyless = core.config.api.ollama_without_key && local(request);
        Self { secret: secret(request.headers()), keyless }
    }

    /// Of a call that is never made without a key.
    pub(super) fn of_headers(headers: &HeaderMap) -> Self {
        Self { secret: secret(headers), keyless: false }
    }
}

/// The key that a call was made with.
pub(super) async fn caller(core: &Core, caller: Caller) -> Result<KeyInfo, Problem> {
    let failed = |error: store::StoreError| Problem::Store { detail: error.to_string() };
    let Some(secret) = caller.secret else {
        return if caller.keyless { keyless(core).await } else { Err(Problem::Key) };
    };
    match core.store.key_by_hash(trust::hash_secret(&secret)).await.map_err(failed)? {
        Some(key) if is_good(&key) => Ok(key),
        _ => Err(Problem::Key),
    }
}

/// The key of a call that only an operator may make.
pub(super) async fn operator(core: &Core, headers: &HeaderMap) -> Result<KeyInfo, Problem> {
    let key = caller(core, Caller::of_headers(headers)).await?;
    // Scopes narrow what an admin key may do; none of them is to operate.
    if key.admin && key.terms.scopes.is_empty() { Ok(key) } else { Err(Problem::NotAdmin) }
}

/// The key of a call that asks a model.
pub(super) async fn asker(core: &Core, from: Caller) -> Result<KeyInfo, Problem> {
    let key = caller(core, from).await?;
    let may = key.terms.scopes.is_empty() || key.terms.scopes.contains(&Scope::Infer);
    if may { Ok(key) } else { Err(Problem::Scope { scope: "infer" }) }
}

/// The key of a call that reads what operators see.
pub(super) async fn reader(core: &Core, headers: &HeaderMap) -> Result<KeyInfo, Problem> {
    let key = caller(core, Caller::of_headers(headers)).await?;
    if is_reader(&key) { Ok(key) } else { Err(Problem::NotAdmin) }
}

/// Whether a key may read what operators see.
pub(super) fn is_reader(key: &KeyInfo) -> bool {
    key.terms.scopes.contains(&Scope::Read) || (key.admin && key.terms.scopes.is_empty())
}

/// Whether it is neither revoked nor over.
pub(crate) fn is_good(key: &KeyInfo) -> bool {
    key.revoked_unix.is_none() && !is_over(key)
}

/// Whether its time is over.
fn is_over(key: &KeyInfo) -> bool {
    key.terms.expires_unix != 0 && key.terms.expires_unix <= unix_s()
}

/// A key of its own, so that usage is counted and the operator can revoke it like any other.
async fn keyless(core: &Core) -> Result<KeyInfo, Problem> {
    let failed = |error: store::StoreError| Problem::Store { detail: error.to_string() };
    let _one = core.keyless.lock().await;
    let keys = core.store.keys().await.map_err(failed)?;
    match keys.into_iter().find(|key| key.name == KEYLESS) {
        Some(key) if key.revoked_unix.is_some() => Err(Problem::Key),
        Some(key) => Ok(key),
        None => {
            let made =
                create_key(core.store.as_ref(), KEYLESS.to_owned(), None, false, KeyTerms::default()).await;
            Ok(made.map_err(failed)?.key)
        }
    }
}

/// Whether a call of Ollama's API comes from a program on this machine, and not from a web page that this machine's browser
/// shows: pages send where they come from, or call a name of their own that leads here.
fn local(request: &Request) -> bool {
    let headers = request.headers();
    let near = request.extensions().get::<Peer>().is_some_and(|Peer(address)| address.ip().is_loopback());
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).or(request.uri().host());
    let host = host.map_or("", |host| {
        host.rsplit_once(':').map_or(host, |(name, port)| {
            if port.bytes().all(|digit| digit.is_ascii_digit()) { name } else { host }
        })
    });
    near && Speech::of(request.uri(), headers) == Speech::Ollama
        && matches!(host, "localhost" | "127.0.0.1" | "[::1]")
        && !headers.contains_key(header::ORIGIN)
}

/// `Authorization: Bearer ...`, or `x-api-key` as Anthropic's clients send it.
fn secret(headers: &HeaderMap) -> Option<String> {
    let bearer = || {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let (scheme, secret) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| secret.trim().to_owned())
    };
    let plain = || headers.get("x-api-key")?.to_str().ok().map(|secret| secret.trim().to_owned());
    bearer().or_else(plain).filter(|secret| !secret.is_empty())
}
