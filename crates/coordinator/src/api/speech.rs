//! Which API a call speaks, and a problem in its words.

use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use base::RequestId;
use serde_json::Value;
use wire::{anthropic, ollama};

use crate::problem::Problem;

const ANTHROPIC_VERSION: &str = "anthropic-version";

/// An API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    OpenAi,
    Anthropic,
    Ollama,
}

/// What of `/api` is Ollama's; the rest is our own.
const OF_OLLAMA: [&str; 15] = [
    "/api/chat",
    "/api/generate",
    "/api/tags",
    "/api/show",
    "/api/ps",
    "/api/version",
    "/api/embed",
    "/api/embeddings",
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs",
    "/api/me",
];

impl Speech {
    /// Of a call.
    pub(super) fn of(uri: &Uri, headers: &HeaderMap) -> Self {
        let path = uri.path().trim_end_matches('/');
        if path == "/v1/messages"
            || path.starts_with("/v1/messages/")
            || headers.contains_key(ANTHROPIC_VERSION)
        {
            Self::Anthropic
        } else if OF_OLLAMA.contains(&path) || path.starts_with("/api/blobs/") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// A problem as this API's clients read it; nothing where it is said like that already.
    pub(super) fn body(self, problem: &Problem, id: Option<RequestId>) -> Option<Value> {
        let value = match self {
            Self::OpenAi => return None,
            Self::Anthropic => serde_json::to_value(anthropic_error(problem, id)),
            Self::Ollama => serde_json::to_value(ollama::response::ErrorBody { error: problem.to_string() }),
        };
        value.ok()
    }

    /// An answer that failed, in this API's words.
    pub(super) fn put(self, response: Response, id: RequestId) -> Response {
        let mut response = response;
        let name = HeaderValue::from_str(&id.to_string()).expect("identities are ASCII");
        if self == Self::Anthropic {
            response.headers_mut().insert(HeaderName::from_static("request-id"), name);
        }
        let Some(body) = response.extensions().get::<Problem>().and_then(|p| self.body(p, Some(id))) else {
            return response;
        };
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(axum::http::header::CONTENT_LENGTH);
        let body: Body = Json(body).into_response().into_body();
        Response::from_parts(parts, body)
    }
}

/// In Anthropic's shape.
pub(super) fn anthropic_error(problem: &Problem, id: Option<RequestId>) -> anthropic::response::ErrorBody {
    let kind = anthropic::response::error_kind(problem.status().as_u16());
    anthropic::response::ErrorBody {
        kind: "error",
        error: anthropic::response::ErrorDetail { kind, message: problem.to_string() },
        request_id: id.map(|id| id.to_string()),
    }
}
