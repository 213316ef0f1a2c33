//! A program's settings: defaults, then a TOML file, then `--set name=value`; unknown names are refused.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

/// Where settings come from.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct SettingsOptions {
    /// Read the coordinator's settings from this TOML file.
    #[arg(long, value_name = "FILE", env = "PHALANX_CONFIG")]
    config: Option<PathBuf>,
    /// Change one setting, as in `--set pool.queue_max=64`. `phalanx coordinator --print-config` shows them all.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    changes: Vec<String>,
}

impl SettingsOptions {
    /// The settings.
    ///
    /// # Errors
    /// A file or value that cannot be read, or a name that is not a setting's.
    pub(crate) fn read<C: DeserializeOwned>(&self) -> anyhow::Result<C> {
        let mut table = Table::new();
        if let Some(path) = &self.config {
            let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            table = text.parse().with_context(|| format!("parsing {}", path.display()))?;
        }
        for change in &self.changes {
            apply(&mut table, change)?;
        }
        let remedy = "the settings are not understood (`phalanx coordinator --print-config` shows them all)";
        table.try_into().context(remedy)
    }
}

/// All settings with their values, as a TOML file.
pub(crate) fn print<C: Serialize>(settings: &C) -> anyhow::Result<String> {
    Ok(toml::to_string(settings)?)
}

fn apply(table: &mut Table, change: &str) -> anyhow::Result<()> {
    let Some((name, text)) = change.split_once('=') else {
        bail!("--set {change}: expected NAME=VALUE, as in pool.queue_max=64");
    };
    // A value is TOML; what is not is taken for a text.
    let value = format!("value = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut place = table;
    let mut parts: Vec<&str> = name.split('.').map(str::trim).collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let inner = place.entry(part).or_insert_with(|| Value::Table(Table::new()));
        let Value::Table(inner) = inner else { bail!("--set {change}: {part} is a value, not a group") };
        place = inner;
    }
    place.insert(last.to_owned(), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(changes: &[&str]) -> anyhow::Result<coordinator::Config> {
        let changes = changes.iter().map(|c| (*c).to_owned()).collect();
        SettingsOptions { config: None, changes }.read()
    }

    #[test]
    fn a_change_is_applied_and_the_rest_stays_as_it_is() {
        let changed = with(&["pool.queue_max=7", "http.body_bytes_max = 100000"]).unwrap();
        let mut expected = coordinator::Config::default();
        expected.pool.queue_max = 7;
        expected.http.body_bytes_max = base::Bytes(100_000);
        assert!(changed == expected);
    }

    #[test]
    fn an_unknown_name_or_a_wrong_type_is_refused_by_name() {
        let text = |changes: &[&str]| format!("{:#}", with(changes).unwrap_err());
        assert!(text(&["pool.queue_maximum=7"]).contains("queue_maximum"));
        assert!(text(&["pool.queue_max=many"]).contains("queue_max"));
        assert!(text(&["pool.queue_max"]).contains("NAME=VALUE"));
    }

    #[test]
    fn what_is_printed_is_read_back() {
        let printed = print(&coordinator::Config::default()).unwrap();
        let read: coordinator::Config = printed.parse::<Table>().unwrap().try_into().unwrap();
        assert!(read == coordinator::Config::default());
    }
}
