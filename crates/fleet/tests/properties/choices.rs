//! What the choice among many instances costs over the best there is.

use base::{Micros, Rng, Tokens};
use fleet::{Effect, Input, Outcome, Policy, Pool};

use super::fixture::{Shape, enqueue, machine, model, offer};

#[test]
fn the_instance_that_is_chosen_among_many_costs_hardly_more_than_the_best() {
    // So few that searches end by themselves; and so many that they do not, of speeds, rooms and limits in every mixture.
    for (instances, every, most) in [(500, 1, 1.02), (6000, 37, 1.333)] {
        let worst = worst_choice(instances, every);
        assert!(worst < most, "{worst} times the best of {instances}");
    }
}

/// What the worst choice costs over the best by a scan, of each `every`th, in a fleet that is half taken.
fn worst_choice(instances: u64, every: u64) -> f64 {
    let mut rng = Rng::new(11);
    let mut pool = Pool::new(model(), Policy::default(), Rng::new(1));
    let mut effects = Vec::new();
    for of in 0..instances {
        let shape = Shape {
            slots: 1 + rng.below(8) as u32,
            kv: 4096 << rng.below(4),
            context: 2048 << rng.below(3),
            prefill: 50.0 * (1 + rng.below(100)) as f32,
            decode: 2.0 * (1 + rng.below(50)) as f32,
            ..Shape::default()
        };
        let up = Input::InstanceUp { machine: machine(of), owner: None, offer: offer(of, &shape) };
        pool.handle(Micros::ZERO, up, &mut effects);
    }
    let (mut running, mut worst) = (std::collections::VecDeque::new(), 1.0f64);
    for n in 0..8 * instances {
        let now = Micros::from_millis(n);
        let asked = enqueue(n, n % 7, 1 + rng.below(1500) as u32, 1 + rng.below(400) as u32);
        let verdicts = if n % every == 0 { pool.explain(now, &asked.ask) } else { Vec::new() };
        let best =
            verdicts.iter().filter_map(|v| v.verdict.ok()).map(|p| p.cost_s).fold(f64::INFINITY, f64::min);
        effects.clear();
        pool.handle(now, Input::Enqueue(asked), &mut effects);
        for effect in &effects {
            if let Effect::Dispatch { request, instance, predicted, .. } = effect {
                worst = worst.max(predicted.cost_s / best);
                running.push_back((*request, *instance));
            }
        }
        if running.len() as u64 > instances * 9 / 5 {
            let (request, instance) = running.pop_front().unwrap();
            let (outcome, generated) = (Outcome::Completed, Tokens(20));
            pool.handle(now, Input::AttemptEnded { request, instance, outcome, generated }, &mut effects);
        }
    }
    assert!(running.len() as u64 > instances * 8 / 5, "{} run", running.len());
    worst
}
