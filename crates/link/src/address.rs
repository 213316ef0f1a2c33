//! Which of a machine's addresses to try first (T5): kind of link, then privacy, then measured round trip.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// What an address's interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// A Thunderbolt cable, or its bridge.
    Thunderbolt,
    /// A wired network.
    Ethernet,
    /// A radio network.
    Wifi,
    /// The machine itself.
    Loopback,
    /// A tunnel, or what could not be told.
    Other,
}

impl LinkType {
    /// The type of the interface of this name, by the names that Linux and macOS give. `enX` of macOS says nothing:
    /// there the caller must ask the system.
    pub fn of_interface(name: &str) -> Self {
        let begins = |starts: &[&str]| starts.iter().any(|s| name.starts_with(s));
        if name == "lo" || name == "lo0" {
            Self::Loopback
        } else if begins(&["thunderbolt", "tb"]) || name == "bridge0" {
            Self::Thunderbolt
        } else if begins(&["wl", "wifi", "ath", "ra"]) {
            Self::Wifi
        } else if begins(&["en", "eth", "em", "bond", "ib", "br", "team"]) {
            Self::Ethernet
        } else {
            Self::Other
        }
    }
}

/// What an address is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Meeting: any link will do, so the one that is surest to be there.
    Rendezvous,
    /// Everything after that: the fastest.
    Bulk,
}

/// An address at which a machine may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Where.
    pub address: SocketAddr,
    /// Over what.
    pub link: LinkType,
    /// Measured, where it was.
    pub round_trip: Option<Duration>,
}

/// `candidates` in the order in which to try them. Those that are alike stay as they came; an address that comes twice
/// is kept once; one that no other machine can reach (unspecified, multicast, port 0) is left out.
pub fn in_order(candidates: &[Candidate], purpose: Purpose) -> Vec<Candidate> {
    let mut ordered: Vec<Candidate> = Vec::with_capacity(candidates.len());
    for candidate in candidates {
        let ip = candidate.address.ip();
        let usable = !ip.is_unspecified() && !ip.is_multicast() && candidate.address.port() != 0;
        if usable && !ordered.iter().any(|c| c.address == candidate.address) {
            ordered.push(*candidate);
        }
    }
    ordered.sort_by_key(|c| {
        (link_order(c.link, purpose), privacy(c.address.ip()), c.round_trip.unwrap_or(Duration::MAX))
    });
    ordered
}

fn link_order(link: LinkType, purpose: Purpose) -> u8 {
    match (purpose, link) {
        // Between machines an address of the loopback is of use only where both are one: then nothing is faster.
        (_, LinkType::Loopback) => 0,
        (Purpose::Bulk, LinkType::Thunderbolt) | (Purpose::Rendezvous, LinkType::Ethernet) => 1,
        (Purpose::Bulk, LinkType::Ethernet) | (Purpose::Rendezvous, LinkType::Wifi) => 2,
        (Purpose::Bulk, LinkType::Wifi) | (Purpose::Rendezvous, LinkType::Thunderbolt) => 3,
        (_, LinkType::Other) => 4,
    }
}

/// Private networks before others: they are near, and cost nothing.
fn privacy(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) if ip.is_loopback() || ip.is_private() => 0,
        IpAddr::V4(ip) if ip.is_link_local() => 1,
        IpAddr::V4(_) => 2,
        IpAddr::V6(ip) => privacy_v6(ip),
    }
}

fn privacy_v6(ip: Ipv6Addr) -> u8 {
    if let Some(ip) = ip.to_ipv4_mapped() {
        return privacy(IpAddr::V4(ip));
    }
    match ip.segments()[0] {
        _ if ip.is_loopback() => 0,
        first if first & 0xfe00 == 0xfc00 => 0,
        first if first & 0xffc0 == 0xfe80 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str, link: LinkType, us: u64) -> Candidate {
        let round_trip = (us > 0).then(|| Duration::from_micros(us));
        Candidate { address: address.parse().unwrap(), link, round_trip }
    }

    fn addresses(ordered: &[Candidate]) -> Vec<String> {
        ordered.iter().map(|c| c.address.to_string()).collect()
    }

    #[test]
    fn link_type_first_then_privacy_then_round_trip() {
        let all = [
            at("8.8.8.8:1", LinkType::Ethernet, 1),
            at("192.168.1.7:1", LinkType::Wifi, 5),
            at("192.168.1.5:1", LinkType::Ethernet, 900),
            at("192.168.1.6:1", LinkType::Ethernet, 300),
            at("192.168.1.4:1", LinkType::Ethernet, 0),
            at("100.101.2.3:1", LinkType::Other, 1),
            at("169.254.9.9:1", LinkType::Thunderbolt, 300),
            at("10.0.0.1:1", LinkType::Thunderbolt, 400),
        ];
        assert_eq!(
            addresses(&in_order(&all, Purpose::Bulk)),
            [
                "10.0.0.1:1",
                "169.254.9.9:1",
                "192.168.1.6:1",
                "192.168.1.5:1",
                "192.168.1.4:1",
                "8.8.8.8:1",
                "192.168.1.7:1",
                "100.101.2.3:1"
            ]
        );
        assert_eq!(
            addresses(&in_order(&all, Purpose::Rendezvous))[..5],
            ["192.168.1.6:1", "192.168.1.5:1", "192.168.1.4:1", "8.8.8.8:1", "192.168.1.7:1"]
        );
    }

    #[test]
    fn what_nobody_can_reach_is_left_out_and_what_comes_twice_is_kept_once() {
        let all = [
            at("0.0.0.0:5", LinkType::Ethernet, 0),
            at("10.0.0.1:0", LinkType::Ethernet, 0),
            at("224.0.0.1:5", LinkType::Ethernet, 0),
            at("[fe80::1]:5", LinkType::Ethernet, 0),
            at("[fd00::1]:5", LinkType::Ethernet, 0),
            at("[::ffff:10.0.0.1]:5", LinkType::Ethernet, 0),
            at("[fd00::1]:5", LinkType::Ethernet, 0),
        ];
        assert_eq!(
            addresses(&in_order(&all, Purpose::Bulk)),
            ["[fd00::1]:5", "[::ffff:10.0.0.1]:5", "[fe80::1]:5"]
        );
    }

    #[test]
    fn interfaces_are_told_by_their_names() {
        for (name, link) in [
            ("lo", LinkType::Loopback),
            ("thunderbolt0", LinkType::Thunderbolt),
            ("bridge0", LinkType::Thunderbolt),
            ("wlp3s0", LinkType::Wifi),
            ("enp0s31f6", LinkType::Ethernet),
            ("eth0", LinkType::Ethernet),
            ("tailscale0", LinkType::Other),
            ("utun4", LinkType::Other),
            ("docker0", LinkType::Other),
        ] {
            assert_eq!(LinkType::of_interface(name), link, "{name}");
        }
    }
}
