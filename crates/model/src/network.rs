//! What of the network a sandbox may reach: policies as callers write them, and the one place that decides.
//!
//! A connection is decided twice, before its name is resolved ([`NetworkPolicy::decide_name`]) and for the very address that is
//! about to be connected ([`NetworkPolicy::decide_address`]), so a name that resolves to something else the next time gains
//! nothing. A name that is not allowed as a name is never resolved: a query for it would carry data out as well as a connection does.
//!
//! Invariant: no policy that parses allows an address that can never be reached; the rules are asked after the ranges.

mod reach;
mod rule;

#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt, net::IpAddr};

pub use reach::{canonical, never_reachable, never_reachable_name, private};
pub use rule::{Host, Name, Ports, Range, Rule};

use crate::{
    error::{Result, Violation},
    input::Violations,
};

/// The most entries of `allow`, and of `deny`.
pub const ENTRIES_MAX: usize = 256;
/// What `allow` means by an entry without a port.
pub const DEFAULT_PORTS: [u16; 2] = [80, 443];

/// What of the network a sandbox sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NetworkMode {
    /// nothing but a loopback of its own
    #[default]
    None,
    /// what the policy allows, through the node's proxy
    Egress,
    /// an interface of its own, by which every public address can be reached
    Open,
}

impl NetworkMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::None, Self::Egress, Self::Open];

    /// The mode's word, as files of templates have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Egress => "egress",
            Self::Open => "open",
        }
    }

    /// The mode of a word; empty is the default.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        if word.is_empty() { Some(Self::None) } else { Self::ALL.into_iter().find(|mode| mode.as_str() == word) }
    }

    /// The number that the contract has for it.
    #[must_use]
    pub const fn number(self) -> i32 {
        match self {
            Self::None => 1,
            Self::Egress => 2,
            Self::Open => 3,
        }
    }

    /// The mode of a number of the contract; 0, not given, is the default.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        if number == 0 { Some(Self::None) } else { Self::ALL.into_iter().find(|mode| mode.number() == number) }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The addresses of the host that sandboxes run on. None of them can be reached from a sandbox, whatever a policy says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostAddresses(HashSet<IpAddr>);

impl HostAddresses {
    /// Whether the address is the host's own, in whatever form it is written.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&canonical(address))
    }
}

impl FromIterator<IpAddr> for HostAddresses {
    fn from_iter<T: IntoIterator<Item = IpAddr>>(addresses: T) -> Self {
        Self(addresses.into_iter().map(canonical).collect())
    }
}

/// What was decided about one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// it may be made
    Allowed,
    /// the sandbox has no network
    ModeNone,
    /// no entry of `allow` is about this host
    NotInList,
    /// this entry of `deny` is
    DeniedByList(Rule),
    /// nobody can reach this; what it is
    NeverReachable(&'static str),
    /// a private address that `allow` does not name by address; its range
    Private(&'static str),
    /// `allow` has the host, but not this port
    PortNotAllowed,
}

impl Decision {
    /// Whether the connection may be made.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        *self == Self::Allowed
    }

    /// A stable word for programs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::ModeNone => "mode_none",
            Self::NotInList => "not_in_list",
            Self::DeniedByList(_) => "denied_by_list",
            Self::NeverReachable(_) => "never_reachable",
            Self::Private(_) => "private",
            Self::PortNotAllowed => "port_not_allowed",
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("allowed"),
            Self::ModeNone => f.write_str("this sandbox has no network"),
            Self::NotInList => f.write_str("the host is not in the list of allowed hosts"),
            Self::DeniedByList(rule) => write!(f, "denied by the entry `{rule}`"),
            Self::NeverReachable(what) => write!(f, "can never be reached from a sandbox: {what}"),
            Self::Private(range) => write!(f, "a private address ({range}), which must be allowed by address"),
            Self::PortNotAllowed => f.write_str("the host is allowed, but not on this port"),
        }
    }
}

/// Which hosts a sandbox may reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkPolicy {
    mode: NetworkMode,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

impl NetworkPolicy {
    /// Reads a policy; `field` is what the caller calls it (`network`), `mode` is `None` where there is no such mode. The
    /// error names every broken rule.
    pub fn parse(field: &str, mode: Option<NetworkMode>, allow: &[String], deny: &[String]) -> Result<Self> {
        let mut violations = Violations::default();
        violations.check(mode.is_some(), &format!("{field}.mode"), "must be none, egress or open");
        // with an unknown mode the lists are read as those of the mode that takes most
        let read_as = mode.unwrap_or(NetworkMode::Egress);
        let mut read = |list: List, entries: &[String]| {
            let field = format!("{field}.{}", list.word());
            let unused = read_as == NetworkMode::None && !entries.is_empty();
            violations.check(!unused, &field, "must be empty in mode none");
            violations.check(entries.len() <= ENTRIES_MAX, &field, format!("must have at most {ENTRIES_MAX} entries"));
            let mut rules = Vec::new();
            for (index, entry) in entries.iter().enumerate().take(ENTRIES_MAX) {
                let parsed = entry.parse::<Rule>().and_then(|rule| list.admit(read_as, &rule).map(|()| rule));
                let parsed = parsed.map_err(|rule| Violation { field: format!("{field}[{index}]"), rule });
                match parsed {
                    Ok(rule) => rules.push(rule),
                    Err(violation) => violations.check(false, &violation.field, violation.rule),
                }
            }
            rules
        };
        let (allow, deny) = (read(List::Allow, allow), read(List::Deny, deny));
        violations.finish()?;
        Ok(Self { mode: read_as, allow, deny })
    }

    /// The mode.
    #[must_use]
    pub const fn mode(&self) -> NetworkMode {
        self.mode
    }

    /// The entries of `allow`, as text that parses to the same.
    #[must_use]
    pub fn allow(&self) -> Vec<String> {
        self.allow.iter().map(ToString::to_string).collect()
    }

    /// The entries of `deny`, as text that parses to the same.
    #[must_use]
    pub fn deny(&self) -> Vec<String> {
        self.deny.iter().map(ToString::to_string).collect()
    }

    /// Decides whether a connection to `host`, as the sandbox wrote it, is worth resolving. What is allowed here is still to be
    /// decided by [`Self::decide_address`].
    #[must_use]
    pub fn decide_name(&self, host: &str, port: u16, own: &HostAddresses) -> Decision {
        let host = Asked::new(host);
        match host {
            Asked::Address(address) => self.decide(&host, address, port, own),
            Asked::Name(ref name) => {
                let refused = self.refuse_name(name, port);
                refused.unwrap_or(Decision::Allowed)
            }
        }
    }

    /// Decides whether a connection may be made to `address`, which is what `host` was resolved to just now, or is itself.
    #[must_use]
    pub fn decide_address(&self, host: &str, address: IpAddr, port: u16, own: &HostAddresses) -> Decision {
        self.decide(&Asked::new(host), address, port, own)
    }

    fn decide(&self, host: &Asked, address: IpAddr, port: u16, own: &HostAddresses) -> Decision {
        let address = canonical(address);
        if let Asked::Name(name) = host
            && let Some(refused) = self.refuse_name(name, port)
        {
            return refused;
        }
        if self.mode == NetworkMode::None {
            return Decision::ModeNone;
        }
        if let Some(what) = never_reachable(address) {
            return Decision::NeverReachable(what);
        }
        if own.contains(address) {
            return Decision::NeverReachable("an address of the host");
        }
        if let Some(rule) = self.deny.iter().find(|rule| rule.port_in_deny(port) && rule.host.has_address(address)) {
            return Decision::DeniedByList(rule.clone());
        }
        if let Some(range) = private(address) {
            let named = |rule: &&Rule| matches!(rule.host, Host::Range(_)) && rule.host.has_address(address);
            return self.by_port(named, port, Decision::Private(range));
        }
        match (self.mode, host) {
            // only the port is left to say in mode `open`
            (NetworkMode::Open, _) if port == 0 => Decision::PortNotAllowed,
            (NetworkMode::Open, _) | (_, Asked::Name(_)) => Decision::Allowed,
            (_, Asked::Address(_)) => self.by_port(|rule| rule.host.has_address(address), port, Decision::NotInList),
        }
    }

    /// Why a name is refused before it is resolved, if it is.
    fn refuse_name(&self, name: &str, port: u16) -> Option<Decision> {
        if self.mode == NetworkMode::None {
            return Some(Decision::ModeNone);
        }
        if let Some(what) = never_reachable_name(name) {
            return Some(Decision::NeverReachable(what));
        }
        if let Some(rule) = self.deny.iter().find(|rule| rule.port_in_deny(port) && rule.host.has_name(name)) {
            return Some(Decision::DeniedByList(rule.clone()));
        }
        let decision = match self.mode {
            NetworkMode::Open => Decision::Allowed,
            _ => self.by_port(|rule| rule.host.has_name(name), port, Decision::NotInList),
        };
        (!decision.is_allowed()).then_some(decision)
    }

    /// What the entries of `allow` that are about a host say of a port; `none` where there is none.
    fn by_port(&self, about: impl Fn(&&Rule) -> bool, port: u16, none: Decision) -> Decision {
        let mut known = false;
        for rule in self.allow.iter().filter(about) {
            if rule.port_in_allow(port) {
                return Decision::Allowed;
            }
            known = true;
        }
        if known { Decision::PortNotAllowed } else { none }
    }
}

/// A host as a sandbox asked for it.
enum Asked {
    Address(IpAddr),
    /// in lower case, without the dot of the root
    Name(String),
}

impl Asked {
    fn new(host: &str) -> Self {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        bare.parse()
            .map_or_else(|_| Self::Name(host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()), Self::Address)
    }
}

/// One of the two lists.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    Allow,
    Deny,
}

impl List {
    const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    /// Whether an entry has an effect in this list of a policy of this mode; what it must be otherwise.
    fn admit(self, mode: NetworkMode, rule: &Rule) -> Result<(), String> {
        let named = matches!(rule.host, Host::Name(_) | Host::Below(_));
        if mode == NetworkMode::Open && named {
            return Err("must be an address or a range in mode open, where names are not seen".to_owned());
        }
        if self == Self::Deny {
            return Ok(());
        }
        match &rule.host {
            Host::Name(name) | Host::Below(name) => match never_reachable_name(name.as_str()) {
                Some(what) => Err(format!("must not be {what}, which can never be reached")),
                None => Ok(()),
            },
            Host::Range(range) => match reach::never_reachable_within(*range) {
                Some((never, what)) => Err(format!("must not overlap {never} ({what}), which can never be reached")),
                None if mode == NetworkMode::Open && !reach::all_private(*range) => {
                    Err("must be private in mode open, where public addresses can be reached anyway".to_owned())
                }
                None => Ok(()),
            },
            Host::Any if mode == NetworkMode::Open => {
                Err("must be an address or a range in mode open, where public hosts can be reached anyway".to_owned())
            }
            Host::Any => Ok(()),
        }
    }
}
