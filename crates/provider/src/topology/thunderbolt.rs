//! Reads `system_profiler SPThunderboltDataType -json` of macOS: ports, and the machines behind them.
//!
//! A bus may list several devices. A machine has a domain of its own (`domain_uuid_key`); a hub or dock has none and
//! nests what is behind it, to any depth. Only the machine on a hub's upstream port sees that nesting: the other sees
//! its peer at the top.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

/// The longest recording that is read: a machine with every port taken gives some tens of kilobytes.
pub const BYTES_MAX: usize = 16 << 20;
/// Thunderbolt allows six devices in a chain; what nests deeper than this is no recording.
const DEPTH_MAX: usize = 32;
/// Above this negotiated or possible speed a port is Thunderbolt 5 (T2): 80, or 120 one way.
const THUNDERBOLT_4_GBPS: f64 = 40.0;

/// Why a recording cannot be read at all.
#[derive(Debug, thiserror::Error)]
pub enum ThunderboltError {
    /// Too long.
    #[error(
        "{found} bytes, and at most {BYTES_MAX} are read: is this `system_profiler SPThunderboltDataType -json`?"
    )]
    Long {
        /// How many there are.
        found: usize,
    },
    /// No JSON.
    #[error(
        "no JSON at line {line}, column {column}: record it with `system_profiler SPThunderboltDataType -json`"
    )]
    Json {
        /// Where it stops being JSON.
        line: usize,
        /// Where it stops being JSON.
        column: usize,
    },
    /// JSON of something else.
    #[error(
        "there is no list `SPThunderboltDataType`: record it with `system_profiler SPThunderboltDataType -json`"
    )]
    NoBuses,
}

/// What a recording says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Thunderbolt {
    /// Every receptacle, in the order of the recording.
    pub ports: Vec<Port>,
    /// Every machine that is reached, hubs looked through.
    pub links: Vec<Link>,
    /// What could not be understood and was left out, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// A receptacle.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Port {
    /// Its bus, as the system calls it.
    pub bus: String,
    /// Its number, as printed in "Thunderbolt N".
    pub receptacle: Option<String>,
    /// Whether anything is plugged in.
    pub connected: bool,
    /// The speed that was negotiated, where something is plugged in.
    #[serde(serialize_with = "whole")]
    pub speed_gbps: Option<f64>,
    /// The speed that is possible: what an idle port says, and at least what a live one has.
    #[serde(serialize_with = "whole")]
    pub capable_gbps: Option<f64>,
    /// Whether it is Thunderbolt 5 for certain, by either speed.
    pub thunderbolt_5: bool,
    /// The identity of its domain.
    pub domain_uuid: Option<String>,
}

/// A machine behind a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Link {
    /// Of this machine's port.
    pub local_domain_uuid: String,
    /// Of the other machine's port.
    pub peer_domain_uuid: String,
    /// What the other machine is called.
    pub peer_name: String,
    /// Hubs and docks in between, nearest first.
    pub via: Vec<String>,
}

/// Whole numbers without a point: 80, not 80.0.
fn whole<S: serde::Serializer>(value: &Option<f64>, to: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) if value.fract() == 0.0 && value.abs() < 1e9 => to.serialize_i64(*value as i64),
        Some(value) => to.serialize_f64(*value),
        None => to.serialize_none(),
    }
}

/// Reads a recording.
///
/// # Errors
/// It is none. A bus or device that makes no sense is left out and named in [`Thunderbolt::problems`].
pub fn parse(recording: &[u8]) -> Result<Thunderbolt, ThunderboltError> {
    if recording.len() > BYTES_MAX {
        return Err(ThunderboltError::Long { found: recording.len() });
    }
    let recording = recording.strip_prefix(b"\xef\xbb\xbf").unwrap_or(recording);
    let root: Value = serde_json::from_slice(recording)
        .map_err(|e| ThunderboltError::Json { line: e.line(), column: e.column() })?;
    let buses = root.get("SPThunderboltDataType").and_then(Value::as_array);
    let mut out = Thunderbolt::default();
    let mut seen = BTreeSet::new();
    for (at, bus) in buses.ok_or(ThunderboltError::NoBuses)?.iter().enumerate() {
        match bus.as_object() {
            Some(bus) => read_bus(bus, at, &mut out, &mut seen),
            None => out.problems.push(format!("bus {at} is no object")),
        }
    }
    Ok(out)
}

fn read_bus(bus: &Map<String, Value>, at: usize, out: &mut Thunderbolt, seen: &mut BTreeSet<Link>) {
    let name = text(bus, "_name").unwrap_or_else(|| format!("bus {at}"));
    let domain = text(bus, "domain_uuid_key");
    // Usually one (`receptacle_1_tag`); older machines have two to a bus.
    let mut tags: Vec<(&String, &Value)> =
        bus.iter().filter(|(key, _)| key.starts_with("receptacle_") && key.ends_with("_tag")).collect();
    tags.sort_by_key(|(key, _)| *key);
    let devices = bus.get("_items").and_then(Value::as_array);
    for (key, tag) in tags {
        match tag.as_object() {
            Some(tag) => out.ports.push(port(&name, domain.clone(), tag)),
            None => out.problems.push(format!("{name}: {key} is no object")),
        }
    }
    match (bus.get("_items"), devices) {
        (_, Some(devices)) => {
            let mut walk = Walk { bus: &name, local: domain.as_deref(), out, seen };
            walk.devices(devices, &mut Vec::new());
        }
        (Some(_), None) => out.problems.push(format!("{name}: _items is no list")),
        (None, None) => {}
    }
}

fn port(bus: &str, domain_uuid: Option<String>, tag: &Map<String, Value>) -> Port {
    let said = text(tag, "current_speed_key").unwrap_or_default();
    let idle = said.trim_start().to_ascii_lowercase().starts_with("up to");
    let gbps = gbps(&said);
    let status = text(tag, "receptacle_status_key").unwrap_or_default();
    let connected = match status.as_str() {
        "receptacle_connected" => true,
        "receptacle_no_devices_connected" => false,
        // A status of another release: a negotiated speed is one that something negotiated.
        _ => gbps.is_some() && !idle,
    };
    Port {
        bus: bus.to_owned(),
        receptacle: text(tag, "receptacle_id_key"),
        connected,
        speed_gbps: gbps.filter(|_| connected && !idle),
        capable_gbps: gbps,
        thunderbolt_5: gbps.is_some_and(|gbps| gbps > THUNDERBOLT_4_GBPS),
        domain_uuid,
    }
}

/// The number before "Gb": 80 of "80 Gb/s", 120 of "Up to 120 Gb/s".
fn gbps(said: &str) -> Option<f64> {
    let lower = said.to_ascii_lowercase();
    let before = lower.get(..lower.find("gb")?)?.trim_end();
    let number = before.rsplit(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    number.parse().ok().filter(|gbps: &f64| gbps.is_finite() && *gbps > 0.0)
}

/// Everything behind one bus.
struct Walk<'a> {
    bus: &'a str,
    local: Option<&'a str>,
    out: &'a mut Thunderbolt,
    seen: &'a mut BTreeSet<Link>,
}

impl Walk<'_> {
    fn devices(&mut self, devices: &[Value], via: &mut Vec<String>) {
        if via.len() >= DEPTH_MAX {
            self.problem(format!("devices nest deeper than {DEPTH_MAX}"));
            return;
        }
        for device in devices {
            let Some(device) = device.as_object() else {
                self.problem("a device is no object".to_owned());
                continue;
            };
            let name = text(device, "device_name_key").or_else(|| text(device, "_name"));
            let name = name.unwrap_or_else(|| "unnamed".to_owned());
            match text(device, "domain_uuid_key") {
                Some(peer) => self.peer(peer, name, via),
                None => {
                    let behind = device.get("_items").and_then(Value::as_array);
                    via.push(name);
                    self.devices(behind.map_or(&[], Vec::as_slice), via);
                    via.pop();
                }
            }
        }
    }

    fn peer(&mut self, peer_domain_uuid: String, peer_name: String, via: &[String]) {
        let Some(local) = self.local else {
            self.problem(format!("{peer_name} is reached, but the bus has no domain_uuid_key"));
            return;
        };
        if local.eq_ignore_ascii_case(&peer_domain_uuid) {
            self.problem(format!("{peer_name} has the bus's own domain"));
            return;
        }
        let link =
            Link { local_domain_uuid: local.to_owned(), peer_domain_uuid, peer_name, via: via.to_vec() };
        if self.seen.insert(link.clone()) {
            self.out.links.push(link);
        }
    }

    fn problem(&mut self, what: String) {
        self.out.problems.push(format!("{}: {what}", self.bus));
    }
}

/// A text of a recording; numbers count, empty ones do not.
fn text(of: &Map<String, Value>, key: &str) -> Option<String> {
    match of.get(key)? {
        Value::String(text) => Some(text.trim()).filter(|text| !text.is_empty()).map(str::to_owned),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
