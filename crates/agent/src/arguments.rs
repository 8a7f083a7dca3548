//! The command line.

use std::{fmt, os::fd::RawFd};

const USAGE: &str = "usage: cloud-sandbox-agent (--listen-fd FD | --listen PATH | --dial PATH | --stdio) [--proc-fd FD | --apart-from UID]";

/// What the agent is told.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Arguments {
    pub(crate) way_in: WayIn,
    /// where to read about processes, instead of `/proc`
    pub(crate) proc: Option<RawFd>,
    /// whom to act as, under an id that is another's
    pub(crate) apart_from: Option<u32>,
}

/// How the node's connections come in.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum WayIn {
    Inherited(RawFd),
    Listen(String),
    Dial(String),
    Stdio,
}

impl Arguments {
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut value = || arguments.next().ok_or_else(|| USAGE.to_owned());
        let way_in = match value()?.as_str() {
            "--listen-fd" => WayIn::Inherited(descriptor("--listen-fd", &value()?)?),
            "--listen" => WayIn::Listen(value()?),
            "--dial" => WayIn::Dial(value()?),
            "--stdio" => WayIn::Stdio,
            _ => return Err(USAGE.to_owned()),
        };
        let (mut proc, mut apart_from) = (None, None);
        match arguments.next().as_deref() {
            None => {}
            Some("--proc-fd") => proc = Some(descriptor("--proc-fd", &arguments.next().ok_or(USAGE)?)?),
            Some("--apart-from") => apart_from = Some(user(&arguments.next().ok_or(USAGE)?)?),
            Some(_) => return Err(USAGE.to_owned()),
        }
        if arguments.next().is_some() { Err(USAGE.to_owned()) } else { Ok(Self { way_in, proc, apart_from }) }
    }
}

fn descriptor(name: &str, value: &str) -> Result<RawFd, String> {
    match value.parse() {
        Ok(fd) if fd > 2 => Ok(fd),
        _ => Err(format!("{name} must be a number above 2, not {value:?}")),
    }
}

fn user(value: &str) -> Result<u32, String> {
    // the highest is nobody's: calls take it for "as it is"
    let user = value.parse().ok().filter(|user| *user != u32::MAX);
    user.ok_or_else(|| format!("--apart-from must be a user's number, not {value:?}"))
}

impl fmt::Display for WayIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inherited(fd) => write!(f, "--listen-fd {fd}"),
            Self::Listen(path) => write!(f, "--listen {path}"),
            Self::Dial(path) => write!(f, "--dial {path}"),
            Self::Stdio => write!(f, "--stdio"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<(WayIn, Option<RawFd>), String> {
        let Arguments { way_in, proc, .. } = Arguments::parse(arguments.iter().map(ToString::to_string))?;
        Ok((way_in, proc))
    }

    #[test]
    fn one_way_in_is_taken() {
        assert_eq!(parsed(&["--listen-fd", "3"]), Ok((WayIn::Inherited(3), None)));
        assert_eq!(parsed(&["--listen-fd", "3", "--proc-fd", "4"]), Ok((WayIn::Inherited(3), Some(4))));
        assert_eq!(parsed(&["--listen", "/run/a.sock"]), Ok((WayIn::Listen("/run/a.sock".to_owned()), None)));
        assert_eq!(parsed(&["--dial", "/run/n.sock"]), Ok((WayIn::Dial("/run/n.sock".to_owned()), None)));
        assert_eq!(parsed(&["--stdio"]), Ok((WayIn::Stdio, None)));
        assert_eq!(parsed(&["--stdio", "--proc-fd", "4"]), Ok((WayIn::Stdio, Some(4))));
    }

    #[test]
    fn user_to_stand_apart_from_is_a_number() {
        let arguments = ["--stdio", "--apart-from", "1000"].map(ToString::to_string);
        assert_eq!(Arguments::parse(arguments.into_iter()).map(|told| told.apart_from), Ok(Some(1000)));
    }

    #[test]
    fn anything_else_is_refused() {
        for arguments in [
            &["--listen-fd", "3", "--proc-fd"][..],
            &["--listen-fd", "3", "--proc-fd", "x"],
            &[],
            &["--listen-fd"],
            &["--listen-fd", "2"],
            &["--listen", "a", "b"],
            &["--dial"],
            &["--dial", "a", "--stdio"],
            &["--stdio", "--listen", "a"],
            &["--stdio", "--proc-fd", "4", "x"],
            &["--stdio", "--apart-from"],
            &["--stdio", "--apart-from", "ada"],
            &["--stdio", "--apart-from", "4294967295"],
            &["--help", "x"],
        ] {
            assert!(parsed(arguments).is_err(), "{arguments:?}");
        }
    }
}
