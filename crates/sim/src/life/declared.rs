//! What operators of a life declare: specs that change, are deleted, and come back.

use base::Rng;
use fleet::Input;
use fleet::deployment::{Division, Replicas, Spec};
use fleet::reconcile::Input as News;

use super::{Happening, MODELS, Sim};

/// The specs that a life of so many machines begins with, by model.
pub(super) fn specs(machines: u64, rng: &mut Rng) -> Vec<Spec> {
    let spec = |(at, (name, _)): (usize, &(&str, f64))| {
        let mut spec = Spec::new(*name, *name);
        spec.max_batch = 4;
        spec.replicas = Replicas::Fixed(1 + rng.below(machines.div_ceil(3)) as u32);
        if at == 1 && rng.below(2) == 0 {
            spec.shape = Division::Pipeline(2);
            spec.replicas = Replicas::Fixed(1);
        }
        spec
    };
    MODELS.iter().enumerate().map(spec).collect()
}

impl Sim {
    /// Says, again, that a model should run.
    pub(super) fn declare(&mut self, model: usize) {
        let spec = self.specs[model].clone();
        self.declared[model] = true;
        self.news(News::Apply(Box::new(spec)));
        self.pool(model, Input::Wanted { wanted: true });
    }

    /// Another number of instances, another shape, or another batch: in whatever phase its instances are.
    pub(super) fn redeclare(&mut self, model: usize) {
        let most = (self.providers.len() as u64).div_ceil(3);
        let (kind, replicas) = (self.rng.below(3), 1 + self.rng.below(most) as u32);
        let spec = &mut self.specs[model];
        match kind {
            0 => spec.replicas = Replicas::Fixed(replicas),
            1 => spec.max_batch = 2 + spec.max_batch % 4,
            _ => {
                spec.shape = match spec.shape {
                    Division::Pipeline(_) => Division::Single,
                    _ => Division::Pipeline(2),
                };
                spec.replicas = Replicas::Fixed(1);
            }
        }
        self.say(|| format!("{} is to be something else", MODELS[model].0));
        self.declare(model);
    }

    /// Deleted, in whatever phase it is, and declared again after a while.
    pub(super) fn delete(&mut self, model: usize, until: base::Micros) {
        self.say(|| format!("{} is deleted ({:.0} s)", MODELS[model].0, until.as_secs_f64()));
        self.declared[model] = false;
        self.news(News::Delete(MODELS[model].0.to_owned()));
        self.pool(model, Input::Wanted { wanted: false });
        self.after(until, Happening::Declare(model));
    }
}
