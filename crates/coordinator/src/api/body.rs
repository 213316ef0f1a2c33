//! Reading a body: capped before it is read and while it is, and within a time.

use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::header;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use crate::core::{Core, span};
use crate::problem::Problem;

/// How long, and how much of, a refused body is taken in and thrown away, so that a client which writes first and
/// reads later finds its answer instead of a broken connection.
const DISCARD_FOR: std::time::Duration = std::time::Duration::from_secs(2);
const DISCARD_BYTES_MAX: usize = 64 << 20;

/// The whole body.
pub(super) async fn read(core: &Core, request: Request) -> Result<Bytes, Problem> {
    let max = core.config.http.body_bytes_max;
    let most = usize::try_from(max.0).unwrap_or(usize::MAX);
    let said = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<u64>().ok());
    let coded = request.headers().get(header::CONTENT_ENCODING).is_some_and(|coding| coding != "identity");
    let mut body = request.into_body();
    if coded {
        discard(core, body);
        return Err(Problem::BodyCoded);
    }
    if said.is_some_and(|said| said > max.0) {
        discard(core, body);
        return Err(Problem::BodyTooLarge { max });
    }
    let within = core.config.http.body_us;
    let expected = said.map_or(0, |said| usize::try_from(said).unwrap_or(0));
    let read = async {
        let mut whole = BytesMut::with_capacity(expected.min(64 << 10));
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::BodyBroken)?;
            let Ok(data) = frame.into_data() else { continue };
            if whole.len() + data.len() > most {
                return Err(Problem::BodyTooLarge { max });
            }
            whole.extend_from_slice(&data);
        }
        Ok(whole.freeze())
    };
    match tokio::time::timeout(span(within), read).await {
        Ok(Err(problem @ Problem::BodyTooLarge { .. })) => {
            discard(core, body);
            Err(problem)
        }
        Ok(read) => read,
        Err(_) => Err(Problem::BodyLate(within)),
    }
}

/// Takes in and throws away, within its bounds, what a refused call still sends.
pub(super) fn discard(core: &Core, mut body: Body) {
    if body.is_end_stream() {
        return;
    }
    core.tasks.spawn(async move {
        let rest = async {
            let mut taken = 0;
            while let Some(Ok(frame)) = body.frame().await {
                taken += frame.data_ref().map_or(0, Bytes::len);
                if taken > DISCARD_BYTES_MAX {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(DISCARD_FOR, rest).await;
    });
}
