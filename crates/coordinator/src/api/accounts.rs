//! `/api/usage`, `/api/prices`, `/api/audit`: what was used, what it costs, and what operators did.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Query, Request, State};
use axum::http::HeaderMap;
use serde::Deserialize;
use store::{AuditEntry, KeyInfo, StoreError};
use wire::RequestError;
use wire::admin::{AuditLog, PriceList, SetPrice, UsageReport};

use crate::clock::unix_us;
use crate::core::Core;
use crate::problem::Problem;

/// Entries of the audit log in one answer.
const AUDIT_PAGE: u32 = 1000;

pub(super) fn failed(error: &StoreError) -> Problem {
    tracing::error!(%error, "the store failed");
    Problem::Store { detail: error.to_string() }
}

/// Writes down what an operator did. What could not be written down is not done: called before the act where it can be.
pub(super) async fn note(
    core: &Core,
    by: &KeyInfo,
    act: &str,
    subject: String,
    detail: String,
) -> Result<(), Problem> {
    tracing::info!(by = %by.id, act, subject, detail, "an operator's act");
    let entry =
        AuditEntry { sequence: 0, at_unix_us: unix_us(), by: by.id, act: act.to_owned(), subject, detail };
    core.store.note(entry).await.map_err(|error| failed(&error))
}

pub(super) async fn usage(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<UsageReport>, Problem> {
    super::auth::reader(&core, &headers).await?;
    core.settled().await;
    let usage = core.store.key_usage().await.map_err(|error| failed(&error))?;
    Ok(Json(UsageReport { usage }))
}

pub(super) async fn prices(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<PriceList>, Problem> {
    super::auth::reader(&core, &headers).await?;
    Ok(Json(core.prices.list()))
}

pub(super) async fn set_price(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<PriceList>, Problem> {
    let by = super::auth::operator(&core, request.headers()).await?;
    let body = super::body::read(&core, request).await?;
    let asked: SetPrice = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body is not what this call takes: {error}");
        RequestError { message, param: None, code: "invalid_json" }
    })?;
    let name = asked.model.as_str();
    // A thousand units a token: beyond this it is a mistake in the unit, and sums might not fit.
    let most = 1_000_000_000_000_000;
    let wrong = if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
        Some(("model", "'model' must have 1 to 200 bytes and no control characters"))
    } else if asked.price.prompt_micros.max(asked.price.generated_micros) > most {
        Some(("price", "'price' is more than 10^15 micro-units for a million tokens"))
    } else {
        None
    };
    if let Some((param, message)) = wrong {
        let (message, param) = (message.to_owned(), Some(param.to_owned()));
        return Err(RequestError { message, param, code: "invalid_value" }.into());
    }
    let detail = format!("prompt {} generated {}", asked.price.prompt_micros, asked.price.generated_micros);
    note(&core, &by, "price.set", name.to_owned(), detail).await?;
    core.prices.set(core.store.as_ref(), asked.model, asked.price).await.map_err(|error| failed(&error))?;
    Ok(Json(core.prices.list()))
}

/// Which part of the log.
#[derive(Deserialize)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
}

pub(super) async fn audit(
    State(core): State<Arc<Core>>,
    after: Result<Query<After>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<AuditLog>, Problem> {
    super::auth::reader(&core, &headers).await?;
    let after = after.ok().map(|Query(query)| query.after).filter(|after| i64::try_from(*after).is_ok());
    let after = after.ok_or_else(|| {
        let message = "'after' must be the sequence of an entry".to_owned();
        RequestError { message, param: Some("after".to_owned()), code: "invalid_value" }
    })?;
    let entries = core.store.audit(after, AUDIT_PAGE).await.map_err(|error| failed(&error))?;
    Ok(Json(AuditLog { entries }))
}
