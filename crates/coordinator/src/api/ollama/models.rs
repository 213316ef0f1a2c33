//! Ollama's `/api/tags`, `/api/show`, `/api/ps` and `/api/version`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use serde_json::{Map, Value, json};
use wire::control::ModelDescriptor;
use wire::ollama::parse_show;
use wire::ollama::response::{Details, Model};

use crate::api::auth::Caller;
use crate::api::{auth, body, call};
use crate::clock::rfc3339;
use crate::core::Core;
use crate::pools::Served;
use crate::problem::Problem;

/// The release of Ollama whose calls these are: clients look for one that is not too old.
const VERSION: &str = "0.12.0";

/// Nothing unloads a model here; clients want to know when.
const FAR_AWAY_S: u64 = 365 * 24 * 3600;

/// A served model's name for what a caller wrote: Ollama's clients add a tag.
pub(in crate::api) fn name_of(core: &Core, asked: &str) -> String {
    let exact = core.pools.get(&base::ModelName::new(asked)).is_some();
    match asked.strip_suffix(":latest") {
        Some(plain) if !exact => plain.to_owned(),
        _ => asked.to_owned(),
    }
}

pub(in crate::api) async fn version(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    auth::caller(&core, Caller::of(&core, &request)).await?;
    Ok(Json(json!({"version": VERSION, "phalanx": crate::VERSION})))
}

pub(in crate::api) async fn tags(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    auth::caller(&core, Caller::of(&core, &request)).await?;
    Ok(Json(json!({"models": models(&core, false)})))
}

pub(in crate::api) async fn ps(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    auth::caller(&core, Caller::of(&core, &request)).await?;
    Ok(Json(json!({"models": models(&core, true)})))
}

pub(in crate::api) async fn show(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<Value>, Problem> {
    auth::caller(&core, Caller::of(&core, &request)).await?;
    let body = body::read(&core, request).await?;
    let asked = call::parsed(body, parse_show).await?;
    let served = crate::api::prepare::served(&core, &name_of(&core, &asked))?;
    let missing = || Problem::Model { model: asked.chars().take(100).collect() };
    let descriptor = descriptor(&served).ok_or_else(missing)?;
    let kit = served.kit();
    let embeds = kit.as_ref().is_some_and(|of| of.kit.spec.pooling.is_some());
    let mut capabilities = vec![if embeds { "embedding" } else { "completion" }];
    if !embeds && kit.as_ref().is_some_and(|of| of.kit.template.is_some()) {
        capabilities.push("tools");
    }
    let family = descriptor.family.clone();
    let mut info = Map::new();
    info.insert("general.architecture".to_owned(), json!(family));
    info.insert("general.parameter_count".to_owned(), json!(descriptor.parameters));
    info.insert(format!("{family}.context_length"), json!(descriptor.context.0));
    if let Some(of) = &kit {
        info.insert(format!("{family}.embedding_length"), json!(of.kit.spec.hidden));
    }
    info.insert(format!("{family}.vocab_size"), json!(descriptor.vocabulary));
    Ok(Json(json!({
        "modelfile": "",
        "parameters": "",
        "template": "",
        "license": "",
        "modified_at": rfc3339(served.created_unix),
        "details": details(&descriptor),
        "model_info": info,
        "capabilities": capabilities,
    })))
}

fn models(core: &Core, running: bool) -> Vec<Model> {
    let one = |served: &Arc<Served>| {
        let listing = served.look(|pool, _| pool.listing())?;
        let descriptor = descriptor(served)?;
        let now = crate::clock::unix_s();
        Some(Model {
            name: served.name.as_str().to_owned(),
            model: served.name.as_str().to_owned(),
            modified_at: rfc3339(served.created_unix),
            size: descriptor.weight_bytes.0,
            digest: descriptor.kit_sha256.clone(),
            details: details(&descriptor),
            expires_at: running.then(|| rfc3339(now + FAR_AWAY_S)),
            size_vram: running.then_some(0),
            context_length: running.then_some(listing.context.0),
        })
    };
    core.pools.all().iter().filter_map(one).collect()
}

fn descriptor(served: &Served) -> Option<ModelDescriptor> {
    served.look(|pool, _| pool.instances().next().map(|instance| instance.model.clone()))
}

fn details(descriptor: &ModelDescriptor) -> Details {
    Details {
        family: descriptor.family.clone(),
        families: vec![descriptor.family.clone()],
        parameter_size: parameters(descriptor.parameters),
        ..Details::default()
    }
}

/// `7.6B`, `494.0M`.
fn parameters(count: u64) -> String {
    let (unit, name) = match count {
        1_000_000_000.. => (1_000_000_000, "B"),
        1_000_000.. => (1_000_000, "M"),
        _ => (1_000, "K"),
    };
    let tenths = count / (unit / 10);
    format!("{}.{}{name}", tenths / 10, tenths % 10)
}
