//! Deployments in the database: every change of one call is one transaction, and what is old goes in the same one.

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::open;
use super::writer::whole;
use crate::{DeploymentCall, DeploymentChange, DeploymentEvent, KeptDeployment, KeptDeployments};

/// Lines of history that are kept of a name.
const EVENTS_MAX: i64 = 256;
/// Idempotency keys that are remembered.
const CALLS_MAX: i64 = 4096;
/// Above this many lines of all names together the oldest go, so that names made and deleted for ever fill no disk.
const EVENTS_OF_ALL_MAX: i64 = 200_000;
/// The setting that holds the largest epoch.
const EPOCH: &str = "deployments_epoch";

/// Writes all of `changes`, or none.
pub(super) fn write(
    connection: &mut Connection,
    changes: &[DeploymentChange],
) -> Result<(), rusqlite::Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for change in changes {
        write_one(&transaction, change)?;
    }
    transaction.commit()
}

fn write_one(connection: &Connection, change: &DeploymentChange) -> Result<(), rusqlite::Error> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| {
        connection.prepare_cached(sql)?.execute(values).map(drop)
    };
    match change {
        DeploymentChange::Wanted(KeptDeployment { name, generation, spec }) => run(
            "INSERT INTO deployments (name, generation, spec) VALUES (?1, ?2, ?3)
             ON CONFLICT (name) DO UPDATE SET generation = excluded.generation, spec = excluded.spec",
            params![name, whole(*generation), spec],
        ),
        DeploymentChange::Deleted { name } => run("DELETE FROM deployments WHERE name = ?1", params![name]),
        DeploymentChange::Event(event) => {
            run(
                "INSERT INTO deployment_events (name, generation, at_unix_us, what) VALUES (?1, ?2, ?3, ?4)",
                params![event.name, whole(event.generation), whole(event.at_unix_us), event.what],
            )?;
            run(
                "DELETE FROM deployment_events WHERE name = ?1 AND sequence <= (SELECT sequence
                 FROM deployment_events WHERE name = ?1 ORDER BY sequence DESC LIMIT 1 OFFSET ?2)",
                params![event.name, EVENTS_MAX],
            )?;
            run(
                "DELETE FROM deployment_events WHERE sequence <= (SELECT max(sequence) FROM deployment_events) - ?1",
                params![EVENTS_OF_ALL_MAX],
            )
        }
        DeploymentChange::Placed { instance, record } => run(
            "INSERT INTO placements (instance, record) VALUES (?1, ?2)
             ON CONFLICT (instance) DO UPDATE SET record = excluded.record",
            params![instance.to_string(), record],
        ),
        DeploymentChange::Ended { instance } => {
            run("DELETE FROM placements WHERE instance = ?1", params![instance.to_string()])
        }
        DeploymentChange::Epoch(epoch) => run(
            "INSERT INTO settings (name, value) VALUES (?1, ?2)
             ON CONFLICT (name) DO UPDATE SET value = excluded.value
             WHERE CAST(excluded.value AS INTEGER) > CAST(settings.value AS INTEGER)",
            params![EPOCH, epoch.to_string()],
        ),
        DeploymentChange::Called { key, call } => {
            run(
                "INSERT OR REPLACE INTO deployment_calls (key, digest, answer) VALUES (?1, ?2, ?3)",
                params![key, call.digest, call.answer],
            )?;
            run(
                "DELETE FROM deployment_calls WHERE sequence <= (SELECT max(sequence) FROM deployment_calls) - ?1",
                params![CALLS_MAX],
            )
        }
    }
}

/// All that is kept, but for the history.
pub(super) fn read(connection: &Connection) -> Result<KeptDeployments, rusqlite::Error> {
    let deployments = connection
        .prepare("SELECT name, generation, spec FROM deployments ORDER BY name")?
        .query_map((), |row| {
            Ok(KeptDeployment { name: row.get(0)?, generation: open::count(row, 1)?, spec: row.get(2)? })
        })?
        .collect::<Result<_, _>>()?;
    let placements = connection
        .prepare("SELECT instance, record FROM placements ORDER BY instance")?
        .query_map((), |row| Ok((open::parsed(row, 0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let epoch: Option<String> = connection
        .query_row("SELECT value FROM settings WHERE name = ?1", [EPOCH], |row| row.get(0))
        .optional()?;
    let epoch = match epoch {
        Some(text) => text.parse().map_err(|_| open::unreadable(0, "epoch"))?,
        None => 0,
    };
    Ok(KeptDeployments { deployments, placements, epoch })
}

/// The last `count` lines of one name's history, oldest first.
pub(super) fn history(
    connection: &Connection,
    name: &str,
    count: u32,
) -> Result<Vec<DeploymentEvent>, rusqlite::Error> {
    let sql = "SELECT name, generation, at_unix_us, what FROM deployment_events WHERE name = ?1
               ORDER BY sequence DESC LIMIT ?2";
    let mut events: Vec<DeploymentEvent> = connection
        .prepare(sql)?
        .query_map(params![name, count], |row| {
            Ok(DeploymentEvent {
                name: row.get(0)?,
                generation: open::count(row, 1)?,
                at_unix_us: open::count(row, 2)?,
                what: row.get(3)?,
            })
        })?
        .collect::<Result<_, _>>()?;
    events.reverse();
    Ok(events)
}

/// What a call with this idempotency key was answered.
pub(super) fn call(connection: &Connection, key: &str) -> Result<Option<DeploymentCall>, rusqlite::Error> {
    let sql = "SELECT digest, answer FROM deployment_calls WHERE key = ?1";
    connection
        .query_row(sql, [key], |row| Ok(DeploymentCall { digest: row.get(0)?, answer: row.get(1)? }))
        .optional()
}
