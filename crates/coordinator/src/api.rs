//! The HTTP API: which handler stands where, and what every answer has.

mod accounts;
mod answer;
mod auth;
mod body;
mod call;
mod chat;
mod completions;
mod deployments;
mod embeddings;
mod explain;
mod groups;
mod keys;
mod messages;
mod models;
mod ollama;
mod openapi;
mod prepare;
mod probes;
mod prompt;
mod reader;
mod receipts;
mod responses;
mod segments;
mod speech;
mod status;
mod stream;
mod tools;
mod topology;
mod warm;

use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, delete, get, post};
use base::RequestId;

pub(crate) use auth::{Peer, is_good};
pub(crate) use responses::Responses;
pub(crate) use warm::warm;

use crate::core::Core;
use crate::metrics::Metrics;
use crate::problem::{Problem, ProblemCode, ProblemText};
use crate::turned_away::TurnedAway;
use crate::uplink;
use speech::Speech;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Every path.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::create))
        .route("/v1/chat/completions/", post(chat::create))
        .route("/v1/chat/completions/{id}", get(chat::resume))
        .route("/v1/completions", post(completions::create))
        .route("/v1/completions/", post(completions::create))
        .route("/v1/responses", post(responses::create))
        .route("/v1/responses/", post(responses::create))
        .route("/v1/responses/{id}", get(responses::show).delete(responses::delete))
        .route("/v1/responses/{id}/cancel", post(responses::cancel))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route("/v1/embeddings", post(embeddings::create))
        .route("/v1/embeddings/", post(embeddings::create))
        .route("/v1/receipts/key", get(receipts::key))
        .route("/v1/receipts/{request}", get(receipts::show))
        .route("/v1/models", get(models::list))
        .route("/v1/models/", get(models::list))
        .route("/v1/models/capacity", get(models::capacity))
        .route("/v1/models/{*id}", get(models::one))
        .route("/health", get(probes::health))
        .route("/ready", get(probes::ready))
        .route("/metrics", get(probes::metrics))
        .route("/openapi.json", get(openapi::show))
        .route("/api/chat", post(ollama::chat))
        .route("/api/generate", post(ollama::generate))
        .route("/api/tags", get(ollama::tags))
        .route("/api/show", post(ollama::show))
        .route("/api/ps", get(ollama::ps))
        .route("/api/version", get(ollama::version))
        .route("/api/pull", any(ollama::elsewhere))
        .route("/api/push", any(ollama::elsewhere))
        .route("/api/create", any(ollama::elsewhere))
        .route("/api/copy", any(ollama::elsewhere))
        .route("/api/delete", any(ollama::elsewhere))
        .route("/api/embed", post(embeddings::ollama))
        .route("/api/embeddings", post(embeddings::ollama_one))
        .route("/api/status", get(status::show))
        .route("/api/topology", get(topology::show))
        .route("/api/explain/{request}", get(explain::request))
        .route("/api/why/{machine}", get(explain::machine))
        .route("/api/keys", get(keys::list).post(keys::create))
        .route("/api/keys/{id}", delete(keys::revoke))
        .route("/api/groups", get(groups::list).post(groups::create))
        .route("/api/groups/{id}", delete(groups::remove))
        .route("/api/deployments", get(deployments::list).post(deployments::create))
        .route("/api/deployments/{name}", deployments::one())
        .route("/api/deployments/{name}/scale", post(deployments::scale))
        .route("/api/deployments/{name}/history", get(deployments::history))
        .route("/api/preview", post(deployments::preview))
        .route("/api/planner", get(deployments::planner).put(deployments::set_planner))
        .route("/api/segments", get(segments::show).delete(segments::reset))
        .route("/api/keys/{id}/rotate", post(keys::rotate))
        .route("/api/usage", get(accounts::usage))
        .route("/api/prices", get(accounts::prices).put(accounts::set_price))
        .route("/api/audit", get(accounts::audit))
        .route("/api/uplink", get(uplink::serve))
        .fallback(nothing_there)
        .method_not_allowed_fallback(not_allowed)
        .layer(from_fn_with_state(Arc::clone(&core), identify))
        .with_state(core)
}

async fn nothing_there(uri: Uri) -> Problem {
    let path: String = uri.path().chars().take(200).collect();
    match path.as_str() {
        "/chat/completions" | "/completions" | "/models" => Problem::PathOutsideV1 { path },
        _ => Problem::Path { path },
    }
}

/// A part of a path as text. Where it is none, nothing of that name is there.
fn part(path: Result<Path<String>, PathRejection>, uri: &Uri) -> Result<String, Problem> {
    path.map(|Path(part)| part).map_err(|_| Problem::Path { path: uri.path().chars().take(200).collect() })
}

async fn not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::Method {
        method: method.as_str().chars().take(32).collect(),
        path: uri.path().chars().take(200).collect(),
    }
}

/// Gives every call an identity, which its answer names, and counts what failed.
async fn identify(State(core): State<Arc<Core>>, mut request: Request, next: Next) -> Response {
    let id: RequestId = core.request_id();
    let speech = Speech::of(request.uri(), request.headers());
    request.extensions_mut().insert(id);
    // Operators' own calls are no requests.
    let asks = request.method() == Method::POST;
    // Whoever leaves it out speaks another protocol than it says.
    let homeless = request.version() == Version::HTTP_11 && !request.headers().contains_key(header::HOST);
    let answered = if homeless {
        Problem::Header { name: "host", detail: "HTTP/1.1 wants one" }.into_response()
    } else {
        next.run(request).await
    };
    let mut response = speech.put(answered, id);
    let value = HeaderValue::from_str(&id.to_string()).expect("identities are ASCII");
    response.headers_mut().insert(REQUEST_ID, value);
    if let Some(ProblemCode(code)) = response.extensions().get() {
        Metrics::count(&core.metrics.problems, code);
        let status = response.status().as_u16();
        tracing::debug!(request = %id, status, code, "a call failed");
        if let Some(ProblemText(text)) = response.extensions().get().filter(|_| asks) {
            core.turned_away.note(TurnedAway {
                request: id,
                at: core.clock.now(),
                status,
                code,
                text: text.clone(),
            });
        }
    }
    response
}

/// Changes when the same seed may give another answer: with the program, and with the model's kit.
fn fingerprint(served: &crate::pools::Served) -> String {
    let kit = served.kit().map(|kit| kit.hash);
    let kit = kit.as_deref().and_then(|hash| hash.get(..10)).unwrap_or("0");
    format!("fp_{}_{kit}", env!("CARGO_PKG_VERSION").replace('.', "_"))
}
