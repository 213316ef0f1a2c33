//! How `phalanx up` divides its models over its providers.

use anyhow::bail;
use engine::LoadedModel;
use engine::group::{GroupMode, Member};
use fleet::deployment::Division as Shape;

/// Ranks of the group that a fleet begins with where nothing is said: the fewest that make one.
const RANKS_FIRST: u32 = 2;

/// What was asked for, where it is a group.
#[derive(Debug)]
pub(super) struct Division {
    mode: String,
    ranks: u32,
    /// Nobody asked: a model that cannot be divided so is served undivided.
    by_default: bool,
}

impl Division {
    /// Reads `--mode` and `--ranks`; nothing where every provider computes alone. Where neither is said, the first two
    /// providers make a group, if there are two.
    pub(super) fn of(mode: Option<&str>, ranks: Option<u32>, providers: u32) -> anyhow::Result<Option<Self>> {
        let by_default = mode.is_none() && ranks.is_none();
        let (mode, ranks) = match (mode, ranks) {
            (None, None) if providers < RANKS_FIRST => return Ok(None),
            (None, None) => ("auto".to_owned(), RANKS_FIRST),
            (None, Some(1)) | (Some("single"), None | Some(1)) => return Ok(None),
            (Some("single"), Some(ranks)) => bail!("--mode single is one rank, and --ranks says {ranks}"),
            (Some(mode), Some(1)) => bail!("--mode {mode} takes at least two ranks, and --ranks says 1"),
            (mode, ranks) => (mode.unwrap_or("auto").to_owned(), ranks.unwrap_or(providers)),
        };
        if ranks > providers {
            bail!("--ranks {ranks} are more than --providers {providers}: each rank is a provider");
        }
        if ranks < 2 {
            bail!("--mode {mode} takes at least two ranks: start as many --providers");
        }
        Ok(Some(Self { mode, ranks, by_default }))
    }

    /// How many ranks compute together.
    pub(super) fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Whether nobody asked for it.
    pub(super) fn is_by_default(&self) -> bool {
        self.by_default
    }

    /// How a model is divided so: what a deployment says.
    ///
    /// # Errors
    /// It cannot be; why, and over how many ranks it could.
    pub(super) fn shape(&self, model: &LoadedModel) -> anyhow::Result<Shape> {
        let mode: GroupMode = self.mode.parse().map_err(anyhow::Error::msg)?;
        let members = vec![Member { speed: 1, memory: None }; self.ranks as usize];
        let map = model.divide(mode, &members)?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(match (count(map.stages()), count(map.ranks_of(0).len())) {
            (1, tensor) => Shape::Tensor(tensor),
            (pipeline, 1) => Shape::Pipeline(pipeline),
            (pipeline, tensor) => Shape::Both { pipeline, tensor },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_done_or_refused() {
        let of = |mode, ranks| Division::of(mode, ranks, 2).map(|d| d.map(|d| (d.mode, d.ranks)));
        assert_eq!(of(None, None).unwrap(), Some(("auto".into(), 2)));
        assert_eq!(of(None, Some(1)).unwrap(), None);
        assert_eq!(of(Some("single"), None).unwrap(), None);
        assert_eq!(of(None, Some(2)).unwrap(), Some(("auto".into(), 2)));
        assert_eq!(of(Some("tensor"), None).unwrap(), Some(("tensor".into(), 2)));
        assert!(of(Some("single"), Some(2)).unwrap_err().to_string().contains("one rank"));
        assert!(of(Some("tensor"), Some(1)).unwrap_err().to_string().contains("at least two ranks"));
        assert!(of(None, Some(3)).unwrap_err().to_string().contains("--providers 2"));
        assert!(Division::of(Some("pipeline"), None, 1).is_err());
        assert!(Division::of(None, None, 1).unwrap().is_none(), "one provider is no group");
        let more = Division::of(None, None, 5).unwrap().unwrap();
        assert_eq!((more.ranks, more.by_default), (2, true));
    }

    #[test]
    fn a_division_is_said_in_the_words_of_deployments() {
        let bundled = engine::look(&engine::ModelSource::Bundled).expect("it is built in");
        let shape = |mode: &str, ranks| {
            Division::of(Some(mode), Some(ranks), ranks).unwrap().unwrap().shape(&bundled)
        };
        assert_eq!(shape("auto", 2).unwrap(), Shape::Tensor(2));
        assert_eq!(shape("pipeline", 3).unwrap(), Shape::Pipeline(3));
        assert_eq!(shape("2x2", 4).unwrap(), Shape::Both { pipeline: 2, tensor: 2 });
        assert!(shape("2x2", 3).is_err());
        assert!(shape("sideways", 2).unwrap_err().to_string().contains("no mode"));
    }
}
