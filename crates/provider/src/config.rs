//! Everything that can be set about a provider, each knob once.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use base::{Bytes, ModelName};
use engine::{EngineConfig, ModelSource};
use wire::control::{LABEL_BYTES_MAX, LABELS_MAX};

use crate::cadence::Pace;
use crate::uplink::socket::AuthorityError;
use crate::uplink::target::TargetError;
use crate::upstream::UpstreamConfig;

/// The longest name of a machine or a model, in bytes: names are shown in tables and are metric labels.
pub const NAME_BYTES_MAX: usize = 128;

/// A provider's settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The coordinator's address: `http://HOST:PORT`, `https://HOST` (also `ws`, `wss`; without a scheme, `http`).
    pub join: String,
    /// The token that the coordinator lets providers in by.
    pub token: JoinToken,
    /// What people call this machine; its host name where absent.
    pub name: Option<String>,
    /// Where the machine's identity is kept. One provider at a time.
    pub data_dir: PathBuf,
    /// What is served.
    pub models: Vec<ModelConfig>,
    /// Certificates (PEM) of the only authorities to trust for `https`; the system's where absent.
    pub ca_file: Option<PathBuf>,
    /// Where to listen for the other ranks of a group; every interface where empty, the loopback alone where the
    /// coordinator is there.
    pub group_listen: Vec<std::net::IpAddr>,
    /// How long attempts may take to finish when the provider is asked to leave.
    pub drain_max: Duration,
    /// A coordinator decides what is held: then `models` are only known, and nothing is loaded by itself.
    pub managed: Option<ManagedConfig>,
}

/// How a machine is whose coordinator decides what it holds.
#[derive(Debug, Clone)]
pub struct ManagedConfig {
    /// Folders of models, the Hugging Face cache among them; of two models with one name the first folder's counts.
    pub folders: Vec<PathBuf>,
    /// What models may take together; what is free at the start where absent.
    pub memory_limit: Option<Bytes>,
    /// For selectors of deployments.
    pub labels: Vec<(String, String)>,
    /// How models are computed; context, batch and cache are the coordinator's word where it says them.
    pub engine: EngineConfig,
    /// How often the folders are looked through again.
    pub look_every: Duration,
    /// A folder in which providers of one machine share what the machine was measured to do.
    pub measured_beside: Option<PathBuf>,
    /// What models that are fetched may take of the disk together; where absent, what was set for their folder.
    pub models_budget: Option<Bytes>,
    /// The folder of models, one of `folders`, that those which the coordinator wants here are put into when other machines
    /// of the fleet have them; nothing is taken from others where absent.
    pub fetch_into: Option<PathBuf>,
    /// Bytes a second that other machines may take of this one's models, all together; no bound where absent.
    pub lend_rate: Option<Bytes>,
}

impl Default for ManagedConfig {
    fn default() -> Self {
        Self {
            folders: Vec::new(),
            memory_limit: None,
            labels: Vec::new(),
            engine: EngineConfig::default(),
            look_every: Duration::from_secs(15),
            measured_beside: None,
            models_budget: None,
            fetch_into: None,
            lend_rate: None,
        }
    }
}

/// One model to serve.
#[derive(Debug, Clone)]
pub struct ModelConfig {
    /// The name that requests call it by.
    pub name: ModelName,
    /// Where its files are.
    pub source: ModelSource,
    /// How it is computed.
    pub engine: EngineConfig,
    /// Another server that computes it instead: then its source is not looked at.
    pub upstream: Option<UpstreamConfig>,
    /// Its weights are read only as a rank of a group; else alone, too, where they fit into memory.
    pub only_in_groups: bool,
    /// Nothing is computed, and tokens come at this pace: for benches.
    pub stand_in: Option<Pace>,
}

impl ModelConfig {
    /// A model with the default way to compute it.
    pub fn new(name: ModelName, source: ModelSource) -> Self {
        Self {
            name,
            source,
            engine: EngineConfig::default(),
            upstream: None,
            only_in_groups: false,
            stand_in: None,
        }
    }
}

impl Config {
    /// The defaults, and what has none.
    pub fn new(join: impl Into<String>, token: impl Into<JoinToken>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            join: join.into(),
            token: token.into(),
            name: None,
            data_dir: data_dir.into(),
            models: Vec::new(),
            ca_file: None,
            group_listen: Vec::new(),
            drain_max: Duration::from_secs(30),
            managed: None,
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.token.0.is_empty() {
            return Err(ConfigError::NoToken);
        }
        if self.models.is_empty() && self.managed.is_none() {
            return Err(ConfigError::NoModel);
        }
        if let Some(managed) = &self.managed {
            managed.check()?;
        }
        let mut names = HashSet::new();
        for model in &self.models {
            checked("model", model.name.as_str())?;
            if !names.insert(&model.name) {
                return Err(ConfigError::TwoOfAName { name: model.name.clone() });
            }
        }
        self.name.as_deref().map_or(Ok(()), |name| checked("machine", name))
    }
}

impl ManagedConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let long = |text: &str| {
            text.is_empty() || text.len() > LABEL_BYTES_MAX || text.chars().any(char::is_control)
        };
        match self.labels.iter().find(|(key, value)| long(key) || (!value.is_empty() && long(value))) {
            Some((key, _)) => Err(ConfigError::Label { key: key.chars().take(40).collect() }),
            None if self.labels.len() > LABELS_MAX => Err(ConfigError::Labels { count: self.labels.len() }),
            None => Ok(()),
        }
    }
}

fn checked(what: &'static str, name: &str) -> Result<(), ConfigError> {
    let wrong = |why: String| ConfigError::Name { what, name: name.chars().take(40).collect(), why };
    if name.trim().is_empty() {
        return Err(wrong("is empty".into()));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(wrong(format!("has {} bytes, {NAME_BYTES_MAX} are allowed", name.len())));
    }
    if name.chars().any(char::is_control) {
        return Err(wrong("holds a control character".into()));
    }
    Ok(())
}

/// A join token: shown nowhere, wiped when dropped.
#[derive(Clone)]
pub struct JoinToken(pub(crate) trust::Zeroizing<String>);

impl<T: Into<String>> From<T> for JoinToken {
    fn from(text: T) -> Self {
        let text = trust::Zeroizing::new(text.into());
        Self(trust::Zeroizing::new(text.trim().to_owned()))
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(...)")
    }
}

/// Why settings cannot be gone by.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Without one no coordinator lets a provider in.
    #[error("no join token: give the one that `phalanx coordinator` prints, with --token")]
    NoToken,
    /// There is nothing to serve.
    #[error("no model to serve: name a folder with a model's files, or the bundled model, with --model")]
    NoModel,
    /// Requests could not tell them apart.
    #[error("the model name {name:?} is given twice: a provider serves each name once")]
    TwoOfAName {
        /// The name.
        name: ModelName,
    },
    /// A label that cannot be told.
    #[error(
        "the label {key:?} cannot be told: keys and values have 1 to {LABEL_BYTES_MAX} bytes, none a control character"
    )]
    Label {
        /// Which, clipped.
        key: String,
    },
    /// Too many labels.
    #[error("{count} labels are given, {LABELS_MAX} are allowed")]
    Labels {
        /// How many.
        count: usize,
    },
    /// A name that cannot be shown.
    #[error("the {what}'s name {name:?} {why}")]
    Name {
        /// Whose.
        what: &'static str,
        /// The name, clipped.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// The coordinator's address.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The file of certificates.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new("http://localhost:1", "join-phx-abc\n", "/nowhere");
        config.models.push(ModelConfig::new("tiny".into(), ModelSource::Bundled));
        config
    }

    fn refusal(change: impl FnOnce(&mut Config)) -> String {
        let mut changed = config();
        change(&mut changed);
        changed.check().expect_err("a refusal").to_string()
    }

    #[test]
    fn settings_that_cannot_work_are_refused_with_what_to_change() {
        config().check().unwrap();
        assert!(refusal(|c| c.token = "  ".into()).contains("--token"));
        assert!(refusal(|c| c.models.clear()).contains("--model"));
        assert!(refusal(|c| c.models.push(c.models[0].clone())).contains("\"tiny\" is given twice"));
        assert!(refusal(|c| c.models[0].name = "".into()).contains("is empty"));
        assert!(refusal(|c| c.name = Some("x".repeat(200))).contains("200 bytes, 128 are allowed"));
        assert!(refusal(|c| c.name = Some("a\u{1b}[2J".into())).contains("control character"));
    }

    #[test]
    fn a_token_read_from_a_file_loses_its_line_end_and_is_never_shown() {
        let config = config();
        assert_eq!(config.token.0.as_str(), "join-phx-abc");
        assert!(!format!("{config:?}").contains("abc"));
    }
}
