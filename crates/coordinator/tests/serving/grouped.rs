//! Groups whose ranks do as the test says: what a request lives through while its group is over and nobody knows it yet.

use base::{Epoch, InstanceId};
use serde_json::{Value, json};
use wire::control::{
    AssignGroup, FromProvider, GROUPS, GroupAddress, GroupPhase, GroupPorts, GroupReport, InstancePhase,
    InstanceReport,
};

use super::house::{House, chat_body, eventually};
use super::provider::{Act, Offer, Provider, Seen, answer};

fn report(assigned: &AssignGroup, phase: GroupPhase, culprit: Option<u32>) -> FromProvider {
    FromProvider::GroupReport(GroupReport {
        instance: assigned.instance,
        epoch: assigned.epoch,
        rank: assigned.rank,
        phase,
        culprit,
        detail: String::new(),
        telemetry: None,
        standing: None,
    })
}

/// Both become ranks of the group's next life, and it stands.
async fn stands(ranks: &mut [Provider; 2]) -> (InstanceId, Epoch) {
    let mut assigned = Vec::new();
    for rank in ranks.iter_mut() {
        let pick = |seen| match seen {
            Seen::Rank(assigned) => Some(*assigned),
            _ => None,
        };
        let mine = rank.sees(pick).await;
        let ports = GroupPorts {
            instance: mine.instance,
            epoch: mine.epoch,
            rank: mine.rank,
            addresses: vec![GroupAddress {
                address: "127.0.0.1:9".parse().unwrap(),
                interface: String::new(),
            }],
        };
        rank.send(&FromProvider::GroupPorts(ports));
        assigned.push(mine);
    }
    for (rank, mine) in ranks.iter_mut().zip(&assigned) {
        rank.sees(|seen| matches!(seen, Seen::Roster).then_some(())).await;
        rank.send(&report(mine, GroupPhase::Loading, None));
        rank.send(&report(mine, GroupPhase::Ready, None));
    }
    let life = (assigned[0].instance, assigned[0].epoch);
    ranks[0].lead(life.0, life.1, 2);
    life
}

/// Two machines whose group alone serves.
async fn group(house: &House) -> ([Provider; 2], (InstanceId, Epoch)) {
    let offer = || Offer { capabilities: vec![GROUPS.to_owned()], ..Offer::default() };
    let mut ranks = [Provider::join_as(house, offer()).await, Provider::join_as(house, offer()).await];
    let machines = [ranks[0].machine().to_string(), ranks[1].machine().to_string()];
    let asked = json!({"model": "small", "machines": machines, "mode": "tensor"});
    assert_eq!(house.post("/api/groups", &asked).send().await.unwrap().status(), 201);
    let life = stands(&mut ranks).await;
    let aside = InstanceReport { phase: InstancePhase::InGroups, ..ranks[1].report.clone() };
    ranks[1].send(&FromProvider::InstanceChanged(aside));
    let alone = async || {
        let status: Value = house.get("/api/status").await.json().await.unwrap();
        let machines = status["machines"].as_array().unwrap();
        let instances = machines.iter().flat_map(|m| m["instances"].as_array().unwrap());
        let taking: Vec<_> = instances.filter(|i| i["ineligible"].is_null()).collect();
        taking.len() == 1 && taking[0]["instance"] == life.0.to_string()
    };
    eventually("the group alone takes requests", alone).await;
    (ranks, life)
}

#[tokio::test]
async fn a_group_that_is_over_and_says_so_late_costs_a_request_one_try() {
    let house = House::open().await;
    let (ranks, _) = group(&house).await;
    // More often than a request may fail (pool.attempts_max is 4), and in no time at all.
    for _ in 0..6 {
        ranks[0].next(vec![Act::Fail]);
    }
    ranks[0].next(answer(&["fine"]));
    let response = house.chat(json!({})).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer:#}");
    assert_eq!(answer["choices"][0]["message"]["content"], "fine");
}

#[tokio::test]
async fn a_request_that_ends_life_after_life_of_a_group_is_given_up() {
    let house = House::open().await;
    let (mut ranks, (instance, mut epoch)) = group(&house).await;
    for _ in 0..1000 {
        ranks[0].next(vec![Act::Fail]);
    }
    let call = tokio::spawn(house.post("/v1/chat/completions", &chat_body(json!({}))).send());
    for lives_left in (0..4).rev() {
        ranks[0].attempt().await;
        let ended = GroupReport {
            instance,
            epoch,
            rank: 0,
            phase: GroupPhase::Ended,
            culprit: Some(1),
            detail: "it broke".to_owned(),
            telemetry: None,
            standing: None,
        };
        ranks[0].send(&FromProvider::GroupReport(ended));
        if lives_left > 0 {
            (_, epoch) = stands(&mut ranks).await;
        }
    }
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.status(), 502);
    let error: Value = answer.json().await.unwrap();
    assert_eq!(error["error"]["code"], "attempts_failed");
}
