//! `GET /v1/receipts/{request}`: what a request used, signed by its machines and by this coordinator. A call with several
//! answers (`n`, several prompts, several texts to embed) is a request for each: `?index=` says which.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, Uri};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use serde::Deserialize;
use store::Kept;
use wire::RequestError;
use wire::receipt::{Evidence, Receipt, ReceiptKey, VERSION};

use super::auth::{Caller, caller, is_reader};
use crate::core::Core;
use crate::problem::Problem;

/// The key that receipts are signed with. It is public: no key is asked for.
pub(super) async fn key(State(core): State<Arc<Core>>) -> Json<ReceiptKey> {
    let signing_key = BASE64.encode(core.receipt_keys().signing_key());
    Json(ReceiptKey { algorithm: "ed25519".to_owned(), signing_key })
}

/// Which of a call's answers.
#[derive(Deserialize)]
pub(super) struct Which {
    /// As the answer counts its choices, or its vectors.
    #[serde(default)]
    index: u32,
}

/// The receipt of one settled request, for who paid for it and for who reads what operators see.
pub(super) async fn show(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    uri: Uri,
    path: Result<Path<String>, PathRejection>,
    which: Result<Query<Which>, QueryRejection>,
) -> Result<Json<Receipt>, Problem> {
    let by = caller(&core, Caller::of_headers(&headers)).await?;
    let part = super::part(path, &uri)?;
    let missing =
        || Problem::Missing { what: "settled request of yours", id: part.chars().take(100).collect() };
    let Query(Which { index }) = which.map_err(|_| {
        let message = "'index' must be the number of one of the answer's choices, counted from 0".to_owned();
        let param = Some("index".to_owned());
        Problem::Request(RequestError { message, param, code: "invalid_value" })
    })?;
    let first = super::call::answer_id(&part).ok_or_else(missing)?;
    let request = super::call::beside(first, index.into());
    core.settled().await;
    let kept = core.store.settled(request).await.map_err(|error| super::accounts::failed(&error))?;
    let kept = kept.filter(|kept| kept.entry.account == by.account || is_reader(&by)).ok_or_else(missing)?;
    Ok(Json(signed(&core, kept)))
}

fn signed(core: &Core, Kept { entry, evidence }: Kept) -> Receipt {
    // Rows of before there were receipts, and requests that ended with their coordinator, have none.
    let evidence: Evidence = serde_json::from_str(&evidence).unwrap_or_default();
    let keys = core.receipt_keys();
    let mut receipt = Receipt {
        version: VERSION,
        sequence: entry.sequence,
        request: entry.request,
        account: entry.account,
        key: entry.key,
        model: entry.model,
        prompt_tokens: entry.prompt_tokens,
        generated_tokens: entry.generated_tokens,
        refunded_tokens: entry.refunded_tokens,
        price: evidence.price,
        charged_micros: entry.charged_micros,
        outcome: entry.outcome.as_str().to_owned(),
        reserved_unix_us: entry.reserved_unix_us,
        settled_unix_us: entry.settled_unix_us,
        served: evidence.served,
        signing_key: BASE64.encode(keys.signing_key()),
        signature: String::new(),
    };
    receipt.signature = BASE64.encode(keys.sign(&receipt.statement()));
    receipt
}
