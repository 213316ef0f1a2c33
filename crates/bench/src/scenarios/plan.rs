//! The scenarios as data.

/// One scenario.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One for each provider: the name under which it serves the bundled model.
    pub(crate) providers: Vec<&'static str>,
    pub(crate) users: usize,
    pub(crate) requests: usize,
    pub(crate) concurrency: usize,
    pub(crate) stream: bool,
    /// Bytes of each prompt, about.
    pub(crate) prompt_bytes: usize,
    /// Tokens of each answer at most.
    pub(crate) max_tokens: u32,
}

const MODEL: &str = "phalanx-bundled";
const MODEL_A: &str = "phalanx-bundled-a";
const MODEL_B: &str = "phalanx-bundled-b";

/// An ordinary question with some talk before it.
const SHORT_PROMPT: usize = 240;

fn scenario(
    name: &'static str,
    providers: usize,
    users: usize,
    requests: usize,
    concurrency: usize,
) -> Scenario {
    Scenario {
        name,
        providers: vec![MODEL; providers],
        users,
        requests,
        concurrency,
        stream: true,
        prompt_bytes: SHORT_PROMPT,
        max_tokens: 48,
    }
}

/// The ten, in order.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut multi_model = scenario("7-provider-multi-model", 7, 5, 50, 10);
    multi_model.providers = vec![MODEL_A, MODEL_A, MODEL_A, MODEL_A, MODEL_B, MODEL_B, MODEL_B];
    vec![
        scenario("1-provider-streaming", 1, 1, 30, 5),
        Scenario { stream: false, ..scenario("1-provider-non-streaming", 1, 1, 20, 5) },
        multi_model,
        scenario("3-provider-high-concurrency", 3, 10, 60, 20),
        scenario("1-provider-queue-saturation", 1, 10, 40, 15),
        scenario("3-provider-20-users", 3, 20, 60, 10),
        scenario("1-provider-scaling", 1, 5, 30, 10),
        scenario("3-provider-scaling", 3, 5, 30, 10),
        scenario("5-provider-scaling", 5, 5, 30, 10),
        Scenario {
            prompt_bytes: 10 * 1024,
            max_tokens: 32,
            ..scenario("3-provider-heavy-100conc-10kb", 3, 20, 100, 100)
        },
    ]
}

impl Scenario {
    /// The names under which models are served, each once.
    pub(crate) fn models(&self) -> Vec<&'static str> {
        let mut models = self.providers.clone();
        models.dedup();
        models
    }

    /// The same at its smallest size.
    pub(crate) fn quick(&self) -> Self {
        let mut models = self.models();
        if models.len() == 1 && self.providers.len() > 1 {
            models.push(models[0]);
        }
        Self {
            providers: models,
            users: self.users.min(2),
            requests: if self.prompt_bytes > 1024 { 3 } else { 4 },
            concurrency: self.concurrency.min(3),
            max_tokens: 8,
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_ask_450_times_in_all() {
        let all = scenarios();
        assert_eq!(all.len(), 10);
        assert_eq!(all.iter().map(|s| s.requests).sum::<usize>(), 450);
        assert_eq!(all[2].models(), [MODEL_A, MODEL_B]);
        assert_eq!(all[2].quick().providers, [MODEL_A, MODEL_B]);
        assert_eq!(all[3].quick().providers, [MODEL, MODEL]);
    }
}
