//! One entry of a policy: a host and ports.

use std::{fmt, net::IpAddr, str::FromStr};

use super::{DEFAULT_PORTS, reach};

/// The longest name of a host, in bytes (RFC 1035, 2.3.4, as text).
const NAME_MAX: usize = 253;
/// The longest label of a name.
const LABEL_MAX: usize = 63;
/// The longest entry that can be well-formed: a name, a wildcard, a port. What is longer is not quoted back.
const ENTRY_MAX: usize = NAME_MAX + 10;

/// A host and the ports of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// which hosts
    pub host: Host,
    /// which ports
    pub ports: Ports,
}

/// The hosts that an entry is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// the host of this name
    Name(Name),
    /// that, and every name below
    Below(Name),
    /// these addresses
    Range(Range),
    /// every one; in `allow` every public one
    Any,
}

/// The ports that an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// not said: those of the web in `allow`, every one in `deny`
    Unsaid,
    /// every one
    Any,
    /// this one
    One(u16),
}

impl Rule {
    pub(super) fn port_in_allow(&self, port: u16) -> bool {
        port != 0
            && match self.ports {
                Ports::Unsaid => DEFAULT_PORTS.contains(&port),
                Ports::Any => true,
                Ports::One(own) => own == port,
            }
    }

    pub(super) fn port_in_deny(&self, port: u16) -> bool {
        match self.ports {
            Ports::Unsaid | Ports::Any => true,
            Ports::One(own) => own == port,
        }
    }
}

impl Host {
    /// Whether a name, in lower case and without the dot of the root, is one of these.
    pub(super) fn has_name(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => own.as_str() == name,
            Self::Below(own) => {
                let before = name.strip_suffix(own.as_str());
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
            Self::Range(_) => false,
            Self::Any => true,
        }
    }

    /// Whether an address, in its canonical form, is one of these.
    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        match self {
            Self::Name(_) | Self::Below(_) => false,
            Self::Range(range) => range.contains(address),
            Self::Any => true,
        }
    }
}

impl FromStr for Rule {
    type Err = String;

    /// Reads an entry. The error is a rule: words that follow the entry's name.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("must not be empty".to_owned());
        }
        if text.len() > ENTRY_MAX {
            return Err(format!("must be a host with a name of up to {NAME_MAX} characters, and a port"));
        }
        if !text.is_ascii() {
            return Err(format!("must be ASCII, not {text:?}: write an international name as punycode (xn--…)"));
        }
        let (host, port) = split(text)?;
        Ok(Self { host: parse_host(host)?, ports: parse_ports(port)? })
    }
}

/// The host, in brackets where it is IPv6, and the port, if there is one.
fn split(text: &str) -> Result<(&str, Option<&str>), String> {
    let end = match text.strip_prefix('[') {
        None => text.find(':').unwrap_or(text.len()),
        Some(rest) => {
            rest.find(']').map(|end| end + 2).ok_or_else(|| format!("must have a ']' after '[', not {text:?}"))?
        }
    };
    let (host, rest) = text.split_at(end);
    match rest.strip_prefix(':') {
        Some(port) if port.contains(':') => {
            Err(format!("must be a host and a port, with IPv6 in brackets, like [2001:db8::1]:443, not {text:?}"))
        }
        Some(port) => Ok((host, Some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(format!(
            "must have a colon before the port, and the length of a range within the brackets, not {text:?}"
        )),
    }
}

fn parse_ports(port: Option<&str>) -> Result<Ports, String> {
    let Some(port) = port else { return Ok(Ports::Unsaid) };
    if port == "*" {
        return Ok(Ports::Any);
    }
    let plain = port.bytes().all(|byte| byte.is_ascii_digit()) && !port.starts_with('0');
    let number = port.parse().ok().filter(|_| plain);
    number.map(Ports::One).ok_or_else(|| format!("must have a port from 1 to 65535, or '*', not {port:?}"))
}

fn parse_host(host: &str) -> Result<Host, String> {
    if host == "*" {
        return Ok(Host::Any);
    }
    if let Some(inside) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let range = Range::parse(inside)?;
        return if range.address.is_ipv6() {
            Ok(Host::Range(range))
        } else {
            Err(format!("must have brackets around IPv6 alone, not {host:?}"))
        };
    }
    if host.contains('/') || host.parse::<IpAddr>().is_ok() {
        return Range::parse(host).map(Host::Range);
    }
    match host.strip_prefix("*.") {
        Some(name) => Name::parse(name).map(Host::Below),
        None => Name::parse(host).map(Host::Name),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => f.write_str(name.as_str())?,
            Host::Below(name) => write!(f, "*.{}", name.as_str())?,
            Host::Range(range) if range.address.is_ipv6() => write!(f, "[{range}]")?,
            Host::Range(range) => write!(f, "{range}")?,
            Host::Any => f.write_str("*")?,
        }
        match self.ports {
            Ports::Unsaid => Ok(()),
            Ports::Any => f.write_str(":*"),
            Ports::One(port) => write!(f, ":{port}"),
        }
    }
}

/// A name of a host: labels of letters, digits and hyphens, in lower case, without the dot of the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn parse(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let good = |label: &str| {
            (1..=LABEL_MAX).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > NAME_MAX || !name.split('.').all(good) {
            return Err(format!(
                "must be a host name (labels of letters, digits and hyphens; '*.' in front means all names below), an \
                 address, a range or '*', not {text:?}"
            ));
        }
        // what resolvers take for an address (0x7f.1, 2130706433) is none that a rule could be about
        let last = name.rsplit('.').next().unwrap_or(name);
        let hexadecimal = last.strip_prefix("0x").or_else(|| last.strip_prefix("0X"));
        let number = hexadecimal.map_or_else(
            || last.bytes().all(|byte| byte.is_ascii_digit()),
            |digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        );
        if number {
            return Err(format!(
                "must be an address of four decimal numbers, or a name that does not end in a number, not {text:?}"
            ));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

/// Addresses with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    address: IpAddr,
    prefix: u8,
}

impl Range {
    /// The range of `prefix` bits that begins at `address`, which has no other bits set.
    pub(super) const fn new(address: IpAddr, prefix: u8) -> Self {
        Self { address, prefix }
    }

    /// Whether the address is one of these.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() == other.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                own.to_bits() == other.to_bits() & mask
            }
            _ => false,
        }
    }

    /// Whether every address of `other` is one of these.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.address)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| format!("must have an address, not {address:?}"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let plain = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        let prefix = match prefix {
            None => bits,
            Some(text) => Some(text)
                .filter(plain)
                .and_then(|text| text.parse().ok())
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| format!("must have a prefix from 1 to {bits}, not {text:?}"))?,
        };
        if prefix == 0 {
            return Err("must be '*' where every host is meant".to_owned());
        }
        let range = Self { address, prefix };
        if !range.contains(address) {
            return Err(format!("must have no bits set after the first {prefix}, as in {}", range.masked()));
        }
        // rules are asked about the IPv4 address that such a form means
        if let Some(form) = reach::embedding(range) {
            return Err(format!("must be written as the IPv4 address that it means, not in {form}"));
        }
        Ok(range)
    }

    fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(own) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4((own.to_bits() & mask).into())
            }
            IpAddr::V6(own) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6((own.to_bits() & mask).into())
            }
        };
        Self { address, ..self }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == whole { write!(f, "{}", self.address) } else { write!(f, "{}/{}", self.address, self.prefix) }
    }
}
