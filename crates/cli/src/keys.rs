//! `phalanx keys`: create, list and revoke API keys.

use std::process::ExitCode;

use base::{AccountId, KeyId};
use wire::admin::{CreateKey, CreatedKey, KeyInfo, KeyList};

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
        common: Common,
    },
    /// List all keys, revoked ones too.
    List {
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
        Verb::Create { name, account, admin, common } => {
            let ask = CreateKey { name, account, admin };
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
