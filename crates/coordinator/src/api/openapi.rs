//! `GET /openapi.json`: every call that there is, for people and for programs.

use std::sync::OnceLock;

use axum::Json;
use serde_json::{Value, json};

/// The document, but for its version. A test holds it to the router.
const DOCUMENT: &str = include_str!("openapi.json");

pub(super) async fn show() -> Json<&'static Value> {
    static READ: OnceLock<Value> = OnceLock::new();
    Json(READ.get_or_init(|| {
        let mut document: Value = serde_json::from_str(DOCUMENT).expect("the document is checked by a test");
        document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
        document
    }))
}
