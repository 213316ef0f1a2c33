//! The coordinator's knobs, each declared once, with its default and what that follows from.

use base::{Bytes, Micros};
use serde::{Deserialize, Serialize};

/// Everything about a coordinator that an operator may set. Spans are in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The front door.
    pub http: HttpConfig,
    /// What it speaks.
    pub api: ApiConfig,
    /// The life of a request.
    pub requests: RequestConfig,
    /// The providers' connections.
    pub uplink: UplinkConfig,
    /// How each model's pool decides.
    pub pool: fleet::Policy,
    /// What decides where deployments run.
    pub deployments: DeploymentConfig,
}

/// What decides where deployments run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeploymentConfig {
    /// Whether all managed machines are taken to reach each other over a network of one gigabit, though nobody has proved
    /// it. Without it machines are made into groups only over links that are proved.
    pub trust_network: bool,
    /// How long requests may run on where a deployment's instance is to end; what takes longer goes on elsewhere.
    pub drain_us: Micros,
}

impl Default for DeploymentConfig {
    fn default() -> Self {
        Self { trust_network: false, drain_us: Micros::from_secs(30) }
    }
}

/// The front door.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Connections at a time. Each takes about 20 KB while idle.
    pub connections_max: usize,
    /// How long a connection may take for a request's header, and stay idle between two requests. Longer than the
    /// five seconds after which the common clients drop idle connections themselves.
    pub header_us: Micros,
    /// The largest body. Four bytes for each token of a context of a million.
    pub body_bytes_max: Bytes,
    /// How long a body may take.
    pub body_us: Micros,
    /// How long running requests may go on once the coordinator is told to end.
    pub drain_us: Micros,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            header_us: Micros::from_secs(30),
            body_bytes_max: Bytes(4 << 20),
            body_us: Micros::from_secs(30),
            drain_us: Micros::from_secs(20),
        }
    }
}

/// What the front door speaks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiConfig {
    /// Whether Ollama's API takes calls without a key from programs on this machine: its clients send none. Calls over the
    /// network, and from web pages, need one all the same.
    pub ollama_without_key: bool,
    /// Responses that can be looked at later; 0 is none. They are in memory, and gone with the coordinator.
    pub responses_max: usize,
    /// What they may take together; the oldest are forgotten first.
    pub responses_bytes_max: Bytes,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self { ollama_without_key: false, responses_max: 10_000, responses_bytes_max: Bytes(256 << 20) }
    }
}

/// The life of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestConfig {
    /// Requests in the coordinator at a time, waiting and running, all models together.
    pub running_max: usize,
    /// From its arrival, a request may take so long in all; 0 is off.
    pub total_us_max: Micros,
    /// How long an instance may take to the first token before it counts as failed. Long, since a slow machine with
    /// a long prompt is no fault; a machine that is gone is noticed by `uplink.silence_us_max`.
    pub first_token_us_max: Micros,
    /// How long an instance may pause inside an answer before it counts as failed.
    pub pause_us_max: Micros,
    /// A streaming client that has waited so long gets its header and then a comment as often, so that nothing
    /// between takes the connection for dead.
    pub keepalive_us: Micros,
    /// How long a client may leave its side of the connection unread before its answer is given up.
    pub reader_us_max: Micros,
    /// How long a request whose machine lost its connection waits for the machine to be back with its answer before it goes
    /// on elsewhere; 0 is not at all. Providers dial again within 0.2 s; a killed process never comes back, and every
    /// moment here is a pause in its answers.
    pub patience_us: Micros,
    /// How often an answer that has begun may go on elsewhere; 0 is without bound.
    pub moves_max: u32,
    /// How long an answer that has begun, and that nobody can go on with, waits for a machine that can.
    pub stranded_us: Micros,
    /// How long an answer whose caller may come back to it goes on without a reader, and how long it is kept after its
    /// end; 0 is off: every answer ends with its connection.
    pub resume_us: Micros,
    /// Most tokens of a chat's answer where the caller names no limit; 0 is what the context holds.
    pub answer_tokens_default: u32,
    /// Prompts rendered and tokenized at a time away from the threads that serve connections; 0 is one a core.
    pub tokenizers_max: usize,
}

impl Default for RequestConfig {
    fn default() -> Self {
        Self {
            running_max: 20_000,
            total_us_max: Micros::from_secs(3600),
            first_token_us_max: Micros::from_secs(600),
            pause_us_max: Micros::from_secs(60),
            keepalive_us: Micros::from_secs(10),
            reader_us_max: Micros::from_secs(60),
            patience_us: Micros::from_millis(500),
            moves_max: 64,
            stranded_us: Micros::from_secs(30),
            resume_us: Micros::from_secs(120),
            answer_tokens_default: 0,
            tokenizers_max: 0,
        }
    }
}

/// The providers' connections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UplinkConfig {
    /// Machines at a time.
    pub machines_max: usize,
    /// Connections that have not proved themselves, at a time.
    pub handshakes_max: usize,
    /// How long a new connection may take to prove itself.
    pub handshake_us: Micros,
    /// How often a provider sends a heartbeat.
    pub heartbeat_us: Micros,
    /// After so long without a message either side takes the other for gone. Six heartbeats.
    pub silence_us_max: Micros,
    /// The largest text message.
    pub control_bytes_max: Bytes,
    /// The largest binary message: a prompt of a million tokens is four million bytes.
    pub data_bytes_max: Bytes,
    /// The largest kit: the largest tokenizers known take about 35 MB.
    pub kit_bytes_max: Bytes,
    /// Chunks that one answer may have waiting here for its client. At a token a chunk this is a long answer; a
    /// client that reads nothing for longer loses the answer, with an error.
    pub chunks_waiting_max: usize,
    /// Messages that make no sense, after which a connection is closed.
    pub faults_max: u32,
}

impl Default for UplinkConfig {
    fn default() -> Self {
        Self {
            machines_max: 100_000,
            handshakes_max: 256,
            handshake_us: Micros::from_secs(10),
            heartbeat_us: Micros::from_secs(2),
            silence_us_max: Micros::from_secs(12),
            control_bytes_max: Bytes(1 << 20),
            data_bytes_max: Bytes(8 << 20),
            kit_bytes_max: Bytes(64 << 20),
            chunks_waiting_max: 16_384,
            faults_max: 64,
        }
    }
}

/// A setting that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} is {value}: {remedy}")]
pub struct ConfigError {
    name: &'static str,
    value: u64,
    remedy: &'static str,
}

impl Config {
    /// Finds settings that contradict each other before anything starts.
    ///
    /// # Errors
    /// The first one, by name, with what would be right.
    pub fn check(&self) -> Result<(), ConfigError> {
        let positive = [
            ("http.connections_max", self.http.connections_max as u64),
            ("http.header_us", self.http.header_us.0),
            ("http.body_bytes_max", self.http.body_bytes_max.0),
            ("http.body_us", self.http.body_us.0),
            ("requests.running_max", self.requests.running_max as u64),
            ("requests.first_token_us_max", self.requests.first_token_us_max.0),
            ("requests.pause_us_max", self.requests.pause_us_max.0),
            ("requests.keepalive_us", self.requests.keepalive_us.0),
            ("requests.reader_us_max", self.requests.reader_us_max.0),
            ("uplink.machines_max", self.uplink.machines_max as u64),
            ("uplink.handshakes_max", self.uplink.handshakes_max as u64),
            ("uplink.handshake_us", self.uplink.handshake_us.0),
            ("uplink.heartbeat_us", self.uplink.heartbeat_us.0),
            ("uplink.chunks_waiting_max", self.uplink.chunks_waiting_max as u64),
        ];
        for (name, value) in positive {
            if value == 0 {
                return Err(ConfigError { name, value, remedy: "it must be more than 0" });
            }
        }
        if self.uplink.silence_us_max.0 < 2 * self.uplink.heartbeat_us.0 {
            let remedy =
                "it must be at least twice uplink.heartbeat_us, or one late heartbeat ends a connection";
            return Err(ConfigError {
                name: "uplink.silence_us_max",
                value: self.uplink.silence_us_max.0,
                remedy,
            });
        }
        let floor = 64 << 10;
        for (name, value) in [
            ("uplink.control_bytes_max", self.uplink.control_bytes_max.0),
            ("uplink.data_bytes_max", self.uplink.data_bytes_max.0),
        ] {
            if value < floor {
                return Err(ConfigError { name, value, remedy: "it must be at least 65536" });
            }
        }
        Ok(())
    }
}
