//! `GET /health`, `/ready` and `/metrics`: cheap, true, and open to whoever reaches the port.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::core::Core;
use crate::metrics::Metrics;

/// The process serves HTTP.
pub(super) async fn health() -> Response {
    axum::Json(json!({"status": "ok"})).into_response()
}

/// Requests are taken: the store works, and nobody said to stop.
pub(super) async fn ready(State(core): State<Arc<Core>>) -> Response {
    let no = |reason: &str| {
        (StatusCode::SERVICE_UNAVAILABLE, axum::Json(json!({"ready": false, "reason": reason})))
            .into_response()
    };
    if core.draining.is_cancelled() {
        return no("draining");
    }
    match tokio::time::timeout(Duration::from_secs(1), core.store.writable()).await {
        Ok(Ok(_)) => axum::Json(json!({"ready": true})).into_response(),
        Ok(Err(_)) => no("the ledger cannot be written"),
        Err(_) => no("the store does not answer"),
    }
}

/// In Prometheus' text form.
pub(super) async fn metrics(State(core): State<Arc<Core>>) -> Response {
    core.settled().await;
    for served in core.pools.all() {
        let (status, error) = served.look(|pool, _| (pool.status(), pool.calibration_error()));
        let model = Metrics::of_model(&served.name);
        core.metrics.queued.get_or_create(&model).set(status.queued.into());
        core.metrics.eligible.get_or_create(&model).set(status.eligible.0.into());
        if let Some(error) = error {
            core.metrics.prediction_error.get_or_create(&model).set(error);
        }
    }
    core.metrics.set_groups(&core.groups.status(core.clock.now()));
    let mut response = core.metrics.text().into_response();
    let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
