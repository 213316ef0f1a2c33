//! The pool that a call's model has; one that may be seconds away is waited for.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base::ModelName;
use fleet::Refusal;

use crate::api::call::Call;
use crate::core::Core;
use crate::pools::{KitOf, Served};
use crate::problem::Problem;
use crate::segments::Segment;

/// The pool of `model`, if there is one.
pub(in crate::api) fn served(core: &Core, model: &str) -> Result<Arc<Served>, Problem> {
    let name = ModelName::new(model);
    core.pools.get(&name).ok_or_else(|| {
        let shown = model.chars().take(100).collect();
        if core.deployments.turned_away(&name) {
            Problem::Deploying { model: shown }
        } else if core.was_served(model) {
            Problem::NotBack { model: shown }
        } else {
            Problem::Model { model: shown }
        }
    })
}

/// What a model's prompts are rendered with.
pub(in crate::api) fn kit_of(served: &Served) -> Result<KitOf, Problem> {
    served.kit().ok_or(Problem::Refused(Refusal::NoServingPath))
}

/// How long a model is waited for that may be seconds away. Nothing can be told to the caller in this time: not even the
/// length of its prompt is known.
const AWAITED: Duration = Duration::from_secs(30);

/// The pool of the call's model, and what its prompts are rendered with. A model that a deployment wants, or that was served
/// before this start, is waited for, within the call's time; what does not come is refused as it would have been at once.
pub(in crate::api) async fn ready(
    core: &Core,
    call: &mut Call,
    model: &str,
) -> Result<(Arc<Served>, KitOf), Problem> {
    let start = Instant::now();
    let until = call.deadline.map(|at| core.clock.instant(at).into_std());
    let until = until.map_or(start + AWAITED, |at| at.min(start + AWAITED));
    loop {
        let mut news = pin!(core.pools.news());
        // From here on nothing that is told is missed.
        news.as_mut().enable();
        let found = served(core, model).and_then(|served| kit_of(&served).map(|of| (served, of)));
        let problem = match found {
            Err(problem) if comes(core, model, &problem) => problem,
            found => {
                call.timings.since(Segment::Queue, start);
                return found;
            }
        };
        tokio::select! {
            () = news => {}
            () = tokio::time::sleep_until(until.into()) => return Err(problem),
            () = core.draining.cancelled() => return Err(problem),
        }
    }
}

/// Whether what is missing may come by itself.
fn comes(core: &Core, model: &str, problem: &Problem) -> bool {
    match problem {
        Problem::Deploying { .. } | Problem::NotBack { .. } => true,
        Problem::Refused(Refusal::NoServingPath) => {
            core.pools.is_wanted(&ModelName::new(model)) || core.was_served(model)
        }
        _ => false,
    }
}
