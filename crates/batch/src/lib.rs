//! Continuous batching: what one instance computes in its next step, and in which KV pages.
//!
//! What it is: a state machine over sequences (a prompt and its answer so far) and pages (fixed runs of token places
//! in the KV cache). The engine asks [`Batch::plan`] what to compute, computes it, draws tokens, and tells
//! [`Batch::commit`]; everything else (admission, chunked prefill beside decode, preemption, prefix reuse, deadlines,
//! the one terminal of each sequence) is decided here. What it is *not*: it knows no weights, logits, text or clock;
//! time is an argument. Start with [`Batch`]; `share` holds the fairness of prefill, `pages` the accounting and
//! `prefix` the reuse across requests.
//!
//! # The rules
//!
//! - **Order** is arrival. A sequence that was preempted keeps its place, so the oldest always gets on: it can take
//!   the pages of every other one, and alone it fits (which [`Batch::submit`] checks). Hence neither deadlock nor
//!   starvation.
//! - **A step** holds one token for every decoding sequence, then prefill chunks in what is left of the budget.
//! - **Admission is optimistic**: a sequence enters when the tokens it has *now* fit, and one spare page for each one
//!   already running. Answers that outgrow the cache preempt the youngest, which is computed again later; from
//!   then on that one enters only when its longest possible form fits, so that it is not thrown out again and again.
//! - **Guesses** ([`Guessing`]) fill a step that only decodes, as far as they have been right and pay: an answer gets on by
//!   several tokens then, and is the same.
//! - **A paused sequence** (its reader is slow) holds up nobody: it is skipped, and gives up place and pages when
//!   another needs them.
//! - **Pages are wiped** before anyone else's tokens are in them, a few in each step: [`Plan::wipe`] names them, and
//!   [`Batch::drain_wipes`] the rest where there is nothing to compute. The one exception is the reuse of a whole page by a sequence that has exactly the same tokens up to its end.

#![forbid(unsafe_code)]

mod batch;
mod guess;
mod limits;
mod pages;
mod plan;
mod prefix;
mod sequence;
mod share;
mod tokens;

pub use batch::{Batch, Load};
pub use guess::Guessing;
pub use limits::{Limits, LimitsError};
pub use plan::{Account, Cause, Draw, Drawn, Ended, Pace, Plan, Span};
pub use sequence::{Arrival, Refusal};
