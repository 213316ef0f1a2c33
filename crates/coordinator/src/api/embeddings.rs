//! `POST /v1/embeddings`, and Ollama's `/api/embed` and `/api/embeddings`: texts become vectors, each by a request of its own.

mod works;

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base::RequestId;
use serde::Serialize;
use wire::RequestError;
use wire::ollama::embed::{Embeddings, OneEmbedding, parse_embed, parse_embeddings};
use wire::openai::embedding::{Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, Vector};
use wire::openai::parse_embedding;

use super::call::Call;
use super::ollama::name_of;
use super::stream::{IGNORED, SERVER_TIMING};
use crate::core::Core;
use crate::problem::Problem;
use crate::segments::Timings;

/// The vectors of a call's texts, in order.
struct Embedded {
    model: String,
    vectors: Vec<Vec<f32>>,
    prompt_tokens: u64,
    /// Of the last text.
    timings: Timings,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Embedded {
    /// An answer with this body.
    fn answer(headers: Vec<(HeaderName, HeaderValue)>, timings: &Timings, body: &impl Serialize) -> Response {
        let json = serde_json::to_vec(body).expect("vectors are finite numbers");
        let mut response = (StatusCode::OK, json).into_response();
        let put = response.headers_mut();
        put.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(value) = HeaderValue::from_str(&timings.server_timing()) {
            put.insert(SERVER_TIMING, value);
        }
        put.extend(headers);
        response
    }
}

/// OpenAI's call.
pub(super) async fn create(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "embeddings", request).await?;
    let asked = call.parse(body, parse_embedding).await?;
    let base64 = asked.base64;
    let got = embed(&core, call, asked).await?;
    let data = (0u32..).zip(got.vectors).map(|(index, numbers)| Embedding {
        object: "embedding",
        index,
        embedding: Vector::new(numbers, base64),
    });
    let usage = EmbeddingUsage { prompt_tokens: got.prompt_tokens, total_tokens: got.prompt_tokens };
    let list = EmbeddingList { object: "list", data: data.collect(), model: got.model, usage };
    Ok(Embedded::answer(got.headers, &got.timings, &list))
}

/// Ollama's call.
pub(super) async fn ollama(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "ollama_embed", request).await?;
    let mut asked = call.parse(body, parse_embed).await?;
    asked.model = name_of(&core, &asked.model);
    let arrived = call.arrived;
    let got = embed(&core, call, asked).await?;
    let body = Embeddings {
        model: got.model,
        embeddings: got.vectors,
        total_duration: u64::try_from(arrived.elapsed().as_nanos()).unwrap_or(u64::MAX),
        load_duration: 0,
        prompt_eval_count: got.prompt_tokens,
    };
    Ok(Embedded::answer(got.headers, &got.timings, &body))
}

/// Ollama's older call, for one text.
pub(super) async fn ollama_one(
    State(core): State<Arc<Core>>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, Problem> {
    let (mut call, body) = Call::admit(&core, id, "ollama_embeddings", request).await?;
    let mut asked = call.parse(body, parse_embeddings).await?;
    asked.model = name_of(&core, &asked.model);
    let mut got = embed(&core, call, asked).await?;
    let body = OneEmbedding { embedding: got.vectors.pop().unwrap_or_default() };
    Ok(Embedded::answer(got.headers, &got.timings, &body))
}

async fn embed(core: &Arc<Core>, call: Call, mut asked: EmbeddingRequest) -> Result<Embedded, Problem> {
    let (dimensions, ignored) = (asked.dimensions, std::mem::take(&mut asked.ignored));
    let embedding = works::prepare(core, call, asked).await?;
    let hidden = embedding.dimensions;
    if let Some(wanted) = dimensions.filter(|wanted| *wanted as usize > hidden) {
        let message = format!("'dimensions' is {wanted}, and embeddings of this model have {hidden} numbers");
        let param = Some("dimensions".to_owned());
        return Err(Problem::Request(RequestError { message, param, code: "invalid_value" }));
    }
    let mut embedded = embedding.serve(core).await?;
    if !ignored.is_empty()
        && let Ok(value) = HeaderValue::from_str(&ignored.join(", "))
    {
        embedded.headers.push((IGNORED, value));
    }
    if let Some(dimensions) = dimensions {
        embedded.vectors.iter_mut().for_each(|vector| shorten(vector, dimensions as usize));
    }
    Ok(embedded)
}

/// The first numbers alone, as a vector of length 1: what models are trained for that put most of the meaning there.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) {
    vector.truncate(dimensions);
    let length = vector.iter().map(|number| f64::from(*number).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|number| *number = (f64::from(*number) / length) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortened_vector_has_length_one() {
        let mut vector = vec![3.0, 4.0, 12.0];
        shorten(&mut vector, 2);
        assert_eq!(vector, [0.6, 0.8]);
        let mut nothing = vec![0.0, 0.0, 1.0];
        shorten(&mut nothing, 2);
        assert_eq!(nothing, [0.0, 0.0]);
    }
}
