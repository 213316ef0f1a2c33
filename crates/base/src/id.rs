//! Identities: 128-bit values with a prefix that says what they name, and the names of models.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::rng::Rng;

/// Why a text is not an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: expected {prefix:?} and 32 hexadecimal digits")]
pub struct ParseIdError {
    text: String,
    what: &'static str,
    prefix: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u128);

        impl $name {
            /// The text that every identity of this kind begins with.
            pub const PREFIX: &'static str = $prefix;

            /// A fresh identity, drawn from `rng`.
            pub fn random(rng: &mut Rng) -> Self {
                Self((u128::from(rng.next_u64()) << 64) | u128::from(rng.next_u64()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{:032x}", $prefix, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;
            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let wrong = || ParseIdError {
                    text: text.chars().take(64).collect(),
                    what: $what,
                    prefix: $prefix,
                };
                let digits = text.strip_prefix($prefix).ok_or_else(wrong)?;
                if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(wrong());
                }
                u128::from_str_radix(digits, 16).map(Self).map_err(|_| wrong())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id! {
    /// A host with a provider on it: the first 16 bytes of the SHA-256 of its public signing key, so that it
    /// survives restarts and cannot be claimed without the key.
    MachineId, "m_", "a machine"
}
id! {
    /// One placed replica of a model.
    InstanceId, "ins_", "an instance"
}
id! {
    /// One call of a client, from its arrival to its one terminal.
    RequestId, "req_", "a request"
}
id! {
    /// One try of a request on one instance: every try has a fresh identity and fresh keys.
    AttemptId, "att_", "an attempt"
}
id! {
    /// Who pays, and between whom the queue is fair.
    AccountId, "acc_", "an account"
}
id! {
    /// An API key's public identity (never the secret).
    KeyId, "key_", "an API key's id"
}

/// Which start of a machine this is. Grows with every start, so that a message from an earlier life is known as
/// such. Unit: microseconds of wall time at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// The name under which a model is served. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelName(Arc<str>);

impl ModelName {
    /// Names `text`.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ModelName {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_what_it_shows() {
        let id = RequestId::random(&mut Rng::new(7));
        assert_eq!(id.to_string().parse::<RequestId>(), Ok(id));
        assert!(id.to_string().starts_with("req_"));
    }

    #[test]
    fn a_wrong_prefix_length_or_digit_is_refused_with_what_was_expected() {
        for text in
            ["", "req_", "att_00000000000000000000000000000000", "req_+0000000000000000000000000000000"]
        {
            let error = text.parse::<RequestId>().unwrap_err().to_string();
            assert!(error.contains("\"req_\" and 32 hexadecimal digits"), "{error}");
        }
    }
}
