//! `/api/groups`: machines that run one model together.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use base::InstanceId;
use wire::admin::group::{CreateGroup, GroupList, GroupStatus};
use wire::openai::RequestError;

use crate::core::Core;
use crate::problem::Problem;

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<GroupList>, Problem> {
    super::auth::operator(&core, &headers).await?;
    Ok(Json(GroupList { groups: core.groups.status(core.clock.now()) }))
}

pub(super) async fn create(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<(StatusCode, Json<GroupStatus>), Problem> {
    let by = super::auth::operator(&core, request.headers()).await?;
    let body = super::body::read(&core, request).await?;
    let asked: CreateGroup = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body is not what this call takes: {error}");
        RequestError { message, param: None, code: "invalid_json" }
    })?;
    let status = core.create_group(asked)?;
    tracing::info!(by = %by.id, instance = %status.instance, model = %status.model, "a group was made");
    Ok((StatusCode::CREATED, Json(status)))
}

pub(super) async fn remove(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<GroupStatus>, Problem> {
    let by = super::auth::operator(&core, &headers).await?;
    let id = super::part(path, &uri)?;
    let missing = || Problem::Missing { what: "group", id: id.chars().take(100).collect() };
    let instance: InstanceId = id.parse().map_err(|_| missing())?;
    let status = core.remove_group(instance).ok_or_else(missing)?;
    tracing::info!(by = %by.id, %instance, "a group was removed");
    Ok(Json(status))
}
