//! What goes when room is needed: of what may, the least recently used, and no more than is enough; or a refusal with
//! figures. Pure.

use std::time::Duration;

/// Left free on the disk beside what is fetched.
pub(crate) const DISK_SPARE: u64 = 256 << 20;

/// One model, or one that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) name: String,
    /// What it takes; where it is being fetched, what it will.
    pub(super) bytes: u64,
    /// Since 1970.
    pub(super) last_used: Duration,
    /// Whether Phalanx fetched it: only that counts against the budget, and only that may go.
    pub(super) fetched: bool,
    /// Why it may not go.
    pub(super) kept: Option<String>,
}

/// What there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// What all that was fetched may take together. Without one nothing goes by itself.
    pub(super) budget: Option<u64>,
    /// Free on the disk, less what others that are being fetched will still write.
    pub(super) free: u64,
}

/// What is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// What it takes once it is whole.
    pub(super) whole: u64,
    /// Of this, what is still to be written.
    pub(super) to_write: u64,
}

/// What may go is not enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Short {
    /// To be freed.
    pub(super) missing: u64,
    /// What may go takes so much together.
    pub(super) may_go: u64,
    /// What was fetched takes so much together.
    pub(super) taken: u64,
    /// Whether it is the budget that is exceeded by more.
    pub(super) by_budget: bool,
    /// What may not go, and why.
    pub(super) kept: Vec<(String, u64, String)>,
}

/// Which of `models` go, by their places in the list, the least recently used first.
pub(super) fn choose(models: &[Model], room: Room, need: Need) -> Result<Vec<usize>, Short> {
    let ours = || models.iter().filter(|model| model.fetched);
    let sum = |bytes: u64, model: &Model| bytes.saturating_add(model.bytes);
    let taken = ours().fold(0, sum);
    let over = room.budget.map_or(0, |budget| taken.saturating_add(need.whole).saturating_sub(budget));
    // What is here already is not held up by a disk that is full.
    let spare = if need.to_write == 0 { 0 } else { DISK_SPARE };
    let lacking = need.to_write.saturating_add(spare).saturating_sub(room.free);
    let missing = over.max(lacking);
    let may_go = |model: &&Model| model.kept.is_none() && room.budget.is_some();
    let mut order: Vec<usize> = (0..models.len()).filter(|&at| models[at].fetched).collect();
    order.retain(|&at| may_go(&&models[at]) && models[at].bytes > 0);
    order.sort_by_key(|&at| (models[at].last_used, &models[at].name));
    let (mut going, mut freed) = (Vec::new(), 0u64);
    for at in order {
        if freed >= missing {
            break;
        }
        freed = freed.saturating_add(models[at].bytes);
        going.push(at);
    }
    if freed < missing {
        let kept = ours().filter_map(|model| Some((model.name.clone(), model.bytes, model.kept.clone()?)));
        let may_go = ours().filter(may_go).fold(0, sum);
        return Err(Short { missing, may_go, taken, by_budget: over >= lacking, kept: kept.collect() });
    }
    // A small old one need not go where a large one that is less old must: the most recent are looked at first.
    for place in (0..going.len()).rev() {
        let bytes = models[going[place]].bytes;
        if freed - bytes >= missing {
            freed -= bytes;
            going.remove(place);
        }
    }
    Ok(going)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str, bytes: u64, used_s: u64) -> Model {
        let last_used = Duration::from_secs(used_s);
        Model { name: name.to_owned(), bytes, last_used, fetched: true, kept: None }
    }

    const AMPLE: u64 = 1 << 50;

    fn names(models: &[Model], budget: u64, whole: u64) -> Result<Vec<&str>, Short> {
        let room = Room { budget: Some(budget), free: AMPLE };
        let going = choose(models, room, Need { whole, to_write: whole })?;
        Ok(going.into_iter().map(|at| models[at].name.as_str()).collect())
    }

    #[test]
    fn the_least_recently_used_goes_first_and_nothing_goes_needlessly() {
        let models = [model("b", 40, 2), model("a", 40, 1), model("c", 10, 3)];
        assert_eq!(names(&models, 100, 10), Ok(vec![]));
        assert_eq!(names(&models, 100, 11), Ok(vec!["a"]));
        assert_eq!(names(&models, 100, 60), Ok(vec!["a", "b"]));
        assert_eq!(names(&models, 100, 100), Ok(vec!["a", "b", "c"]));
        // The old small one would not be enough, and is not needed beside the large one.
        let models = [model("small", 1, 1), model("large", 90, 2)];
        assert_eq!(names(&models, 100, 60), Ok(vec!["large"]));
    }

    #[test]
    fn what_is_held_or_somebodys_own_stays_and_a_refusal_has_figures() {
        let mut models = [model("a", 40, 1), model("b", 40, 2), model("own", 500, 0)];
        models[0].kept = Some("held".to_owned());
        models[2].fetched = false;
        assert_eq!(names(&models, 100, 60), Ok(vec!["b"]));
        let short = names(&models, 100, 61).unwrap_err();
        assert_eq!((short.missing, short.may_go, short.taken, short.by_budget), (41, 40, 80, true));
        assert_eq!(short.kept, [("a".to_owned(), 40, "held".to_owned())]);
    }

    #[test]
    fn a_full_disk_counts_as_a_budget_does_and_without_a_budget_nothing_goes() {
        let models = [model("a", 40, 1), model("b", 40, 2)];
        let need = Need { whole: 30, to_write: 30 };
        let full = |budget| choose(&models, Room { budget, free: DISK_SPARE }, need);
        assert_eq!(full(Some(1000)), Ok(vec![0]));
        let short = full(None).unwrap_err();
        assert_eq!((short.missing, short.may_go, short.by_budget), (30, 0, false));
        let here = Need { whole: 30, to_write: 0 };
        assert_eq!(choose(&models, Room { budget: None, free: 0 }, here), Ok(vec![]));
    }

    #[test]
    fn any_stock_is_brought_to_its_budget_by_the_least_recently_used_or_refused() {
        let mut state = 7u64;
        let mut below = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % n
        };
        let (mut chosen, mut refused) = (0, 0);
        for round in 0..20_000 {
            let count = below(9);
            let models: Vec<Model> = (0..count)
                .map(|at| Model {
                    fetched: below(5) > 0,
                    kept: (below(4) == 0).then(|| "held".to_owned()),
                    ..model(&format!("m{at}"), below(50), below(6))
                })
                .collect();
            let budget = (below(8) > 0).then(|| below(200));
            let room = Room { budget, free: DISK_SPARE + below(100) };
            let whole = below(120);
            let need = Need { whole, to_write: whole - below(whole + 1) };
            let is_candidate = |m: &&Model| m.fetched && m.kept.is_none() && budget.is_some();
            let taken: u64 = models.iter().filter(|m| m.fetched).map(|m| m.bytes).sum();
            let fits = |freed: u64| {
                budget.is_none_or(|budget| taken - freed + whole <= budget)
                    && (need.to_write == 0 || need.to_write + DISK_SPARE <= room.free + freed)
            };
            match choose(&models, room, need) {
                Ok(going) => {
                    chosen += usize::from(!going.is_empty());
                    assert!(
                        going.iter().all(|&at| is_candidate(&&models[at])),
                        "{round}: {models:?} {going:?}"
                    );
                    let freed: u64 = going.iter().map(|&at| models[at].bytes).sum();
                    assert!(fits(freed), "{round}: {models:?} {going:?}");
                    for &at in &going {
                        assert!(!fits(freed - models[at].bytes), "{round}: {at} need not go: {models:?}");
                    }
                    // Whatever stays and could have gone in the place of the last one that goes is newer than it, or
                    // would have spared nothing.
                    if let Some(&last) = going.last() {
                        let key = |at: usize| (models[at].last_used, &models[at].name);
                        let older = (0..models.len())
                            .filter(|&at| is_candidate(&&models[at]) && key(at) < key(last))
                            .map(|at| models[at].bytes);
                        assert!(!fits(older.sum()), "{round}: older ones would do: {models:?} {going:?}");
                    }
                }
                Err(short) => {
                    refused += 1;
                    let all: u64 = models.iter().filter(is_candidate).map(|m| m.bytes).sum();
                    assert!(!fits(all), "{round}: {models:?} would do");
                    assert_eq!((short.may_go, short.taken), (all, taken));
                    assert!(short.missing > all);
                }
            }
        }
        assert!(chosen > 1000 && refused > 1000, "{chosen} {refused}");
    }
}
