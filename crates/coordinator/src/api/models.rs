//! `GET /v1/models` and `GET /v1/models/{id}`: what is served now.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri};
use wire::openai::response::{ModelCard, ModelList};

use crate::core::Core;
use crate::pools::Served;
use crate::problem::Problem;

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<ModelList>, Problem> {
    super::auth::caller(&core, &headers).await?;
    let data = core.pools.all().iter().filter_map(|served| card(served)).collect();
    Ok(Json(ModelList { object: "list".to_owned(), data }))
}

pub(super) async fn one(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<ModelCard>, Problem> {
    super::auth::caller(&core, &headers).await?;
    let id = super::part(path, &uri)?;
    let served = super::prepare::served(&core, &id)?;
    card(&served).map(Json).ok_or(Problem::Model { model: id.chars().take(100).collect() })
}

/// What callers see of a model; nothing where no instance serves it now.
fn card(served: &Served) -> Option<ModelCard> {
    let listing = served.look(|pool, _| pool.listing())?;
    Some(ModelCard {
        id: served.name.as_str().to_owned(),
        object: "model".to_owned(),
        created: served.created_unix,
        owned_by: "phalanx".to_owned(),
        max_model_len: listing.context.0,
    })
}
