//! Somebody who watches all the time that what is said of deployments is so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::api::Api;
use crate::deployments::condition;

/// How long it may go unnoticed that a machine is gone without a word: the silence that the coordinator of these tests
/// takes for a loss, and what a busy machine adds.
const UNNOTICED_MAX: Duration = Duration::from_secs(8);

/// Since when each machine is gone, where it is.
pub(crate) type Gone = Arc<Mutex<BTreeMap<String, Instant>>>;

pub(crate) struct Witness {
    end: Arc<AtomicBool>,
    looks: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Witness {
    pub(crate) fn of(api: &Api, gone: &Gone) -> Self {
        let api = Api { http: api.http.clone(), url: api.url.clone(), key: api.key.clone() };
        let (end, looks, gone) =
            (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::clone(gone));
        let (over, count) = (Arc::clone(&end), Arc::clone(&looks));
        let task = tokio::spawn(async move {
            let (mut lies, mut epochs) = (Vec::new(), BTreeMap::new());
            let mut pace = tokio::time::interval(Duration::from_millis(25));
            while !over.load(Ordering::Relaxed) && lies.is_empty() {
                pace.tick().await;
                let said = api.get("/api/deployments").await;
                lies.extend(untrue(&said, &gone.lock().unwrap(), &mut epochs));
                lies.extend(crowded(&api.get("/api/status").await));
                count.fetch_add(1, Ordering::Relaxed);
            }
            lies
        });
        Self { end, looks, task }
    }

    pub(crate) async fn ended(self) {
        self.end.store(true, Ordering::Relaxed);
        let lies = self.task.await.unwrap();
        let looks = self.looks.load(Ordering::Relaxed);
        assert!(lies.is_empty() && looks > 20, "{looks} looks, and {lies:#?}");
    }
}

/// What is said of deployments and cannot be so.
fn untrue(said: &Value, gone: &BTreeMap<String, Instant>, epochs: &mut BTreeMap<String, u64>) -> Vec<String> {
    let mut lies = Vec::new();
    let mut holds: BTreeMap<String, String> = BTreeMap::new();
    for of in said["deployments"].as_array().into_iter().flatten() {
        let name = of["name"].as_str().unwrap();
        let instances = of["instances"].as_array().unwrap();
        let serving = instances.iter().filter(|instance| instance["serves"] == true);
        let wanted = of["spec"]["replicas"].as_u64().unwrap_or(1);
        for kind in ["Placed", "Ready", "Degraded", "Progressing"] {
            let said = condition(of, kind);
            if !["True", "False", "Unknown"].iter().any(|status| said["status"] == *status) && !said.is_null()
            {
                lies.push(format!("{name}: {kind} is {}", said["status"]));
            }
            if said["observed_generation"].as_u64() > of["generation"].as_u64() {
                lies.push(format!("{name}: {kind} is said of a generation to come"));
            }
        }
        let current = |kind| condition(of, kind)["observed_generation"] == of["generation"];
        let is = |kind| condition(of, kind)["status"] == "True" && current(kind);
        if is("Ready") && (serving.clone().count() as u64) < wanted {
            lies.push(format!(
                "{name} is called ready, and {} of {wanted} serve: {of:#}",
                serving.clone().count()
            ));
        }
        if is("Placed") && (instances.len() as u64) < wanted {
            lies.push(format!("{name} is called placed, and has {} of {wanted}: {of:#}", instances.len()));
        }
        if is("Ready") && condition(of, "Ready")["reason"] == "Ready" && wanted == 0 {
            lies.push(format!("{name} is called ready, and none is wanted"));
        }
        for instance in instances {
            let id = instance["instance"].as_str().unwrap().to_owned();
            let epoch = instance["epoch"].as_u64().unwrap();
            if epochs.insert(id.clone(), epoch).is_some_and(|before| before > epoch) {
                lies.push(format!("{name}: the epoch of {id} went back"));
            }
            for rank in instance["ranks"].as_array().unwrap() {
                let machine = rank["name"].as_str().unwrap().to_owned();
                let long = gone.get(&machine).is_some_and(|since| since.elapsed() > UNNOTICED_MAX);
                if instance["serves"] == true && long {
                    lies.push(format!("{name} is said to serve on {machine}, which is gone: {of:#}"));
                }
                if let Some(other) = holds.insert(machine.clone(), id.clone()) {
                    lies.push(format!("{machine} is in two instances, {other} and {id}"));
                }
            }
        }
    }
    lies
}

/// Machines that take requests for more than one model.
fn crowded(status: &Value) -> Vec<String> {
    let takes = |machine: &Value| {
        let instances = machine["instances"].as_array().into_iter().flatten();
        instances.filter(|instance| instance["ineligible"].is_null()).count()
    };
    let machines = status["machines"].as_array().into_iter().flatten();
    machines
        .filter(|machine| takes(machine) > 1)
        .map(|m| format!("{} takes two models' requests", m["name"]))
        .collect()
}
