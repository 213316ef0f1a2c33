//! `GET /v1/models` and `GET /v1/models/{id}`: what is served now.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Uri};
use axum::response::{IntoResponse, Response};
use base::Tokens;
use serde_json::{Value, json};
use wire::RequestError;
use wire::anthropic::response::{ModelInfo, ModelPage};
use wire::openai::response::{ModelCard, ModelList};

use super::auth::{Caller, caller};
use crate::clock::rfc3339;

use crate::core::Core;
use crate::pools::Served;
use crate::problem::Problem;

pub(super) async fn list(State(core): State<Arc<Core>>, headers: HeaderMap) -> Result<Response, Problem> {
    let key = caller(&core, Caller::of_headers(&headers)).await?;
    let may = |served: &&Arc<Served>| super::prepare::may_use(&key, &served.name);
    let data: Vec<ModelCard> =
        core.pools.all().iter().filter(may).filter_map(|served| card(served)).collect();
    if speaks_anthropic(&headers) {
        let data: Vec<ModelInfo> = data.into_iter().map(info).collect();
        let name = |model: Option<&ModelInfo>| model.map(|model| model.id.clone());
        let (first_id, last_id) = (name(data.first()), name(data.last()));
        return Ok(Json(ModelPage { data, has_more: false, first_id, last_id }).into_response());
    }
    Ok(Json(ModelList { object: "list".to_owned(), data }).into_response())
}

pub(super) async fn one(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    caller(&core, Caller::of_headers(&headers)).await?;
    let id = super::part(path, &uri)?;
    let served = super::prepare::served(&core, &id)?;
    let card = card(&served).ok_or(Problem::Model { model: id.chars().take(100).collect() })?;
    if speaks_anthropic(&headers) {
        return Ok(Json(info(card)).into_response());
    }
    Ok(Json(card).into_response())
}

/// The same calls are Anthropic's too, which its clients' header tells.
fn speaks_anthropic(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

fn info(card: ModelCard) -> ModelInfo {
    ModelInfo {
        kind: "model",
        display_name: card.id.clone(),
        id: card.id,
        created_at: rfc3339(card.created),
        lifecycle: "active",
        max_input_tokens: card.max_model_len,
    }
}

/// What callers see of a model; nothing where no instance serves it now.
fn card(served: &Served) -> Option<ModelCard> {
    let listing = served.look(|pool, _| pool.listing())?;
    let of = served.kit();
    let kit = of.as_ref().map(|of| &of.kit);
    let embeds = kit.is_some_and(|kit| kit.spec.pooling.is_some());
    let chats = kit.is_some_and(|kit| kit.template.is_some());
    let capabilities = match (embeds, chats) {
        (true, _) => vec!["embedding"],
        (false, true) => vec!["completion", "chat"],
        (false, false) => vec!["completion"],
    };
    let hidden = kit.filter(|_| embeds).map(|kit| u32::try_from(kit.spec.hidden).unwrap_or(u32::MAX));
    Some(ModelCard {
        id: served.name.as_str().to_owned(),
        object: "model".to_owned(),
        created: served.created_unix,
        owned_by: "phalanx".to_owned(),
        max_model_len: listing.context.0,
        capabilities: capabilities.into_iter().map(str::to_owned).collect(),
        embedding_length: hidden,
    })
}

/// What kind of request the answer is about.
#[derive(serde::Deserialize)]
pub(super) struct Shape {
    #[serde(default)]
    prompt_tokens: u32,
    max_tokens: Option<u32>,
}

/// Tokens of an answer, where the caller names none.
const ANSWER_TOKENS: u32 = 256;

/// What each model could take on now: the same computation that admits requests.
pub(super) async fn capacity(
    State(core): State<Arc<Core>>,
    shape: Result<Query<Shape>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    caller(&core, Caller::of_headers(&headers)).await?;
    let Query(shape) = shape.map_err(|_| {
        let message = "'prompt_tokens' and 'max_tokens' must be numbers of tokens".to_owned();
        let param = Some("prompt_tokens".to_owned());
        Problem::Request(RequestError { message, param, code: "invalid_value" })
    })?;
    let (prompt, answer) = (Tokens(shape.prompt_tokens), Tokens(shape.max_tokens.unwrap_or(ANSWER_TOKENS)));
    let one = |served: &Arc<Served>| {
        let (listing, capacity) =
            served.look(|pool, now| Some((pool.listing()?, pool.capacity(now, prompt, answer))))?;
        Some(json!({
            "id": served.name.as_str(),
            "object": "model.capacity",
            "context": listing.context.0,
            "instances": listing.instances,
            "requests_now": capacity.requests,
            "running": capacity.running,
            "queued": capacity.queued,
        }))
    };
    let data: Vec<Value> = core.pools.all().iter().filter_map(one).collect();
    Ok(Json(json!({
        "object": "list", "prompt_tokens": prompt.0, "max_tokens": answer.0, "data": data,
    })))
}
