//! `phalanx keys`: create, list and revoke API keys.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use base::{AccountId, KeyId, ModelName};
use wire::admin::{Class, CreateKey, CreatedKey, KeyInfo, KeyList, KeyTerms, OwnMachines, Scope};

use crate::client::ClientOptions;
use crate::terminal::{say, say_json, say_table};

#[derive(clap::Subcommand)]
pub(crate) enum Verb {
    /// Create a key. Its secret is shown once.
    Create {
        /// What to call it.
        #[arg(long, default_value = "unnamed")]
        name: String,
        /// Whose it is [default: a new account; the queue is fair between accounts].
        #[arg(long)]
        account: Option<AccountId>,
        /// Let it use the operator's API too.
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        terms: TermOptions,
        #[command(flatten)]
        common: Common,
    },
    /// List all keys, revoked ones too.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Replace a key's secret: the same account, name and terms. The old one ends at once.
    Rotate {
        /// As `phalanx keys list` shows it.
        id: KeyId,
        #[command(flatten)]
        common: Common,
    },
    /// Revoke a key: requests with it are refused from now on.
    Revoke {
        /// As `phalanx keys list` shows it.
        id: KeyId,
        #[command(flatten)]
        common: Common,
    },
}

/// What a key may do. 0 is no limit.
#[derive(clap::Args)]
pub(crate) struct TermOptions {
    /// It ends after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    expires_in: u64,
    /// It may only ask models (`infer`), only read status, usage and audit (`read`), or only join machines, which are then
    /// its account's own (`join`: give it to `phalanx provider --token`). May be repeated.
    #[arg(long, value_name = "SCOPE", value_parser = scope)]
    scope: Vec<Scope>,
    /// It may only ask this model. May be repeated.
    #[arg(long = "only-model", value_name = "MODEL")]
    models: Vec<String>,
    /// Requests a minute.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    requests_per_minute: u64,
    /// Tokens a minute, prompts and answers together.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    tokens_per_minute: u64,
    /// Requests at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    concurrent: u64,
    /// What it may spend in all, in micro-units (see `phalanx prices`).
    #[arg(long, value_name = "MICRO-UNITS", default_value_t = 0)]
    spend: u64,
    /// Its account's share of a model's queue: twice the weight, twice the work.
    #[arg(long, value_name = "SHARE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    weight: u64,
    /// Which of the requests that wait go first: `urgent`, `normal` or `background`.
    #[arg(long, value_name = "CLASS", default_value = "normal", value_parser = class)]
    class: Class,
    /// Whose machines its requests go to, where they do not say: `any`, its account's own first (`prefer`), or these alone
    /// (`only`).
    #[arg(long, value_name = "WHOSE", default_value = "any", value_parser = owner)]
    owner: OwnMachines,
}

fn owner(text: &str) -> Result<OwnMachines, String> {
    match text {
        "any" => Ok(OwnMachines::Any),
        "prefer" => Ok(OwnMachines::Prefer),
        "only" => Ok(OwnMachines::Only),
        other => Err(format!("{other:?} is none of any, prefer and only")),
    }
}

fn class(text: &str) -> Result<Class, String> {
    match text {
        "urgent" => Ok(Class::Urgent),
        "normal" => Ok(Class::Normal),
        "background" => Ok(Class::Background),
        other => Err(format!("{other:?} is no class: urgent, normal or background")),
    }
}

fn scope(text: &str) -> Result<Scope, String> {
    match text {
        "infer" => Ok(Scope::Infer),
        "read" => Ok(Scope::Read),
        "join" => Ok(Scope::Join),
        other => Err(format!("{other:?} is no scope: infer, read or join")),
    }
}

impl TermOptions {
    fn terms(self) -> KeyTerms {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        KeyTerms {
            expires_unix: if self.expires_in == 0 { 0 } else { now.saturating_add(self.expires_in) },
            scopes: self.scope,
            models: self.models.into_iter().map(ModelName::new).collect(),
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent: self.concurrent,
            spend_micros: self.spend,
            weight: if self.weight == 1 { 0 } else { self.weight },
            class: self.class,
            owner: self.owner,
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct Common {
    #[command(flatten)]
    client: ClientOptions,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Create { name, account, admin, terms, common } => {
            let ask = CreateKey { name, account, admin, terms: terms.terms() };
            let created: CreatedKey = common.client.client()?.post("/api/keys", &ask).await?;
            if common.json {
                say_json(&created)?;
            } else {
                say(&created.secret)?;
                eprintln!("This is the only time it is shown. Its id is {}.", created.key.id);
            }
        }
        Verb::List { common } => {
            let list: KeyList = common.client.client()?.get("/api/keys").await?;
            if common.json {
                say_json(&list)?;
            } else {
                let header = ["ID", "NAME", "ENDS WITH", "ACCOUNT", "MAY", "STATE"];
                say_table(&header, list.keys.iter().map(row).collect())?;
            }
        }
        Verb::Rotate { id, common } => {
            let nothing = serde_json::json!({});
            let created: CreatedKey =
                common.client.client()?.post(&format!("/api/keys/{id}/rotate"), &nothing).await?;
            if common.json {
                say_json(&created)?;
            } else {
                say(&created.secret)?;
                eprintln!(
                    "This is the only time it is shown. Its id is {}; {id} is revoked.",
                    created.key.id
                );
            }
        }
        Verb::Revoke { id, common } => {
            let revoked: KeyInfo = common.client.client()?.delete(&format!("/api/keys/{id}")).await?;
            if common.json {
                say_json(&revoked)?;
            } else {
                say(format!("{} ({}) is revoked", revoked.id, revoked.name))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(key: &KeyInfo) -> Vec<String> {
    vec![
        key.id.to_string(),
        key.name.clone(),
        format!("...{}", key.ends_with),
        key.account.to_string(),
        if key.admin { "use and operate" } else { "use" }.into(),
        if key.revoked_unix.is_some() { "revoked" } else { "active" }.into(),
    ]
}
