//! From the host that a sandbox asks for to a connection: decide, resolve, decide again, connect what was decided.

use std::{
    collections::HashSet,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cloud_sandbox_model::{NetworkPolicy, network::Decision};
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    Network,
    flow::Flow,
    log::{Line, Outcome},
    metered::{Meter, Metered},
};

/// How long a name may take to be resolved.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connecting may take, through all addresses.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// When the next address is tried beside one that has not answered (RFC 8305, section 5).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// The most addresses of one name that are tried.
const ADDRESSES_MAX: usize = 16;

/// Why a connection was not made.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// the policy says no
    Denied(Decision),
    /// the name has no address
    Unresolved(io::Error),
    /// no address answers
    Unreachable(io::Error),
    /// something took too long
    TimedOut(&'static str),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied(decision) => decision.fmt(f),
            Self::Unresolved(error) => write!(f, "the name could not be resolved: {error}"),
            Self::Unreachable(error) => write!(f, "no connection could be made: {error}"),
            Self::TimedOut(what) => write!(f, "{what} took too long"),
        }
    }
}

impl Refusal {
    /// A stable word for programs.
    pub(crate) const fn reason(&self) -> &'static str {
        match self {
            Self::Denied(decision) => decision.reason(),
            Self::Unresolved(_) => "unresolved",
            Self::Unreachable(_) => "unreachable",
            Self::TimedOut(_) => "timed_out",
        }
    }
}

impl Network {
    /// Connects to what a sandbox asks for, or says why not, which is counted and logged then.
    pub(crate) async fn dial(
        self: &Arc<Self>,
        mode: &'static str,
        host: &str,
        port: u16,
    ) -> Result<(Flow, Metered<TcpStream>), Refusal> {
        let began = Instant::now();
        // a change from here on is seen by the flow, which has this very receiver
        let mut policy = self.policy.clone();
        let mut decided = None;
        match self.reach(&mut policy, mode, host, port, &mut decided).await {
            Ok((address, stream)) => {
                let meter = Arc::new(Meter::new(Arc::clone(self)));
                let flow =
                    Flow::new(Arc::clone(self), policy, mode, host.to_owned(), address, port, Arc::clone(&meter));
                Ok((flow, Metered::new(stream, meter)))
            }
            Err(refusal) => {
                self.note_refusal(mode, host, port, decided, &refusal, began);
                Err(refusal)
            }
        }
    }

    /// Allows a sandbox to exchange datagrams with an address, or says why not.
    pub(crate) fn admit(self: &Arc<Self>, mode: &'static str, address: IpAddr, port: u16) -> Result<Flow, Decision> {
        let mut policy = self.policy.clone();
        let host = address.to_string();
        let gone = policy.has_changed().is_err();
        let decision = self.decide(&policy.borrow_and_update(), mode, &host, address, port);
        if gone || !decision.is_allowed() {
            return Err(if gone { Decision::ModeNone } else { decision });
        }
        let meter = Arc::new(Meter::new(Arc::clone(self)));
        Ok(Flow::new(Arc::clone(self), policy, mode, host, address, port, meter))
    }

    /// Counts and logs a connection that was not made.
    pub(crate) fn note_refusal(
        &self,
        mode: &'static str,
        host: &str,
        port: u16,
        address: Option<IpAddr>,
        refusal: &Refusal,
        began: Instant,
    ) {
        let outcome = match refusal {
            Refusal::Denied(_) => {
                self.counters.denied.fetch_add(1, Ordering::Relaxed);
                Outcome::Denied
            }
            _ => Outcome::Failed,
        };
        let duration = began.elapsed();
        let reason = &refusal.reason();
        self.log.write(&Line { mode, host, port, address, outcome, reason, sent: 0, received: 0, duration });
    }

    async fn reach(
        &self,
        policy: &mut watch::Receiver<NetworkPolicy>,
        mode: &'static str,
        host: &str,
        port: u16,
        decided: &mut Option<IpAddr>,
    ) -> Result<(IpAddr, TcpStream), Refusal> {
        let gone = policy.has_changed().is_err();
        let decision = policy.borrow_and_update().decide_name(host, port, &self.own);
        let decision = if gone { Decision::ModeNone } else { decision };
        if !decision.is_allowed() {
            return Err(Refusal::Denied(decision));
        }
        let addresses = self.resolve(host).await?;
        let mut denied = None;
        let allowed = {
            let policy = policy.borrow_and_update();
            let allows = |address: &IpAddr| {
                let decision = self.decide(&policy, mode, host, *address, port);
                let allowed = decision.is_allowed();
                if !allowed && denied.is_none() {
                    *decided = Some(*address);
                    denied = Some(decision);
                }
                allowed
            };
            addresses.into_iter().filter(allows).collect::<Vec<_>>()
        };
        if allowed.is_empty() {
            return Err(denied.map_or_else(|| Refusal::Unresolved(no_address()), Refusal::Denied));
        }
        *decided = allowed.first().copied();
        let connected = timeout(CONNECT_TIMEOUT, self.connect(interleaved(allowed), port)).await;
        connected.map_err(|_| Refusal::TimedOut("connecting"))?.map_err(Refusal::Unreachable)
    }

    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, Refusal> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse() {
            return Ok(vec![address]);
        }
        let lookup = async {
            let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
            let (upstream, host) = (Arc::clone(&self.upstream), host.to_owned());
            // in a task of its own, so that the permit is given back when the lookup has really ended, not when nobody waits
            // for it any more
            let lookup = tokio::spawn(async move {
                let _permit = permit;
                upstream.resolve(&host).await
            });
            lookup.await.map_err(io::Error::other)?
        };
        let found = timeout(RESOLVE_TIMEOUT, lookup).await.map_err(|_| Refusal::TimedOut("resolving the name"))?;
        let mut seen = HashSet::new();
        let mut addresses = found.map_err(Refusal::Unresolved)?;
        addresses.retain(|address| seen.insert(*address));
        addresses.truncate(ADDRESSES_MAX);
        Ok(addresses)
    }

    /// Connects to the first address that answers: one after the other, the next as soon as one has failed or not answered in a while.
    async fn connect(&self, addresses: Vec<IpAddr>, port: u16) -> io::Result<(IpAddr, TcpStream)> {
        let mut trying = FuturesUnordered::new();
        let mut failed = no_address();
        for address in addresses {
            trying.push(async move { (address, self.upstream.connect(SocketAddr::new(address, port)).await) });
            let next = sleep_until(Instant::now() + NEXT_ADDRESS);
            tokio::select! {
                Some((address, result)) = trying.next() => match result {
                    Ok(stream) => return Ok((address, stream)),
                    Err(error) => failed = error,
                },
                () = next => {}
            }
        }
        while let Some((address, result)) = trying.next().await {
            match result {
                Ok(stream) => return Ok((address, stream)),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

fn no_address() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "it has no address")
}

/// The addresses with the families taking turns, in the resolver's order otherwise (RFC 8305, section 4).
fn interleaved(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let first_is_v6 = addresses.first().is_some_and(IpAddr::is_ipv6);
    let count = addresses.len();
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut mixed = Vec::with_capacity(count);
    while mixed.len() < count {
        mixed.extend(first.next());
        mixed.extend(second.next());
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect::<Vec<_>>();
        let mixed = interleaved(addresses(&["2001:db8::1", "2001:db8::2", "2001:db8::3", "203.0.113.1"]));
        assert_eq!(mixed, addresses(&["2001:db8::1", "203.0.113.1", "2001:db8::2", "2001:db8::3"]));
        assert_eq!(interleaved(Vec::new()), Vec::<IpAddr>::new());
    }
}
