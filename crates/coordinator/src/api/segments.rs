//! `GET /api/segments`: where requests' time went; `DELETE` begins anew.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use wire::admin::SegmentReport;

use crate::core::Core;
use crate::problem::Problem;

pub(super) async fn show(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<SegmentReport>, Problem> {
    super::auth::reader(&core, &headers).await?;
    core.settled().await;
    Ok(Json(core.segments.report()))
}

pub(super) async fn reset(State(core): State<Arc<Core>>, headers: HeaderMap) -> Result<StatusCode, Problem> {
    super::auth::operator(&core, &headers).await?;
    core.settled().await;
    core.segments.reset();
    Ok(StatusCode::NO_CONTENT)
}
