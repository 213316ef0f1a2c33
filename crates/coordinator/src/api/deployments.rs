//! `/api/deployments`, `/api/preview`, `/api/planner`: what should run, how it is, and what would be.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::routing::{MethodRouter, get};
use fleet::deployment::{Replicas, Spec};
use fleet::plan::file::PlanOutput;
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::KeyInfo;
use wire::admin::deployment::{
    Accepted, DeploymentEvent, DeploymentHistory, DeploymentList, DeploymentStatus, PlannerStatus, Preview,
    Scale, SetPlanner,
};
use wire::openai::RequestError;

use super::accounts::{failed, note};
use crate::core::Core;
use crate::deployments::{Call, Change};
use crate::problem::Problem;

/// Lines of history in one answer: all that are kept.
const EVENTS_MAX: u32 = 256;

/// What can be done with one of them.
pub(super) fn one() -> MethodRouter<Arc<Core>> {
    get(show).put(apply).delete(remove)
}

type Name = Result<Path<String>, PathRejection>;

fn invalid(param: Option<&str>, message: String) -> Problem {
    RequestError { message, param: param.map(str::to_owned), code: "invalid_value" }.into()
}

fn missing(name: &str) -> Problem {
    Problem::Missing { what: "deployment", id: name.chars().take(100).collect() }
}

/// A body as a type; what is wrong with it is said, values and all: there is no secret in one.
fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not what this call takes: {error}");
        RequestError { message, param: None, code: "invalid_json" }.into()
    })
}

/// The call's name, where it has one, so that it may be made again without being done again.
fn call(by: &KeyInfo, headers: &HeaderMap, what: &str, body: &[u8]) -> Result<Option<Call>, Problem> {
    let Some((name, _)) = super::call::idempotency(headers)? else { return Ok(None) };
    let mut asked = what.as_bytes().to_vec();
    asked.push(0);
    asked.extend_from_slice(body);
    let digest = trust::hex(&trust::sha256(&asked));
    Ok(Some(Call { key: format!("{}/{name}", by.account), digest }))
}

pub(super) async fn list(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<DeploymentList>, Problem> {
    super::auth::reader(&core, &headers).await?;
    let list = core
        .deployments
        .look(|sight| DeploymentList { mode: sight.planner().mode, deployments: sight.deployments() });
    Ok(Json(list.await?))
}

async fn show(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    uri: Uri,
    path: Name,
) -> Result<Json<DeploymentStatus>, Problem> {
    super::auth::reader(&core, &headers).await?;
    let name = super::part(path, &uri)?;
    let asked = name.clone();
    let found = core.deployments.look(move |sight| sight.deployment(&asked)).await?;
    Ok(Json(found.ok_or_else(|| missing(&name))?))
}

pub(super) async fn create(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    put(core, request, None).await
}

async fn apply(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Name,
    request: Request,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let name = super::part(path, &uri);
    put(core, request, Some(name)).await
}

/// Applies a spec. Its name may be left out where the path says it, and must not be another.
async fn put(
    core: Arc<Core>,
    request: Request,
    named: Option<Result<String, Problem>>,
) -> Result<(StatusCode, Json<Accepted>), Problem> {
    let headers = request.headers().clone();
    let by = super::auth::operator(&core, &headers).await?;
    let named = named.transpose()?;
    let body = super::body::read(&core, request).await?;
    let spec: Spec = match &named {
        None => parsed(&body)?,
        Some(name) => {
            let with_name: NamedSpec = parsed(&body)?;
            with_name.called(name)?
        }
    };
    // Before it is written down who asked for it.
    spec.check().map_err(|error| invalid(Some(error.field), error.to_string()))?;
    let call = call(&by, &headers, "apply", &body)?;
    let text = serde_json::to_string(&spec).unwrap_or_default();
    note(&core, &by, "deployment.apply", spec.name.clone(), text).await?;
    let accepted = core.deployments.change(Change::Apply(Box::new(spec)), call).await?;
    let status = if accepted.outcome == "created" { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(accepted)))
}

/// A spec whose name may be absent.
struct NamedSpec(Result<Spec, String>, Option<String>);

impl<'de> serde::Deserialize<'de> for NamedSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        let Some(fields) = value.as_object_mut() else {
            return Err(serde::de::Error::custom("a spec is an object"));
        };
        let name = match fields.get("name") {
            None => {
                // Any will do until the path's is put in its place.
                fields.insert("name".to_owned(), Value::String("unnamed".to_owned()));
                None
            }
            Some(Value::String(name)) => Some(name.clone()),
            Some(_) => return Err(serde::de::Error::custom("name: must be a text")),
        };
        Ok(Self(serde_json::from_value(value).map_err(|error| error.to_string()), name))
    }
}

impl NamedSpec {
    fn called(self, name: &str) -> Result<Spec, Problem> {
        let mut spec = self.0.map_err(|error| {
            let message = format!("the body is not what this call takes: {error}");
            Problem::from(RequestError { message, param: None, code: "invalid_json" })
        })?;
        match self.1 {
            Some(other) if other != name => {
                let shown: String = other.chars().take(80).collect();
                Err(invalid(Some("name"), format!("the body names {shown:?}, and the path another")))
            }
            _ => {
                name.clone_into(&mut spec.name);
                Ok(spec)
            }
        }
    }
}

pub(super) async fn scale(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Name,
    request: Request,
) -> Result<Json<Accepted>, Problem> {
    let headers = request.headers().clone();
    let by = super::auth::operator(&core, &headers).await?;
    let name = super::part(path, &uri)?;
    let body = super::body::read(&core, request).await?;
    let asked: Scale = parsed(&body)?;
    let replicas: Replicas = serde_json::from_value(asked.replicas.clone())
        .map_err(|error| invalid(Some("replicas"), format!("replicas: {error}")))?;
    let call = call(&by, &headers, &format!("scale {name}"), &body)?;
    note(&core, &by, "deployment.scale", name.clone(), asked.replicas.to_string()).await?;
    Ok(Json(core.deployments.change(Change::Scale(name, replicas), call).await?))
}

async fn remove(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Name,
    headers: HeaderMap,
) -> Result<Json<Accepted>, Problem> {
    let by = super::auth::operator(&core, &headers).await?;
    let name = super::part(path, &uri)?;
    let call = call(&by, &headers, &format!("delete {name}"), &[])?;
    note(&core, &by, "deployment.delete", name.chars().take(200).collect(), String::new()).await?;
    Ok(Json(core.deployments.change(Change::Delete(name), call).await?))
}

pub(super) async fn history(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    uri: Uri,
    path: Name,
) -> Result<Json<DeploymentHistory>, Problem> {
    super::auth::reader(&core, &headers).await?;
    let name = super::part(path, &uri)?;
    let events = core.store.deployment_history(&name, EVENTS_MAX).await.map_err(|error| failed(&error))?;
    let asked = name.clone();
    let known = core.deployments.look(move |sight| sight.controller.deployment(&asked).is_some()).await?;
    if events.is_empty() && !known {
        return Err(missing(&name));
    }
    let events = events.into_iter().map(|event| DeploymentEvent {
        at_unix_us: event.at_unix_us,
        generation: event.generation,
        what: event.what,
    });
    Ok(Json(DeploymentHistory { name, events: events.collect() }))
}

pub(super) async fn preview(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<PlanOutput>, Problem> {
    super::auth::reader(&core, request.headers()).await?;
    let body = super::body::read(&core, request).await?;
    let asked: Preview = parsed(&body)?;
    let spec = match asked.spec {
        None => None,
        Some(spec) => {
            let spec: Spec = serde_json::from_value(spec)
                .map_err(|error| invalid(Some("spec"), format!("spec: {error}")))?;
            spec.check().map_err(|error| invalid(Some("spec"), format!("spec.{error}")))?;
            Some(spec)
        }
    };
    Ok(Json(core.deployments.look(move |sight| sight.preview(spec)).await?))
}

pub(super) async fn planner(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
) -> Result<Json<PlannerStatus>, Problem> {
    super::auth::reader(&core, &headers).await?;
    Ok(Json(core.deployments.look(|sight| sight.planner()).await?))
}

pub(super) async fn set_planner(
    State(core): State<Arc<Core>>,
    request: Request,
) -> Result<Json<PlannerStatus>, Problem> {
    let by = super::auth::operator(&core, request.headers()).await?;
    let body = super::body::read(&core, request).await?;
    let asked: SetPlanner = parsed(&body)?;
    let mode = crate::deployments::parse_mode(&asked.mode).ok_or_else(|| {
        let shown: String = asked.mode.chars().take(40).collect();
        invalid(Some("mode"), format!("mode: {shown:?} is none of enforce, shadow, off"))
    })?;
    note(&core, &by, "planner.mode", asked.mode, String::new()).await?;
    core.deployments.set_mode(mode).await?;
    Ok(Json(core.deployments.look(|sight| sight.planner()).await?))
}
