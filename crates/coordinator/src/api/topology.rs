//! `GET /api/topology`: which machines reach which, for operators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use wire::admin::topology::Topology;

use crate::core::Core;
use crate::problem::Problem;

pub(super) async fn show(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<Topology>, Problem> {
    super::auth::reader(&core, &headers).await?;
    Ok(Json(core.deployments.inbox.topology()))
}
