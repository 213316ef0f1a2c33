//! `/api/keys`: who may call.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use base::KeyId;
use wire::admin::{CreateKey, CreatedKey, KeyInfo, KeyList};
use wire::openai::RequestError;

use crate::bootstrap::create_key;
use crate::clock::unix_s;
use crate::core::Core;
use crate::problem::Problem;

fn failed(error: &store::StoreError) -> Problem {
    tracing::error!(%error, "the store failed");
    Problem::Store { detail: error.to_string() }
}

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
    let created = create_key(core.store.as_ref(), asked.name, asked.account, asked.admin)
        .await
        .map_err(|error| failed(&error))?;
    tracing::info!(by = %by.id, key = %created.key.id, admin = created.key.admin, "a key was created");
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
    tracing::info!(by = %by.id, key = %revoked.id, "a key was revoked");
    Ok(Json(revoked))
}
