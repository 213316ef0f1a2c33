//! A machine that is cut off, as one is in earnest: in a network of its own, whose wire goes dead without a word.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use testkit::Program;

use crate::api::{Api, PHALANX};
use crate::group_faults::{ask_all, undisturbed};
use crate::groups::{await_phase, group};

/// Networks that this process made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Namespaces `hub` and one for each machine, joined by a bridge in the hub; this process is on the bridge, too.
pub(crate) struct Network {
    tag: String,
    pub(crate) subnet: String,
    machines: usize,
}

fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("ip {arguments}: {said}")) }
}

impl Network {
    /// Why there can be none: this needs the right to make namespaces.
    pub(crate) fn make(machines: usize) -> Result<Self, String> {
        let number = std::process::id();
        // Tests of one process run beside each other.
        let nth = MADE.fetch_add(1, Ordering::Relaxed);
        let tag = format!("x{nth}n{}", number % 100_000);
        let subnet = format!("10.{}.{}", 200 + nth % 50, number % 250);
        let network = Self { tag, subnet, machines };
        let (tag, subnet) = (&network.tag, &network.subnet);
        ip(&format!("netns add {tag}hub"))?;
        ip(&format!("-n {tag}hub link add br0 type bridge"))?;
        ip(&format!("-n {tag}hub link set br0 up"))?;
        ip(&format!("-n {tag}hub link set lo up"))?;
        ip(&format!("-n {tag}hub address add {subnet}.1/24 dev br0"))?;
        for machine in 0..machines {
            ip(&format!("netns add {tag}m{machine}"))?;
            ip(&format!(
                "link add {tag}a{machine} netns {tag}hub type veth peer name eth0 netns {tag}m{machine}"
            ))?;
            ip(&format!("-n {tag}hub link set {tag}a{machine} master br0 up"))?;
            ip(&format!("-n {tag}m{machine} link set lo up"))?;
            ip(&format!("-n {tag}m{machine} link set eth0 up"))?;
            ip(&format!("-n {tag}m{machine} address add {subnet}.{}/24 dev eth0", 10 + machine))?;
        }
        ip(&format!("link add {tag}t netns {tag}hub type veth peer name {tag}u"))?;
        ip(&format!("-n {tag}hub link set {tag}t master br0 up"))?;
        ip(&format!("link set {tag}u up"))?;
        ip(&format!("address add {subnet}.9/24 dev {tag}u"))?;
        Ok(network)
    }

    /// Gives each machine a second wire, to a network that only they are on; its address there ends as on the first.
    pub(crate) fn second(&self) -> Result<(), String> {
        self.another(1, "eth1", "192.168.77")
    }

    /// Gives each machine one more wire, the `nth`, at an interface of this name; its address there ends as on the first.
    pub(crate) fn another(&self, nth: usize, interface: &str, net: &str) -> Result<(), String> {
        let (tag, wire) = (&self.tag, Self::wire_name(nth));
        ip(&format!("-n {tag}hub link add br{nth} type bridge"))?;
        ip(&format!("-n {tag}hub link set br{nth} up"))?;
        for machine in 0..self.machines {
            ip(&format!(
                "link add {tag}{wire}{machine} netns {tag}hub type veth peer name {interface} netns {tag}m{machine}"
            ))?;
            ip(&format!("-n {tag}hub link set {tag}{wire}{machine} master br{nth} up"))?;
            ip(&format!("-n {tag}m{machine} link set {interface} up"))?;
            self.address(machine, "add", &format!("{net}.{}/24 dev {interface}", 10 + machine))?;
        }
        Ok(())
    }

    /// Adds an address to one of a machine's interfaces, or takes it away.
    pub(crate) fn address(&self, machine: usize, what: &str, address: &str) -> Result<(), String> {
        ip(&format!("-n {}m{machine} address {what} {address}", self.tag))
    }

    fn wire_name(nth: usize) -> &'static str {
        ["a", "b", "c", "d", "e"][nth]
    }

    /// A machine's address on the second network.
    pub(crate) fn second_address(machine: usize) -> String {
        format!("192.168.77.{}", 10 + machine)
    }

    /// Cuts a machine's second wire, or mends it.
    pub(crate) fn second_wire(&self, machine: usize, state: &str) {
        self.nth_wire(1, machine, state);
    }

    /// Cuts a machine's `nth` wire beside the first, or mends it.
    pub(crate) fn nth_wire(&self, nth: usize, machine: usize, state: &str) {
        ip(&format!("-n {0}hub link set {0}{1}{machine} {state}", self.tag, Self::wire_name(nth))).unwrap();
    }

    /// A program on machine `machine`, or in the hub.
    pub(crate) fn program(&self, machine: Option<usize>, arguments: &[&str]) -> Program {
        let place = machine.map_or_else(|| format!("{}hub", self.tag), |m| format!("{}m{m}", self.tag));
        let begin = ["netns", "exec", place.as_str(), PHALANX];
        Program::new("ip", begin.iter().chain(arguments).copied())
    }

    /// What `from` sends to `to` is lost, silently, and nothing else is: it goes to an interface that nobody has. Or mended.
    pub(crate) fn one_way(&self, from: usize, to: usize, state: &str) {
        let (tag, to) = (&self.tag, format!("{}.{}", self.subnet, 10 + to));
        let change = match state {
            "down" => format!("neigh replace {to} lladdr 02:00:de:ad:00:01 dev eth0 nud permanent"),
            _ => format!("neigh del {to} dev eth0"),
        };
        ip(&format!("-n {tag}m{from} {change}")).unwrap();
    }

    /// Cuts a machine's wire, or mends it. Nobody is told: what was sent is lost.
    pub(crate) fn wire(&self, machine: usize, state: &str) {
        self.nth_wire(0, machine, state);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = ip(&format!("link delete {}u", self.tag));
        for machine in 0..self.machines {
            let _ = ip(&format!("netns delete {}m{machine}", self.tag));
        }
        let _ = ip(&format!("netns delete {}hub", self.tag));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_whose_wire_goes_dead_is_named_and_is_back_in_its_group_when_it_is_mended() {
    let network = match Network::make(2) {
        Ok(network) => network,
        Err(why) => {
            println!(
                "no networks of one's own on this machine ({why}): this test is for those that have the right"
            );
            return;
        }
    };
    let door = format!("{}.1:0", network.subnet);
    let coordinator = network.program(None, &["coordinator", "--listen", &door]).start();
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let machine = |index: usize, name: &str| {
        let arguments = ["provider", "--join", &api.url, "--token", token, "--name", name, "--threads", "1"];
        network.program(Some(index), &arguments).spawn()
    };
    let _machines = [machine(0, "one"), machine(1, "two")];
    api.await_eligible(2).await;
    let undisturbed = undisturbed(&api).await;
    let asked = serde_json::json!({"model": "phalanx-bundled", "machines": ["one", "two"], "mode": "tensor", "patience_ms": 1500});
    assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    await_phase(&api, "ready", 1).await;
    api.await_eligible(1).await;
    // Rank 0's loss is the harder one: its own connection to the coordinator says nothing either.
    for rank in [1, 0] {
        let life = group(&api).await["epoch"].as_u64().unwrap();
        let asked = ask_all(&api, &undisturbed);
        network.wire(rank, "down");
        asked.all_right().await;
        let fault = group(&api).await["last_fault"].as_str().unwrap().to_owned();
        assert!(fault.starts_with(&format!("rank {rank}:")), "{fault}");
        network.wire(rank, "up");
        await_phase(&api, "ready", life + 1).await;
        api.await_eligible(1).await;
        ask_all(&api, &undisturbed).all_right().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ranks_dial_the_fastest_kind_of_link_for_data_the_surest_for_control_and_the_next_where_one_is_cut() {
    let network = Network::make(2).and_then(|network| {
        network.another(1, "wlan0", "192.168.78")?;
        network.another(2, "tailscale0", "100.64.9")?;
        network.another(3, "thunderbolt0", "169.254.7")?;
        for machine in 0..2 {
            // A public address stands before the private one in the system's list.
            let private = format!("{}.{}/24 dev eth0", network.subnet, 10 + machine);
            network.address(machine, "del", &private)?;
            network.address(machine, "add", &format!("203.0.113.{}/24 dev eth0", 10 + machine))?;
            network.address(machine, "add", &private)?;
        }
        Ok(network)
    });
    let network = match network {
        Ok(network) => network,
        Err(why) => return println!("no networks of one's own on this machine ({why})"),
    };
    let door = format!("{}.1:0", network.subnet);
    let coordinator = network.program(None, &["coordinator", "--listen", &door]).start();
    let api = Api::of(&coordinator);
    let token = coordinator.ready("join_token");
    let machine = |index: usize, name: &str| {
        let arguments = ["provider", "--join", &api.url, "--token", token, "--name", name, "--threads", "1"];
        network.program(Some(index), &arguments).spawn()
    };
    let _machines = [machine(0, "one"), machine(1, "two")];
    api.await_eligible(2).await;
    let undisturbed = undisturbed(&api).await;
    let asked = serde_json::json!({"model": "phalanx-bundled", "machines": ["one", "two"], "mode": "tensor"});
    assert_eq!(api.post("/api/groups", &asked).await.status(), 201);
    let dialled = |group: &serde_json::Value| {
        let way = &group["ranks"][1]["standing"]["dialled"][0];
        assert_eq!(way["rank"], 0, "{group:#}");
        let ip = |what: &str| way[what].as_str().unwrap().rsplit_once(':').unwrap().0.to_owned();
        (ip("data"), ip("control"))
    };
    let ethernet = format!("{}.10", network.subnet);
    let stands = await_phase(&api, "ready", 1).await;
    assert_eq!(dialled(&stands), ("169.254.7.10".to_owned(), ethernet.clone()), "{stands:#}");
    // The cable is pulled: the group is lost, and stands again on what is next.
    network.nth_wire(3, 0, "down");
    ask_all(&api, &undisturbed).all_right().await;
    let again = await_phase(&api, "ready", 2).await;
    assert_eq!(dialled(&again), (ethernet.clone(), ethernet), "{again:#}");
    assert!(again["past"][0]["fault"].as_str().unwrap().starts_with("rank "), "{again:#}");
    api.await_eligible(1).await;
    ask_all(&api, &undisturbed).all_right().await;
}
