//! `/v1/responses`: made, looked at, read again from any event, cancelled, deleted.

mod kept;
mod object;
mod running;

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base::RequestId;
use serde::Deserialize;
use serde_json::{Value, json};
use wire::RequestError;
use wire::openai::parse_response;
use wire::openai::responses::{ResponseRequest, messages_of};
use wire::request::Source;

use super::answer::{Answering, Told};
use super::auth::{Caller, caller};
use super::call::Call;
use super::prepare::prepare;
use super::stream::{Said, streaming, whole};
use crate::clock::unix_s;
use crate::core::Core;
use crate::problem::Problem;
pub(crate) use kept::Responses;
use kept::{Kept, Lineage};
use object::ResponseBody;
use running::{Progress, Writer, run};

/// Makes a response.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "responses", request).await?;
    let mut asked = call.parse(body, parse_response).await?;
    let account = call.key.account;
    let lineage = lineage(&core, account, &asked)?;
    if let Source::Chat(chat) = &mut asked.request.source {
        let told = asked.instructions.iter().map(|text| json!({"role": "system", "content": text}));
        chat.messages = told.chain(messages_of(&lineage.items)).collect();
    }
    let ResponseRequest { request, items, instructions, previous, store, background, repeated } = asked;
    let stream = request.generation.stream;
    let mut prepared = prepare(&core, call, request).await?;
    let body = ResponseBody {
        id: object::id(id),
        created_at: unix_s(),
        model: prepared.served.name.as_str().to_owned(),
        background,
        store,
        instructions,
        previous_response_id: previous,
        ..ResponseBody::new(repeated)
    };
    if background {
        prepared.as_it_comes();
    }
    let said = prepared.take_said();
    let answering = prepared.begin(&core);
    let kept = Arc::new(Kept::new(account, object::with_ids(id, items), lineage.items));
    let writer = Writer::new(id, body, Arc::clone(&kept));
    if store {
        core.responses.keep(&writer.body.id, &kept, &core.config.api);
    }
    let dropped = Dropped { core: Arc::clone(&core), id: writer.body.id.clone(), store, armed: true };
    if background {
        return Ok(begin_in_background(&core, writer, answering, dropped, stream, &said));
    }
    if stream {
        return begin_stream(&core, writer, answering, dropped, said).await;
    }
    finish(writer, answering, dropped, &said).await
}

/// What a response that was never begun leaves behind: nothing.
struct Dropped {
    core: Arc<Core>,
    id: String,
    store: bool,
    armed: bool,
}

impl Drop for Dropped {
    fn drop(&mut self) {
        if self.armed && self.store {
            self.core.responses.forget(&self.id);
        }
    }
}

/// The whole response, in one body.
async fn finish(
    mut writer: Writer,
    mut answering: Answering,
    mut dropped: Dropped,
    said: &Said,
) -> Result<Response, Problem> {
    while let Some(told) = answering.next().await {
        if let Told::Failed(problem) = told {
            return Err(*problem);
        }
        let timings = if let Told::Settled(timings) = &told { Some(timings.clone()) } else { None };
        writer.take(told);
        if let Some(timings) = timings {
            dropped.armed = false;
            return Ok(whole(&writer.body, said, &timings));
        }
    }
    Err(Problem::Internal("an answer ended without its end"))
}

/// Events as they come; they go on in a task of their own, so that they can be read again.
async fn begin_stream(
    core: &Arc<Core>,
    mut writer: Writer,
    mut answering: Answering,
    mut dropped: Dropped,
    said: Said,
) -> Result<Response, Problem> {
    let ended = || Told::Failed(Box::new(Problem::Internal("an answer ended without its end")));
    let first = answering.next().await.unwrap_or_else(ended);
    let timings = match &first {
        Told::Failed(problem) => return Err((**problem).clone()),
        Told::Started(timings) => Some(timings.clone()),
        _ => None,
    };
    dropped.armed = false;
    let kept = Arc::clone(&writer.kept);
    writer.begin(false);
    writer.take(first);
    core.tasks.spawn(run(writer, answering));
    let body = Body::from_stream(Progress::stream(core, kept, 0, true));
    let mut response = streaming(body, "text/event-stream; charset=utf-8", |_| {});
    said.put(response.headers_mut(), timings.as_deref());
    Ok(response)
}

/// The response as it stands at its begin; it goes on without its caller.
fn begin_in_background(
    core: &Arc<Core>,
    mut writer: Writer,
    answering: Answering,
    mut dropped: Dropped,
    stream: bool,
    said: &Said,
) -> Response {
    dropped.armed = false;
    let kept = Arc::clone(&writer.kept);
    writer.begin(true);
    let begun = serde_json::to_value(&writer.body).unwrap_or(Value::Null);
    core.tasks.spawn(run(writer, answering));
    let mut response = if stream {
        let body = Body::from_stream(Progress::stream(core, kept, 0, false));
        streaming(body, "text/event-stream; charset=utf-8", |_| {})
    } else {
        (StatusCode::OK, Json(begun)).into_response()
    };
    said.put(response.headers_mut(), None);
    response
}

/// What was said before, and in this call.
fn lineage(core: &Core, account: base::AccountId, asked: &ResponseRequest) -> Result<Lineage, Problem> {
    let mut items = match &asked.previous {
        None => Vec::new(),
        Some(id) => {
            let kept = core.responses.find(id, account).ok_or_else(|| missing_previous(id))?;
            kept.said().ok_or_else(|| {
                let message =
                    "'previous_response_id' names a response that is not complete: wait for it".to_owned();
                let param = Some("previous_response_id".to_owned());
                Problem::Request(RequestError { message, param, code: "invalid_value" })
            })?
        }
    };
    items.extend(asked.items.iter().cloned());
    Ok(Lineage { items })
}

fn missing_previous(id: &str) -> Problem {
    let id: String = id.chars().take(100).collect();
    let message =
        format!("'previous_response_id' names {id:?}, which is not kept here: send the items themselves");
    let param = Some("previous_response_id".to_owned());
    Problem::Request(RequestError { message, param, code: "previous_response_not_found" })
}

/// How a kept response is looked at.
#[derive(Deserialize)]
pub(super) struct Look {
    #[serde(default)]
    stream: Option<bool>,
    starting_after: Option<u64>,
}

/// The kept response that a call names.
async fn named(
    core: &Core,
    headers: &HeaderMap,
    path: Result<Path<String>, PathRejection>,
    uri: &Uri,
) -> Result<(String, Arc<Kept>), Problem> {
    let key = caller(core, Caller::of_headers(headers)).await?;
    let id = super::part(path, uri)?;
    match core.responses.find(&id, key.account) {
        Some(kept) => Ok((id, kept)),
        None => Err(Problem::Missing { what: "response", id: id.chars().take(100).collect() }),
    }
}

/// Shows a response; or its events, from any of them on, those to come included.
pub(super) async fn show(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    look: Result<Query<Look>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (_, kept) = named(&core, &headers, path, &uri).await?;
    let Query(look) =
        look.map_err(|_| query("'stream' is true or false, and 'starting_after' a number of an event"))?;
    if !look.stream.unwrap_or(false) {
        return Ok(Json(kept.body()).into_response());
    }
    let from = look.starting_after.map_or(0, |after| after.saturating_add(1));
    let body = Body::from_stream(Progress::stream(&core, kept, from, false));
    Ok(streaming(body, "text/event-stream; charset=utf-8", |_| {}))
}

fn query(message: &str) -> Problem {
    let param = Some("starting_after".to_owned());
    Problem::Request(RequestError { message: message.to_owned(), param, code: "invalid_value" })
}

/// Ends a response that goes on.
pub(super) async fn cancel(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let (_, kept) = named(&core, &headers, path, &uri).await?;
    kept.cancel.cancel();
    kept.ended().await;
    Ok(Json(kept.body()))
}

/// Forgets a response, and ends it where it goes on.
pub(super) async fn delete(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let (id, kept) = named(&core, &headers, path, &uri).await?;
    kept.cancel.cancel();
    core.responses.forget(&id);
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// How items are listed.
#[derive(Deserialize)]
pub(super) struct Page {
    limit: Option<usize>,
    order: Option<String>,
    after: Option<String>,
}

/// The items that a response was asked with.
pub(super) async fn input_items(
    State(core): State<Arc<Core>>,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let (_, kept) = named(&core, &headers, path, &uri).await?;
    let refuse = |message: &str, param: &str| {
        let param = Some(param.to_owned());
        Problem::Request(RequestError { message: message.to_owned(), param, code: "invalid_value" })
    };
    let Query(page) = page.map_err(|_| refuse("'limit' must be between 1 and 100", "limit"))?;
    let limit = page.limit.unwrap_or(20);
    if !(1..=100).contains(&limit) {
        return Err(refuse("'limit' must be between 1 and 100", "limit"));
    }
    let mut items = kept.items.clone();
    match page.order.as_deref() {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => return Err(refuse("'order' must be asc or desc", "order")),
    }
    if let Some(after) = &page.after {
        let Some(at) = items.iter().position(|item| item["id"] == after.as_str()) else {
            return Err(Problem::Missing {
                what: "item of this response",
                id: after.chars().take(100).collect(),
            });
        };
        items.drain(..=at);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Value>| item.map_or(Value::Null, |item| item["id"].clone());
    let (first, last) = (id(items.first()), id(items.last()));
    Ok(Json(json!({
        "object": "list", "data": items, "first_id": first, "last_id": last, "has_more": has_more,
    })))
}
