//! Operators' changes: each with its generation on the disk before it is answered, and the same call twice is one.

use fleet::deployment::Spec;
use fleet::reconcile::{Deployment, Input};
use store::{DeploymentCall, DeploymentChange, DeploymentEvent, KeptDeployment};
use wire::admin::deployment::Accepted;
use wire::openai::RequestError;

use super::Change;
use super::writer::Writer;
use crate::problem::Problem;

/// Deployments at a time. Operators make them, one by one.
const DEPLOYMENTS_MAX: usize = 1024;

/// A call that names itself, so that it may be made again without being done again.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// Its name, with whose it is.
    pub(crate) key: String,
    /// What it asks, hashed.
    pub(crate) digest: String,
}

fn failed(error: &store::StoreError) -> Problem {
    tracing::error!(%error, "a deployment could not be kept");
    Problem::Store { detail: error.to_string() }
}

impl Writer {
    /// Does what an operator asks; nothing is done that is not on the disk.
    pub(super) async fn change(&mut self, change: Change, call: Option<Call>) -> Result<Accepted, Problem> {
        if let Some(call) = &call
            && let Some(before) =
                self.core.store.deployment_call(&call.key).await.map_err(|error| failed(&error))?
        {
            if before.digest != call.digest {
                return Err(Problem::IdempotencyReused);
            }
            return serde_json::from_str(&before.answer)
                .map_err(|_| Problem::Internal("a kept answer cannot be read"));
        }
        let missing =
            |name: &str| Problem::Missing { what: "deployment", id: name.chars().take(100).collect() };
        match change {
            Change::Apply(spec) => self.apply(*spec, call).await,
            Change::Scale(name, replicas) => {
                let known = self.controller.deployment(&name).ok_or_else(|| missing(&name))?;
                let mut spec = known.spec.clone();
                spec.replicas = replicas;
                self.apply(spec, call).await
            }
            Change::Delete(name) => {
                let known = self.controller.deployment(&name).ok_or_else(|| missing(&name))?;
                let generation = known.generation;
                let accepted = Accepted { name: name.clone(), generation, outcome: "deleted".to_owned() };
                let event = DeploymentEvent {
                    name: name.clone(),
                    generation,
                    at_unix_us: self.now().0,
                    what: "it was deleted".to_owned(),
                };
                let mut changes = self.lines_of(&name);
                changes.push(DeploymentChange::Event(event));
                changes.push(DeploymentChange::Deleted { name: name.clone() });
                self.keep(changes, call, &accepted).await?;
                self.input(Input::Delete(name.clone()));
                self.noted.remove(&name);
                Ok(accepted)
            }
        }
    }

    async fn apply(&mut self, spec: Spec, call: Option<Call>) -> Result<Accepted, Problem> {
        if let Err(error) = spec.check() {
            let (message, param) = (error.to_string(), Some(error.field.to_owned()));
            return Err(RequestError { message, param, code: "invalid_value" }.into());
        }
        let name = spec.name.clone();
        let known = self.controller.deployment(&name);
        if known.is_none() && self.controller.deployments().count() >= DEPLOYMENTS_MAX {
            let message =
                format!("{DEPLOYMENTS_MAX} deployments are the most that there may be: delete some");
            return Err(RequestError { message, param: None, code: "too_many_deployments" }.into());
        }
        let (generation, outcome) = match known {
            None => (1, "created"),
            Some(Deployment { spec: same, generation, .. }) if *same == spec => (*generation, "unchanged"),
            Some(Deployment { generation, .. }) => (generation + 1, "changed"),
        };
        let accepted = Accepted { name: name.clone(), generation, outcome: outcome.to_owned() };
        let mut changes = Vec::new();
        if outcome != "unchanged" {
            let text = serde_json::to_string(&spec)
                .map_err(|_| Problem::Internal("a spec cannot be written as JSON"))?;
            changes.push(DeploymentChange::Wanted(KeptDeployment { name, generation, spec: text }));
        }
        self.keep(changes, call, &accepted).await?;
        self.input(Input::Apply(Box::new(spec)));
        Ok(accepted)
    }

    async fn keep(
        &self,
        mut changes: Vec<DeploymentChange>,
        call: Option<Call>,
        accepted: &Accepted,
    ) -> Result<(), Problem> {
        if let Some(Call { key, digest }) = call {
            let answer = serde_json::to_string(accepted).unwrap_or_default();
            changes.push(DeploymentChange::Called { key, call: DeploymentCall { digest, answer } });
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.core.store.keep_deployments(changes).await.map_err(|error| failed(&error))
    }
}
