//! `/api/keys`: who may call.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use base::{KeyId, ModelName};
use wire::admin::{CreateKey, CreatedKey, KeyInfo, KeyList, KeyTerms};
use wire::openai::RequestError;

use super::accounts::{failed, note};
use crate::bootstrap::create_key;
use crate::clock::unix_s;
use crate::core::Core;
use crate::problem::Problem;

/// Models that one key may be held to.
const MODELS_MAX: usize = 100;

/// The largest share: what an account of this weight asks for still counts as some work.
const WEIGHT_MAX: u64 = 1000;

/// More than there are: each may be said twice.
const SCOPES_MAX: usize = 16;

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<KeyList>, Problem> {
    super::auth::operator(&core, &headers).await?;
    let keys = core.store.keys().await.map_err(|error| failed(&error))?;
    Ok(Json(KeyList { keys }))
}

pub(super) async fn create(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<(StatusCode, Json<CreatedKey>), Problem> {
    let by = super::auth::operator(&core, request.headers()).await?;
    let body = super::body::read(&core, request).await?;
    let asked: CreateKey = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body is not what this call takes: {error}");
        RequestError { message, param: None, code: "invalid_json" }
    })?;
    if asked.name.is_empty() || asked.name.len() > 200 || asked.name.chars().any(char::is_control) {
        let message = "'name' must have 1 to 200 bytes and no control characters".to_owned();
        return Err(RequestError { message, param: Some("name".to_owned()), code: "invalid_value" }.into());
    }
    check(&asked.terms)?;
    let created = create_key(core.store.as_ref(), asked.name, asked.account, asked.admin, asked.terms)
        .await
        .map_err(|error| failed(&error))?;
    let terms = serde_json::to_string(&created.key.terms).unwrap_or_default();
    let detail = format!("account {} admin {} terms {terms}", created.key.account, created.key.admin);
    note(&core, &by, "key.create", created.key.id.to_string(), detail).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

/// What no key's terms may be.
fn check(terms: &KeyTerms) -> Result<(), RequestError> {
    let wrong = |message: String| {
        Err(RequestError { message, param: Some("terms".to_owned()), code: "invalid_value" })
    };
    if terms.models.len() > MODELS_MAX {
        return wrong(format!("'terms.models' has {} names, at most {MODELS_MAX}", terms.models.len()));
    }
    let named = |model: &ModelName| (1..=200).contains(&model.as_str().chars().count());
    let plain = |model: &ModelName| !model.as_str().chars().any(char::is_control);
    if let Some(at) = terms.models.iter().position(|model| !named(model) || !plain(model)) {
        return wrong(format!(
            "'terms.models[{at}]' must have 1 to 200 characters and no control characters"
        ));
    }
    if terms.weight > WEIGHT_MAX {
        return wrong(format!("'terms.weight' is {}, at most {WEIGHT_MAX}", terms.weight));
    }
    if terms.scopes.len() > SCOPES_MAX {
        return wrong(format!("'terms.scopes' has {} entries, at most {SCOPES_MAX}", terms.scopes.len()));
    }
    Ok(())
}

/// A new secret in place of a key's: the same account, name and terms. The old one ends at once.
pub(super) async fn rotate(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<CreatedKey>), Problem> {
    let by = super::auth::operator(&core, &headers).await?;
    let id = super::part(path, &uri)?;
    let missing = || Problem::Missing { what: "active key", id: id.chars().take(100).collect() };
    let key: KeyId = id.parse().map_err(|_| missing())?;
    let keys = core.store.keys().await.map_err(|error| failed(&error))?;
    let old = keys.into_iter().find(|k| k.id == key && k.revoked_unix.is_none()).ok_or_else(missing)?;
    let created = create_key(core.store.as_ref(), old.name, Some(old.account), old.admin, old.terms)
        .await
        .map_err(|error| failed(&error))?;
    core.store.revoke_key(key, unix_s()).await.map_err(|error| failed(&error))?;
    core.end_joined(key);
    note(&core, &by, "key.rotate", key.to_string(), format!("to {}", created.key.id)).await?;
    Ok((StatusCode::CREATED, Json(created)))
}

pub(super) async fn revoke(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<KeyInfo>, Problem> {
    let by = super::auth::operator(&core, &headers).await?;
    let id = super::part(path, &uri)?;
    let missing = || Problem::Missing { what: "key", id: id.chars().take(100).collect() };
    let key: KeyId = id.parse().map_err(|_| missing())?;
    let revoked = core.store.revoke_key(key, unix_s()).await.map_err(|error| failed(&error))?;
    let revoked = revoked.ok_or_else(missing)?;
    core.end_joined(key);
    note(&core, &by, "key.revoke", revoked.id.to_string(), String::new()).await?;
    Ok(Json(revoked))
}
