//! Where a provider joins: the address that a person typed, as the uplink's address.

use tokio_tungstenite::tungstenite::http::Uri;

/// Why an address cannot be joined.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Nothing was given.
    #[error("no coordinator to join: give its address, for example --join http://192.168.1.10:8080")]
    Missing,
    /// Not an address.
    #[error("{text:?} is no address of a coordinator: expected http://HOST:PORT or https://HOST")]
    Misshapen {
        /// What was given.
        text: String,
    },
    /// Another scheme.
    #[error("{text:?} begins with {scheme:?}: a coordinator is joined by http, https, ws or wss")]
    Scheme {
        /// What was given.
        text: String,
        /// Its scheme.
        scheme: String,
    },
    /// Something that has no place in it.
    #[error("{text:?} holds {what}, which has no place in a coordinator's address: leave it out")]
    Surplus {
        /// What was given, as far as it may be shown.
        text: String,
        /// What is too much.
        what: &'static str,
    },
}

/// A coordinator's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The uplink's own address: `ws` or `wss`.
    pub(crate) url: String,
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl Target {
    /// Reads what a person typed: with or without scheme, path or a final slash.
    pub(crate) fn parse(text: &str) -> Result<Self, TargetError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(TargetError::Missing);
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (tls, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => (false, 80),
            "https" | "wss" => (true, 443),
            _ => return Err(TargetError::Scheme { text: text.to_owned(), scheme: scheme.to_owned() }),
        };
        if rest.split(['/', '?']).next().is_some_and(|authority| authority.contains('@')) {
            // What stands before the @ may be a password: it is not shown.
            let shown = format!("{scheme}://...@{}", rest.rsplit('@').next().unwrap_or_default());
            return Err(TargetError::Surplus { text: shown, what: "a user name" });
        }
        if rest.contains(['?', '#']) {
            return Err(TargetError::Surplus { text: text.to_owned(), what: "a query" });
        }
        let misshapen = || TargetError::Misshapen { text: text.to_owned() };
        let base = rest.trim_end_matches('/');
        let base = base.strip_suffix("/api/uplink").unwrap_or(base);
        let url = format!("{}://{base}/api/uplink", if tls { "wss" } else { "ws" });
        let uri: Uri = url.parse().map_err(|_| misshapen())?;
        let authority = uri.authority().ok_or_else(misshapen)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() {
            return Err(misshapen());
        }
        let port = match authority.as_str().rsplit_once(':') {
            Some((_, digits)) if !digits.ends_with(']') => {
                digits.parse().ok().filter(|port| *port != 0).ok_or_else(misshapen)?
            }
            _ => default_port,
        };
        Ok(Self { url, host, port, tls })
    }

    /// Whether what is sent stays on this machine.
    pub(crate) fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_type_becomes_the_uplinks_address() {
        for (typed, url, host, port, tls) in [
            ("http://10.0.0.1:8080", "ws://10.0.0.1:8080/api/uplink", "10.0.0.1", 8080, false),
            ("http://10.0.0.1:8080/", "ws://10.0.0.1:8080/api/uplink", "10.0.0.1", 8080, false),
            ("10.0.0.1:8080", "ws://10.0.0.1:8080/api/uplink", "10.0.0.1", 8080, false),
            ("https://llm.example.org", "wss://llm.example.org/api/uplink", "llm.example.org", 443, true),
            ("wss://h/base", "wss://h/base/api/uplink", "h", 443, true),
            ("ws://h:1/api/uplink", "ws://h:1/api/uplink", "h", 1, false),
            ("HTTP://localhost", "ws://localhost/api/uplink", "localhost", 80, false),
            ("http://[::1]:8080", "ws://[::1]:8080/api/uplink", "::1", 8080, false),
            ("http://[::1]", "ws://[::1]/api/uplink", "::1", 80, false),
        ] {
            let target = Target::parse(typed).unwrap_or_else(|e| panic!("{typed}: {e}"));
            let expected = Target { url: url.into(), host: host.into(), port, tls };
            assert_eq!(target, expected, "{typed}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_to_type_instead() {
        for (typed, says) in [
            ("", "--join"),
            ("ftp://h", "\"ftp\""),
            ("http://", "expected http"),
            ("http://h:99999", "expected http"),
            ("http://h:0", "expected http"),
            ("http://a b", "expected http"),
            ("http://h?x=1", "a query"),
        ] {
            let error = Target::parse(typed).expect_err(typed).to_string();
            assert!(error.contains(says), "{typed}: {error}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_not_repeated() {
        let error = Target::parse("http://me:secret@h:80").expect_err("a user name").to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn loopback_is_told_from_a_network() {
        assert!(Target::parse("http://127.0.0.1:1").expect("valid").is_loopback());
        assert!(Target::parse("http://[::1]:1").expect("valid").is_loopback());
        assert!(!Target::parse("http://10.0.0.1:1").expect("valid").is_loopback());
    }
}
