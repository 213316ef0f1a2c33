//! `GET /api/status`: the whole fleet, for operators.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use wire::admin::FleetStatus;

use crate::core::Core;
use crate::problem::Problem;

pub(super) async fn show(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<FleetStatus>, Problem> {
    super::auth::reader(&core, &headers).await?;
    Ok(Json(FleetStatus {
        version: crate::VERSION.to_owned(),
        uptime_us: core.clock.now().0,
        machines: core.machines.status(),
        models: core.pools.all().iter().map(|served| served.look(|pool, _| pool.status())).collect(),
        groups: core.groups.status(core.clock.now()),
    }))
}
