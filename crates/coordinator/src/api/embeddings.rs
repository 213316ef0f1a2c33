//! `POST /v1/embeddings`: read like any other call, and refused with the reason.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::response::Response;
use base::RequestId;
use wire::RequestError;
use wire::openai::parse_embedding;

use super::call::Call;
use crate::core::Core;
use crate::problem::Problem;

/// Engines give tokens, and no hidden states that could be pooled: whoever asks is told, and not given something else.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "embeddings", request).await?;
    let model = call.parse(body, parse_embedding).await?;
    let served = super::prepare::served(&core, &model)?;
    let message = format!(
        "the model '{}' gives no embeddings: engines here generate text only; use a server of an embedding model",
        served.name
    );
    let param = Some("model".to_owned());
    Err(Problem::Request(RequestError { message, param, code: "embeddings_not_supported" }))
}
