//! What is served: a request with all that its way needs.

use std::sync::Arc;
use std::time::Instant;

use base::{Micros, RequestId};
use store::{KeyInfo, Name, Price};
use tokio::sync::{OwnedSemaphorePermit, watch};
use wire::job;

use crate::limits::Allowance;
use crate::pools::Served;
use crate::segments::Timings;
use crate::streams::Keep;
use crate::tracing_of::Tracing;

/// Whether a call's caller got what was computed for it, where one request alone does not know.
#[derive(Clone)]
pub(crate) struct Delivery(watch::Receiver<bool>);

impl Delivery {
    /// Told through the sender: true once all is there. Dropped before, nothing was delivered.
    pub(crate) fn new() -> (watch::Sender<bool>, Self) {
        let (tell, told) = watch::channel(false);
        (tell, Self(told))
    }

    /// Waits until it is known; bounded by the call, whose requests all have their bounds.
    pub(super) async fn known(mut self) -> bool {
        self.0.wait_for(|delivered| *delivered).await.is_ok()
    }
}

/// A request that is ready to be served. Not `Debug`: it holds a prompt.
pub(crate) struct Work {
    pub(crate) request: RequestId,
    /// Which API it came through, for metrics.
    pub(crate) api: &'static str,
    pub(crate) key: KeyInfo,
    pub(crate) served: Arc<Served>,
    /// How to generate.
    pub(crate) ask: job::Ask,
    pub(crate) prompt: Vec<u32>,
    /// Tokens that there are: none from beyond is believed.
    pub(crate) vocabulary: u32,
    /// How many numbers its vector has, where one is wanted, and no text.
    pub(crate) dimensions: Option<usize>,
    /// Where it stands in its caller's trace, or begins one.
    pub(crate) trace: Option<Tracing>,
    /// When its wait in the queue ends, where the caller said so.
    pub(crate) deadline: Option<Micros>,
    /// Whether an answer that loses its machine goes on elsewhere.
    pub(crate) failover: bool,
    /// Whose machines it may go to.
    pub(crate) owners: fleet::Owners,
    /// Whether its caller may come back to it; nothing where it ends with its connection.
    pub(crate) keep: Option<Keep>,
    /// Its caller's own name for it, to be kept with its settlement.
    pub(crate) named: Option<Name>,
    /// A request of that name was completed and charged before, by a coordinator that is no more: this one is free.
    pub(crate) paid: bool,
    /// What it costs.
    pub(crate) price: Price,
    /// What it took of its key.
    pub(crate) allowance: Option<Allowance>,
    /// Of a call whose caller gets all or nothing: whether it got all.
    pub(crate) delivery: Option<Delivery>,
    pub(crate) timings: Timings,
    pub(crate) arrived: Instant,
    /// Its place among the requests that may be here.
    pub(crate) _place: Arc<OwnedSemaphorePermit>,
}
