//! A coordinator is found in its network by multicast DNS. Its announcement proves that it knows the join token and is bound
//! to the addresses that it names, so that whoever only listens cannot lead a machine, and its token, elsewhere.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use mdns_sd::{ServiceDaemon, ServiceEvent, ServiceInfo};
use tokio_util::sync::CancellationToken;

const SERVICE: &str = "_phalanx._tcp.local.";
/// A TXT record's string has 255 bytes at most, its name included.
const PLACES_BYTES_MAX: usize = 240;
/// How long a try at an announced address may take.
const TRY_MAX: Duration = Duration::from_secs(2);
/// After so long without one, it is said what else can be done.
const PATIENCE: Duration = Duration::from_secs(10);
/// Announcements of others that are remembered.
const STRANGERS_MAX: usize = 32;

/// A coordinator's announcement; dropping it takes it back.
pub(crate) struct Announcement {
    daemon: ServiceDaemon,
    name: String,
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Ok(told) = self.daemon.unregister(&self.name) {
            // Others forget it at once instead of by and by, where the network takes the word in time.
            let _ = told.recv_timeout(Duration::from_millis(500));
        }
        let _ = self.daemon.shutdown();
    }
}

/// Announces a coordinator that listens at `listens` to its network; nothing where no other machine could reach it.
///
/// # Errors
/// The system refuses the multicast socket.
pub(crate) fn announce(listens: SocketAddr, token: &str) -> anyhow::Result<Option<Announcement>> {
    let own = || if_addrs::get_if_addrs().map(|all| all.into_iter().map(|one| one.ip()).collect());
    let places = places(listens, if listens.ip().is_unspecified() { own()? } else { vec![listens.ip()] });
    if places.is_empty() {
        return Ok(None);
    }
    let text = written(&places);
    let proof = trust::hex(&trust::announced(token, &text));
    let host = provider::machine_name();
    let label = |text: &str| {
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect::<String>()
    };
    let name = format!("{host} {}", listens.port());
    let addresses: Vec<IpAddr> = places.iter().map(SocketAddr::ip).collect();
    let daemon = ServiceDaemon::new().context("opening the socket for announcements")?;
    let properties = [("v", "1"), ("at", text.as_str()), ("proof", proof.as_str())];
    let info = ServiceInfo::new(
        SERVICE,
        &name,
        &format!("{}.local.", label(&host)),
        &addresses[..],
        listens.port(),
        &properties[..],
    )?;
    let name = info.get_fullname().to_owned();
    daemon.register(info)?;
    Ok(Some(Announcement { daemon, name }))
}

/// Where others could reach it: private addresses of the fourth version first, as many as an announcement holds.
fn places(listens: SocketAddr, mut own: Vec<IpAddr>) -> Vec<SocketAddr> {
    own.retain(|ip| match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => {
            listens.is_ipv6() && !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified()
        }
    });
    own.sort_by_key(|ip| match ip {
        IpAddr::V4(v4) => (!v4.is_private(), false),
        IpAddr::V6(_) => (true, true),
    });
    own.dedup();
    let mut places: Vec<SocketAddr> = own.into_iter().map(|ip| (ip, listens.port()).into()).collect();
    while written(&places).len() > PLACES_BYTES_MAX {
        places.pop();
    }
    places
}

fn written(places: &[SocketAddr]) -> String {
    places.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
}

/// What was heard of one announcement.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    /// It knows the token, and is at one of these.
    Ours(Vec<SocketAddr>),
    /// It does not, or cannot be read.
    Stranger(String),
}

/// Decides whether an announcement is our coordinator's. What it says is anybody's word until it is proved.
fn judge(name: &str, at: Option<&str>, proof: Option<&str>, token: &str) -> Heard {
    let stranger = || {
        let clean = name.strip_suffix(SERVICE).unwrap_or(name).trim_end_matches('.');
        Heard::Stranger(clean.chars().filter(|c| !c.is_control()).take(80).collect())
    };
    let (Some(at), Some(proof)) = (at, proof) else { return stranger() };
    let expected = trust::hex(&trust::announced(token, at));
    if !trust::secrets_equal(expected.as_bytes(), proof.as_bytes()) {
        return stranger();
    }
    match at.split(',').map(str::parse).collect() {
        Ok(places) => Heard::Ours(places),
        Err(_) => stranger(),
    }
}

/// Looks in the network until a coordinator that knows `token` answers at an address of its; its URL. Nothing where it was
/// called off. `tell` hears after some time what else can be done.
///
/// # Errors
/// The system refuses the multicast socket.
pub(crate) async fn find(
    token: &str,
    ending: &CancellationToken,
    mut tell: impl FnMut(String),
) -> anyhow::Result<Option<String>> {
    let daemon = ServiceDaemon::new().context("opening the socket to look for a coordinator")?;
    let events = daemon.browse(SERVICE)?;
    let (news, mut heard) = tokio::sync::mpsc::channel(STRANGERS_MAX);
    // Ends with the daemon, or with whoever listens.
    std::thread::spawn(move || {
        while let Ok(event) = events.recv() {
            if let ServiceEvent::ServiceResolved(found) = event
                && news.blocking_send(found).is_err()
            {
                return;
            }
        }
    });
    let (begun, mut strangers, mut told) = (Instant::now(), BTreeSet::new(), None);
    let found = loop {
        let found = tokio::select! {
            () = ending.cancelled() => break None,
            found = tokio::time::timeout(Duration::from_millis(500), heard.recv()) => found,
        };
        match found {
            Ok(Some(found)) => {
                let text = |key: &str| found.txt_properties.get_property_val_str(key);
                match judge(&found.fullname, text("at"), text("proof"), token) {
                    Heard::Ours(places) => match reached(&places).await {
                        Some(place) => break Some(format!("http://{place}")),
                        None => tell(format!(
                            "A coordinator announced itself at {}, and does not answer there: is a firewall between?",
                            written(&places)
                        )),
                    },
                    Heard::Stranger(name) if strangers.len() < STRANGERS_MAX => {
                        strangers.insert(name);
                    }
                    Heard::Stranger(_) => {}
                }
            }
            Ok(None) => {
                anyhow::bail!("the search for a coordinator ended by itself; say where it is with --join URL")
            }
            Err(_) => {}
        }
        if begun.elapsed() > PATIENCE && told != Some(strangers.len()) {
            told = Some(strangers.len());
            tell(still_looking(&strangers));
        }
    };
    let _ = daemon.shutdown();
    Ok(found)
}

fn still_looking(strangers: &BTreeSet<String>) -> String {
    let others = match strangers.len() {
        0 => String::new(),
        _ => format!(
            " ({} announced themselves, and do not know this token)",
            strangers.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
        ),
    };
    format!(
        "No coordinator was found in this network yet{others}; still looking. One that listens on its loopback alone announces \
         nothing, and announcements do not pass routers, VPNs and most containers: say where it is with --join URL."
    )
}

/// The first of these places that takes a connection.
async fn reached(places: &[SocketAddr]) -> Option<SocketAddr> {
    for place in places {
        let dialled = tokio::time::timeout(TRY_MAX, tokio::net::TcpStream::connect(place)).await;
        if matches!(dialled, Ok(Ok(_))) {
            return Some(*place);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_knows_the_token_is_believed_and_only_about_the_addresses_it_named() {
        let (token, at) = ("join-phx-a", "10.0.0.5:8420,192.168.1.2:8420");
        let proof = trust::hex(&trust::announced(token, at));
        let places: Vec<SocketAddr> = at.split(',').map(|place| place.parse().expect("one")).collect();
        let name = "studio 8420._phalanx._tcp.local.";
        assert_eq!(judge(name, Some(at), Some(&proof), token), Heard::Ours(places));
        let stranger = Heard::Stranger("studio 8420".to_owned());
        assert_eq!(judge(name, Some(at), Some(&proof), "join-phx-b"), stranger);
        // Somebody who heard it, and would rather have the machine at an address of their own.
        assert_eq!(judge(name, Some("10.0.0.66:8420"), Some(&proof), token), stranger);
        assert_eq!(judge(name, Some(at), None, token), stranger);
        assert_eq!(judge(name, None, Some(&proof), token), stranger);
        let nonsense = trust::hex(&trust::announced(token, "nowhere"));
        assert_eq!(judge(name, Some("nowhere"), Some(&nonsense), token), stranger);
    }

    #[test]
    fn places_are_those_that_others_can_reach_private_ones_first_and_few() {
        let ips = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().expect("an address")).collect::<Vec<IpAddr>>()
        };
        let listens: SocketAddr = "0.0.0.0:8420".parse().expect("an address");
        let own = ips(&["127.0.0.1", "169.254.1.1", "100.64.0.9", "10.0.0.5", "fe80::1", "2001:db8::1"]);
        assert_eq!(written(&places(listens, own.clone())), "10.0.0.5:8420,100.64.0.9:8420");
        let listens: SocketAddr = "[::]:8420".parse().expect("an address");
        assert_eq!(written(&places(listens, own)), "10.0.0.5:8420,100.64.0.9:8420,[2001:db8::1]:8420");
        let listens: SocketAddr = "127.0.0.1:8420".parse().expect("an address");
        assert_eq!(places(listens, vec![listens.ip()]), []);
        let many = (0..100).map(|i| IpAddr::from([10, 0, 0, i])).collect();
        let written = written(&places("0.0.0.0:8420".parse().expect("an address"), many));
        assert!((200..=PLACES_BYTES_MAX).contains(&written.len()), "{written}");
    }
}
