//! Typed ids: a kind's prefix and a lower-case ULID, `[a-z0-9]` only, so that an id fits a DNS label, a file name and a
//! cgroup. Ids of one kind sort by the time they were made.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use ulid::Ulid;

use crate::error::{Error, reason};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $prefix:literal, $field:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Ulid);

        impl $name {
            /// What ids of this kind begin with.
            pub const PREFIX: &'static str = $prefix;

            /// A new id, later in order than those made in earlier milliseconds.
            #[must_use]
            pub fn generate() -> Self {
                Self(Ulid::generate())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                f.write_str(&self.0.to_string().to_ascii_lowercase())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                parse(text, $prefix).map(Self).ok_or_else(|| {
                    Error::invalid($field, concat!("must be '", $prefix, "' and 26 lower-case letters and digits"))
                        .with_reason(reason::INVALID_ID)
                })
            }
        }
    )*};
}

ids! {
    /// A sandbox.
    SandboxId, "sb", "sandbox_id";
    /// A session.
    SessionId, "se", "session_id";
    /// One run of code, a command or a program.
    ExecutionId, "ex", "execution_id";
    /// An interpreter whose variables live from call to call.
    ContextId, "cx", "context_id";
    /// A session's work at one moment.
    CheckpointId, "cp", "checkpoint_id";
    /// One machine's node process. A restarted node is a new one.
    NodeId, "nd", "node_id";
}

/// The ULID of an id in its one accepted spelling.
fn parse(text: &str, prefix: &str) -> Option<Ulid> {
    let digits = text.strip_prefix(prefix)?;
    if digits.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let ulid = Ulid::from_string(digits).ok()?;
    // Crockford's alphabet reads `o` as `0` and so on; two spellings must not name one thing
    (ulid.to_string().to_ascii_lowercase() == digits).then_some(ulid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_parsed_back_from_its_text() {
        let id = SandboxId::generate();
        assert_eq!(id.to_string().parse::<SandboxId>().unwrap(), id);
        assert_eq!(id.to_string().len(), 28);
    }

    #[test]
    fn other_kinds_cases_and_spellings_are_refused() {
        let id = SandboxId::generate().to_string();
        let wrong = [
            String::new(),
            "sb".into(),
            id.to_uppercase(),
            id.replacen("sb", "se", 1),
            format!("{id}0"),
            "sb01jd8z4n00000000000000000o".into(),
            "sb../../../../etc/passwd/xxxxx".into(),
        ];
        for text in wrong {
            assert!(text.parse::<SandboxId>().is_err(), "{text}");
        }
    }
}
