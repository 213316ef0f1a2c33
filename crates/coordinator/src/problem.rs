//! Every way a call can fail, and the one place where each gets its HTTP status and its words.

use crate::limits::{Limit, Limited};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base::{Bytes, Micros};
use fleet::Refusal;
use wire::openai::RequestError;
use wire::openai::response::{ErrorBody, ErrorDetail};

/// Why a call fails.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Problem {
    /// The body is not what it should be.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A header is not what it should be.
    #[error("header {name}: {detail}")]
    Header { name: &'static str, detail: &'static str },
    /// No key, or none of ours.
    // Its first words are OpenAI's: there are clients that tell this error from others by them.
    #[error(
        "Incorrect API key provided, or none: send 'Authorization: Bearer sk-phx-...' with a key of this \
         coordinator (see `phalanx keys`)"
    )]
    Key,
    /// The key may not do this.
    #[error("this API key may not use /api: use an admin key")]
    NotAdmin,
    /// The key may not do this.
    #[error("this API key may not do this: it lacks the scope {scope:?}")]
    Scope { scope: &'static str },
    /// The key may not ask this model.
    #[error("this API key may not use the model {model:?}")]
    ModelNotAllowed { model: String },
    /// The key has had what it may.
    #[error("{}", limited(.0))]
    Limited(Limited),
    /// The same idempotency key came with another body.
    #[error("this idempotency-key came before with another request: use a new key for each request")]
    IdempotencyReused,
    /// Nothing is there.
    #[error("nothing is at {path}; see the API's documentation")]
    Path { path: String },
    /// The same path under `/v1` is there: the most frequent mistake of a first try.
    #[error("nothing is at {path}, but at /v1{path}: a client's base URL ends with /v1")]
    PathOutsideV1 { path: String },
    /// Something is there, but not for this method.
    #[error("{method} is not allowed at {path}")]
    Method { method: String, path: String },
    /// No such thing.
    #[error("there is no {what} {id:?}")]
    Missing { what: &'static str, id: String },
    /// A model that nobody serves or served.
    #[error("the model {model:?} does not exist here; GET /v1/models lists those that do")]
    Model { model: String },
    /// A model that was served before this coordinator's start, and whose machines are not back yet.
    #[error(
        "the model {model:?} was served before this coordinator started, and its machines are not back yet; try again in a second"
    )]
    NotBack { model: String },
    /// A deployment wants the model, and none of its instances has been ready yet.
    #[error(
        "a deployment of the model {model:?} is on its way and has no instance yet; see `phalanx deploy status`"
    )]
    Deploying { model: String },
    /// Longer than the cap.
    #[error("the body is larger than {max} (http.body_bytes_max)")]
    BodyTooLarge { max: Bytes },
    /// More, once it is rendered and sealed, than one message to a machine holds.
    #[error(
        "with its prompt, its form and its answer so far the request takes {bytes} on its way to a machine, and a message \
         there has {max} at most (uplink.data_bytes_max): shorten it, or have an operator raise the limit"
    )]
    FrameTooLarge { bytes: Bytes, max: Bytes },
    /// Compressed.
    #[error("the body has a content-encoding: send it as it is, without one")]
    BodyCoded,
    /// Not there in time.
    #[error("the body did not arrive within {:.0} s (http.body_us)", .0.as_secs_f64())]
    BodyLate(Micros),
    /// The client went away in the middle of it.
    #[error("the body ended early")]
    BodyBroken,
    /// More than the model's context.
    #[error(
        "this model's maximum context length is {context} tokens, but the prompt has {prompt} tokens; shorten the \
         prompt"
    )]
    ContextLength { context: u32, prompt: u32, param: &'static str },
    /// More than the model's context, seen without counting it.
    #[error(
        "this model's maximum context length is {context} tokens, but the prompt has {bytes} bytes, and no token \
         stands for more than {longest}; shorten the prompt"
    )]
    PromptBytes { context: u32, bytes: usize, longest: usize, param: &'static str },
    /// The model's own template refuses these messages.
    #[error("the model's chat template refuses these messages: {detail}")]
    Template { detail: String },
    /// The form that is asked of the answer is none, or too complex.
    #[error("{detail}")]
    Constraint { detail: String },
    /// Chats need a template.
    #[error("the model {model:?} has no chat template; use /v1/completions")]
    NoTemplate { model: String },
    /// The pool's answer.
    #[error("{0}")]
    Refused(Refusal),
    /// As many requests as may are here.
    #[error(
        "{running} requests are being served and {max} may (requests.running_max); try again in a second"
    )]
    Busy { running: usize, max: usize },
    /// The coordinator is going.
    #[error("this coordinator is shutting down; try again in a moment")]
    Draining,
    /// The answer was lost after it had begun.
    #[error(
        "the machine that computed this answer was lost after {tokens} tokens: {detail}; send the request again"
    )]
    StreamLost { tokens: u32, detail: &'static str },
    /// The whole time that a request may take is over.
    #[error("the request took longer than it may")]
    Expired,
    /// The client did not read.
    #[error("the client read too slowly: {detail}")]
    SlowReader { detail: &'static str },
    /// The ledger does not work.
    #[error("the coordinator's store failed: {detail}")]
    Store { detail: String },
    /// A broken promise of our own.
    #[error("{0}")]
    Internal(&'static str),
}

/// What a key that had what it may is told.
fn limited(limited: &Limited) -> String {
    let max = limited.max;
    match limited.limit {
        Limit::Requests => format!("this API key may make {max} requests a minute"),
        Limit::Tokens => format!("this API key may use {max} tokens a minute, prompts and answers together"),
        Limit::Concurrent => format!("this API key may have {max} requests at a time"),
        Limit::Spend => {
            format!(
                "this API key may spend {max} micro-units in all, and this request could cost more than is left"
            )
        }
    }
}

/// Rides on a response, for whoever counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProblemCode(pub(crate) &'static str);

/// Beside it: what its caller was told, for `phalanx explain`.
#[derive(Debug, Clone)]
pub(crate) struct ProblemText(pub(crate) String);

/// How a problem is shown.
struct Shown {
    status: StatusCode,
    kind: &'static str,
    code: &'static str,
    param: Option<String>,
    retry_after: Option<Micros>,
    uptime_neutral: bool,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const RATE: &str = "rate_limit_error";

impl Problem {
    fn shown(&self) -> Shown {
        let plain = |status, kind, code| Shown {
            status,
            kind,
            code,
            param: None,
            retry_after: None,
            uptime_neutral: false,
        };
        let about = |status, code, param: &str| Shown {
            param: Some(param.to_owned()),
            ..plain(status, INVALID, code)
        };
        let later = |status, kind, code, after| Shown {
            retry_after: Some(after),
            uptime_neutral: true,
            ..plain(status, kind, code)
        };
        match self {
            Self::Request(error) => {
                Shown { param: error.param.clone(), ..plain(StatusCode::BAD_REQUEST, INVALID, error.code) }
            }
            Self::Header { name, .. } => about(StatusCode::BAD_REQUEST, "invalid_header", name),
            Self::Key => plain(StatusCode::UNAUTHORIZED, INVALID, "invalid_api_key"),
            Self::Scope { .. } => plain(StatusCode::FORBIDDEN, INVALID, "scope_missing"),
            Self::ModelNotAllowed { .. } => about(StatusCode::FORBIDDEN, "model_not_allowed", "model"),
            Self::IdempotencyReused => plain(StatusCode::CONFLICT, INVALID, "idempotency_key_reused"),
            Self::Limited(limited) => match limited.retry_after {
                Some(after) => later(StatusCode::TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded", after),
                None => plain(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", "insufficient_quota"),
            },
            Self::NotAdmin => plain(StatusCode::FORBIDDEN, INVALID, "not_admin"),
            Self::Path { .. } | Self::PathOutsideV1 { .. } => {
                plain(StatusCode::NOT_FOUND, INVALID, "unknown_url")
            }
            Self::Method { .. } => plain(StatusCode::METHOD_NOT_ALLOWED, INVALID, "method_not_allowed"),
            Self::Missing { .. } => plain(StatusCode::NOT_FOUND, INVALID, "not_found"),
            Self::Model { .. } => about(StatusCode::NOT_FOUND, "model_not_found", "model"),
            Self::NotBack { .. } | Self::Deploying { .. } => {
                later(StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_serving_path", Micros::from_secs(1))
            }
            Self::BodyTooLarge { .. } | Self::FrameTooLarge { .. } => {
                plain(StatusCode::PAYLOAD_TOO_LARGE, INVALID, "request_too_large")
            }
            Self::BodyCoded => plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, "body_encoded"),
            Self::BodyLate(_) => plain(StatusCode::REQUEST_TIMEOUT, INVALID, "request_timeout"),
            Self::BodyBroken => plain(StatusCode::BAD_REQUEST, INVALID, "body_incomplete"),
            Self::ContextLength { param, .. } | Self::PromptBytes { param, .. } => {
                about(StatusCode::BAD_REQUEST, "context_length_exceeded", param)
            }
            Self::Template { .. } => about(StatusCode::BAD_REQUEST, "template_refused", "messages"),
            Self::Constraint { .. } => {
                about(StatusCode::BAD_REQUEST, "invalid_constraint", "response_format")
            }
            Self::NoTemplate { .. } => about(StatusCode::BAD_REQUEST, "no_chat_template", "model"),
            Self::Refused(refusal) => Self::shown_refusal(refusal),
            Self::Busy { .. } => {
                later(StatusCode::TOO_MANY_REQUESTS, RATE, "rate_limit_exceeded", Micros::from_secs(1))
            }
            Self::Draining => {
                later(StatusCode::SERVICE_UNAVAILABLE, SERVER, "draining", Micros::from_secs(1))
            }
            Self::StreamLost { .. } => plain(StatusCode::BAD_GATEWAY, SERVER, "stream_lost"),
            Self::Expired => plain(StatusCode::GATEWAY_TIMEOUT, SERVER, "deadline_exceeded"),
            Self::SlowReader { .. } => plain(StatusCode::REQUEST_TIMEOUT, INVALID, "slow_reader"),
            Self::Store { .. } => plain(StatusCode::SERVICE_UNAVAILABLE, SERVER, "store_unavailable"),
            Self::Internal(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, SERVER, "internal_error"),
        }
    }

    fn shown_refusal(refusal: &Refusal) -> Shown {
        let (status, kind, code) = match refusal {
            Refusal::QueueFull { .. } => (StatusCode::TOO_MANY_REQUESTS, RATE, "queue_full"),
            Refusal::PredictedLate { .. } => (StatusCode::TOO_MANY_REQUESTS, RATE, "predicted_late"),
            Refusal::Expired { .. } => (StatusCode::TOO_MANY_REQUESTS, RATE, "queue_expired"),
            Refusal::NoServingPath | Refusal::Unplaced { .. } => {
                (StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_serving_path")
            }
            Refusal::NoOwnMachine => (StatusCode::SERVICE_UNAVAILABLE, SERVER, "no_own_machine"),
            Refusal::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, INVALID, "too_long_to_serve"),
            Refusal::AttemptsFailed { .. } => (StatusCode::BAD_GATEWAY, SERVER, "attempts_failed"),
        };
        Shown {
            status,
            kind,
            code,
            param: None,
            retry_after: refusal.retry_after(),
            uptime_neutral: refusal.time_cures(),
        }
    }

    /// Its HTTP status.
    pub(crate) fn status(&self) -> StatusCode {
        self.shown().status
    }

    /// As OpenAI's clients read it.
    pub(crate) fn body(&self) -> ErrorBody {
        let shown = self.shown();
        ErrorBody {
            error: ErrorDetail {
                message: self.to_string(),
                kind: shown.kind.to_owned(),
                param: shown.param,
                code: Some(shown.code.to_owned()),
                uptime_neutral: shown.uptime_neutral,
            },
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let shown = self.shown();
        let mut response = (shown.status, axum::Json(self.body())).into_response();
        response.extensions_mut().insert(ProblemCode(shown.code));
        response.extensions_mut().insert(ProblemText(self.to_string()));
        response.extensions_mut().insert(self);
        let headers = response.headers_mut();
        if let Some(after) = shown.retry_after {
            // Whole seconds, rounded up: clients that come earlier are refused again.
            let seconds = after.0.div_ceil(1_000_000).clamp(1, 3600);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            // The official OpenAI clients read this one first: whole seconds would bring many back at one moment.
            headers.insert("retry-after-ms", HeaderValue::from(after.0.div_ceil(1000)));
        }
        if shown.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"phalanx\""));
        }
        response
    }
}
