//! What instances cost at chosen sizes of requests, and from these, what they cost at any size at least.
//!
//! An instance's cost is a plane over (prompt, answer), with a bend above it where its KV cache fills, so the least of
//! many planes is concave: between the corners of a triangle it lies nowhere below what is interpolated from them. The least
//! at the corners, and the least bend, therefore tell a bound for every request between them, exact for one instance and
//! close for many, without a scan of them.

use crate::cost::{Bend, Plane, answer_but_first};
use crate::eligibility::Ask;

/// Prompts at which costs are noted, in tokens: a factor of four apart. Longer ones count as the longest.
const PROMPTS: [f32; 7] = [0.0, 64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0];
/// Answers at which costs are noted, in tokens but the first. Longer ones count as the longest.
const ANSWERS: [f32; 5] = [0.0, 32.0, 128.0, 512.0, 2048.0];
const CORNERS: usize = PROMPTS.len() * ANSWERS.len();

/// The least cost of some instances at each corner, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Costs([f32; CORNERS]);

impl Costs {
    /// Of no instance.
    pub(super) const NONE: Self = Self([f32::INFINITY; CORNERS]);

    /// Of one instance.
    pub(super) fn of(plane: &Plane) -> Self {
        let at = |corner: usize| {
            let (prompt, answer) = (PROMPTS[corner / ANSWERS.len()], ANSWERS[corner % ANSWERS.len()]);
            plane.at_s(f64::from(prompt), f64::from(answer)) as f32
        };
        Self(std::array::from_fn(at))
    }

    pub(super) fn least(a: &Self, b: &Self) -> Self {
        // Not `f32::min`, which asks whether either is no number: none is.
        Self(std::array::from_fn(|at| if a.0[at] < b.0[at] { a.0[at] } else { b.0[at] }))
    }
}

/// Where a request stands between the corners.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    corners: [usize; 3],
    weights: [f32; 3],
    need: f64,
}

/// The interval of `steps` that `x` is in, and how far along.
fn between(steps: &[f32], x: f32) -> (usize, f32) {
    let x = x.clamp(steps[0], steps[steps.len() - 1]);
    let at = steps.partition_point(|step| *step <= x).clamp(1, steps.len() - 1) - 1;
    (at, (x - steps[at]) / (steps[at + 1] - steps[at]))
}

impl Sight {
    pub(super) fn of(ask: &Ask) -> Self {
        let (prompt, along) = between(&PROMPTS, ask.prompt_tokens.0 as f32);
        let (answer, across) = between(&ANSWERS, answer_but_first(ask) as f32);
        let corner = |prompt: usize, answer: usize| prompt * ANSWERS.len() + answer;
        let (near, far) = (corner(prompt, answer), corner(prompt + 1, answer + 1));
        let need = ask.kv_need() as f64;
        // Each rectangle is two triangles along its diagonal.
        if along >= across {
            let side = corner(prompt + 1, answer);
            Self { corners: [near, side, far], weights: [1.0 - along, along - across, across], need }
        } else {
            let side = corner(prompt, answer + 1);
            Self { corners: [near, side, far], weights: [1.0 - across, across - along, along], need }
        }
    }

    /// No more than what the request costs on any of those that `costs` and `bend` are of.
    pub(super) fn bound_s(&self, costs: &Costs, bend: Bend) -> f32 {
        let term = |n: usize| self.weights[n] * costs.0[self.corners[n]];
        term(0) + term(1) + term(2) + bend.above_s(self.need) as f32
    }
}

#[cfg(test)]
mod tests {
    use base::{RequestId, Rng, Tokens};

    use super::*;

    #[test]
    fn a_bound_is_exact_for_one_plane_and_never_above_the_least_of_many() {
        let mut rng = Rng::new(9);
        for _ in 0..2000 {
            let planes: Vec<[f64; 3]> = (0..1 + rng.below(6))
                .map(|_| [1e-2, 1e-5, 1e-3].map(|unit| unit * (1 + rng.below(1000)) as f64))
                .collect();
            let at = |plane: &[f64; 3], p: f32, a: f32| {
                (plane[0] + plane[1] * f64::from(p) + plane[2] * f64::from(a)) as f32
            };
            let costs = planes.iter().map(|plane| {
                Costs(std::array::from_fn(|c| {
                    at(plane, PROMPTS[c / ANSWERS.len()], ANSWERS[c % ANSWERS.len()])
                }))
            });
            let costs = costs.fold(Costs::NONE, |a, b| Costs::least(&a, &b));
            let longest = 1 << rng.below(17);
            let (prompt, answer) = (rng.below(longest) as u32, 1 + rng.below(2048) as u32);
            let ask = Ask::new(RequestId(1), Tokens(prompt), Tokens(answer));
            let best = planes
                .iter()
                .map(|p| at(p, prompt as f32, (answer - 1) as f32))
                .fold(f32::INFINITY, f32::min);
            let bound = Sight::of(&ask).bound_s(&costs, Bend { used: 0.0, room: 1e12 });
            assert!(bound <= best * 1.0001, "{bound} above {best}");
            assert!(planes.len() > 1 || bound >= best * 0.9999, "{bound} is not {best}");
        }
    }
}
