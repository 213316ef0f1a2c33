//! Who calls: the key of a request.

use axum::http::{HeaderMap, header};
use store::KeyInfo;

use crate::core::Core;
use crate::problem::Problem;

/// The key that a call was made with.
pub(super) async fn caller(core: &Core, headers: &HeaderMap) -> Result<KeyInfo, Problem> {
    let secret = bearer(headers).ok_or(Problem::Key)?;
    let hash = trust::hash_secret(secret);
    match core.store.key_by_hash(hash).await {
        Ok(Some(key)) if key.revoked_unix.is_none() => Ok(key),
        Ok(_) => Err(Problem::Key),
        Err(error) => Err(Problem::Store { detail: error.to_string() }),
    }
}

/// The key of a call that only an operator may make.
pub(super) async fn operator(core: &Core, headers: &HeaderMap) -> Result<KeyInfo, Problem> {
    let key = caller(core, headers).await?;
    if key.admin { Ok(key) } else { Err(Problem::NotAdmin) }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}
