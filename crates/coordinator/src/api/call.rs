//! A call's head: its key, its place, what its headers ask for; and its body, read and parsed.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::Request;
use axum::http::HeaderMap;
use base::{Micros, RequestId};
use bytes::Bytes;
use fleet::Owners;
use store::KeyInfo;
use tokio::sync::OwnedSemaphorePermit;
use wire::RequestError;
use wire::admin::OwnMachines;
use wire::trace::TraceContext;

use crate::core::Core;
use crate::problem::Problem;
use crate::segments::{Segment, Timings};
use crate::tracing_of::Tracing;

/// Bodies up to here are parsed where they are (a few tens of microseconds); longer ones away from the threads that
/// serve connections.
const PARSED_HERE_BYTES_MAX: usize = 32 << 10;

const DEADLINE: &str = "x-phalanx-deadline-ms";

/// `off`: an answer that loses its machine after the first token ends with an error instead of going on elsewhere.
const FAILOVER: &str = "x-phalanx-failover";

/// `on`: the caller may come back to this answer. An answer's id: it comes back, with the same body, and with the header
/// `last-event-id` where it has some of the answer already.
pub(super) const RESUME: &str = "x-phalanx-resume";

/// A retry with the same one, and the same body, gets the first one's answer and is not charged again.
const IDEMPOTENCY: &str = "idempotency-key";

/// `prefer`: the machines that the caller's account lends are tried first. `only`: no others. `any`: what the key says is set
/// aside.
const OWNER: &str = "x-phalanx-owner";

pub(super) const LAST_EVENT: &str = "last-event-id";

/// What becomes of an answer whose caller goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resume {
    /// It ends.
    Off,
    /// Its caller may come back.
    On,
    /// Its caller is back, and has what was said up to this mark (see [`super::answer::Answering::mark`]).
    Back { from: u64 },
}

/// What a call said beside its body.
pub(super) struct Call {
    pub(super) request: RequestId,
    pub(super) api: &'static str,
    pub(super) key: KeyInfo,
    pub(super) deadline: Option<Micros>,
    pub(super) failover: bool,
    pub(super) owners: Owners,
    pub(super) resume: Resume,
    /// The caller's name for this request, and the hash of its body: a retry is told by them.
    pub(super) idempotency: Option<(String, [u8; 32])>,
    pub(super) trace: Option<Tracing>,
    pub(super) timings: Timings,
    pub(super) arrived: Instant,
    pub(super) place: Arc<OwnedSemaphorePermit>,
}

impl Call {
    /// Lets a call in, and reads its body.
    pub(super) async fn admit(
        core: &Arc<Core>,
        id: RequestId,
        api: &'static str,
        request: Request,
    ) -> Result<(Self, Bytes), Problem> {
        let caller = super::auth::Caller::of(core, &request);
        match Self::admit_head(core, id, (api, caller), request.headers()).await {
            Ok(mut call) => {
                let body = super::body::read(core, request).await?;
                if let Some((_, hash)) = &mut call.idempotency {
                    *hash = trust::sha256(&body);
                }
                Ok((call, body))
            }
            Err(problem) => {
                super::body::discard(core, request.into_body());
                Err(problem)
            }
        }
    }

    /// By its head alone: its key, and a place among the requests that may be here.
    async fn admit_head(
        core: &Arc<Core>,
        request: RequestId,
        (api, caller): (&'static str, super::auth::Caller),
        headers: &HeaderMap,
    ) -> Result<Self, Problem> {
        let arrived = Instant::now();
        let now = core.clock.now();
        let key = super::auth::asker(core, caller).await?;
        if core.draining.is_cancelled() {
            return Err(Problem::Draining);
        }
        let deadline = match headers.get(DEADLINE) {
            None => None,
            Some(value) => {
                let ms = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
                let detail = "expected a number of milliseconds up to 86400000; 0 is off";
                let ms =
                    ms.filter(|ms| *ms <= 86_400_000).ok_or(Problem::Header { name: DEADLINE, detail })?;
                (ms > 0).then(|| now + Micros::from_millis(ms))
            }
        };
        let failover = match headers.get(FAILOVER).map(|value| value.as_bytes()) {
            None | Some(b"on") => true,
            Some(b"off") => false,
            Some(_) => return Err(Problem::Header { name: FAILOVER, detail: "expected on or off" }),
        };
        let owners = owners(&key, headers)?;
        let (request, resume) = resume(request, headers)?;
        let place = Arc::clone(&core.places).try_acquire_owned().map_err(|_| {
            let max = core.config.requests.running_max;
            Problem::Busy { running: max - core.places.available_permits().min(max), max }
        })?;
        let (idempotency, timings) = (idempotency(headers)?, Timings::default());
        let trace = core.tracing_of(request, headers);
        Ok(Self {
            request,
            api,
            key,
            deadline,
            failover,
            owners,
            resume,
            idempotency,
            trace,
            timings,
            arrived,
            place: Arc::new(place),
        })
    }

    /// The same call's place for its `index`-th choice or prompt.
    pub(super) fn another(&self, core: &Arc<Core>, index: u64) -> Result<Self, Problem> {
        let place = Arc::clone(&core.places).try_acquire_owned().map_err(|_| {
            let max = core.config.requests.running_max;
            Problem::Busy { running: max, max }
        })?;
        Ok(Self {
            request: beside(self.request, index),
            api: self.api,
            key: self.key.clone(),
            deadline: self.deadline,
            failover: self.failover,
            owners: self.owners,
            resume: Resume::Off,
            idempotency: None,
            trace: self.trace_beside(core),
            timings: self.timings.clone(),
            arrived: self.arrived,
            place: Arc::new(place),
        })
    }

    /// Where another of the call's requests stands in the caller's trace.
    pub(super) fn trace_beside(&self, core: &Core) -> Option<Tracing> {
        self.trace.clone().map(|trace| Tracing {
            at: TraceContext { span: if trace.records { core.span_id() } else { trace.at.span }, ..trace.at },
            ..trace
        })
    }

    /// Parses the call's body.
    pub(super) async fn parse<T: Send + 'static>(
        &mut self,
        body: Bytes,
        parse: fn(&[u8]) -> Result<T, RequestError>,
    ) -> Result<T, Problem> {
        let start = Instant::now();
        let parsed = parsed(body, parse).await;
        self.timings.since(Segment::Parse, start);
        parsed
    }
}

/// The request of a call's `index`-th choice, prompt or text, counted from 0. Whoever has the call's identity has those of
/// all: each is settled by itself, and has a receipt of its own. They are drawn from 128 bits, so that those behind one
/// another are as good as random.
pub(super) fn beside(first: RequestId, index: u64) -> RequestId {
    RequestId(first.0.wrapping_add(index.into()))
}

/// Whose machines the call's requests go to: as it says, else as its key does.
fn owners(key: &KeyInfo, headers: &HeaderMap) -> Result<Owners, Problem> {
    let own = match headers.get(OWNER).map(|value| value.as_bytes()) {
        None => key.terms.owner,
        Some(b"any") => OwnMachines::Any,
        Some(b"prefer") => OwnMachines::Prefer,
        Some(b"only") => OwnMachines::Only,
        Some(_) => return Err(Problem::Header { name: OWNER, detail: "expected any, prefer or only" }),
    };
    Ok(match own {
        OwnMachines::Any => Owners::Any,
        OwnMachines::Prefer => Owners::Prefer(key.account),
        OwnMachines::Only => Owners::Only(key.account),
    })
}

/// Whether the call's answer may be come back to, and which one it is then.
fn resume(fresh: RequestId, headers: &HeaderMap) -> Result<(RequestId, Resume), Problem> {
    let asked = match headers.get(RESUME).map(|value| value.as_bytes()) {
        None | Some(b"off") => return Ok((fresh, Resume::Off)),
        Some(b"on") => return Ok((fresh, Resume::On)),
        Some(id) => id,
    };
    let id = std::str::from_utf8(asked).ok().and_then(answer_id);
    let detail = "expected on, off or the id of an answer, such as chatcmpl- and 32 hexadecimal digits";
    let id = id.ok_or(Problem::Header { name: RESUME, detail })?;
    Ok((id, Resume::Back { from: last_event(headers)?.unwrap_or(0) }))
}

/// The last event that a caller who comes back has.
pub(super) fn last_event(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT) else { return Ok(None) };
    let from = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let detail = "expected the id of the last event that came, a number";
    from.ok_or(Problem::Header { name: LAST_EVENT, detail }).map(Some)
}

pub(super) fn idempotency(headers: &HeaderMap) -> Result<Option<(String, [u8; 32])>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY) else { return Ok(None) };
    let name = value.to_str().ok().filter(|name| !name.is_empty() && name.len() <= 255);
    let detail = "expected 1 to 255 characters of ASCII";
    let name = name.ok_or(Problem::Header { name: IDEMPOTENCY, detail })?;
    Ok(Some((name.to_owned(), [0; 32])))
}

/// The request behind an answer's id, whichever API gave it, or behind its `x-request-id`.
pub(super) fn answer_id(text: &str) -> Option<RequestId> {
    let digits = text.rsplit(['-', '_']).next()?;
    let whole = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    whole.then(|| u128::from_str_radix(digits, 16).ok()).flatten().map(RequestId)
}

/// Parses a body.
pub(super) async fn parsed<T: Send + 'static>(
    body: Bytes,
    parse: fn(&[u8]) -> Result<T, RequestError>,
) -> Result<T, Problem> {
    if body.len() <= PARSED_HERE_BYTES_MAX {
        return Ok(parse(&body)?);
    }
    match tokio::task::spawn_blocking(move || parse(&body)).await {
        Ok(parsed) => Ok(parsed?),
        Err(_) => Err(Problem::Internal("parsing the body failed")),
    }
}
