//! The addresses of the machine, as they are now: interfaces come and go.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cloud_sandbox_model::network::HostAddresses;
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};
use tokio::time::Instant;

/// How long what was seen is believed: looking costs as much as there are interfaces.
const BELIEVED: Duration = Duration::from_secs(10);

/// The addresses, looked at again from time to time.
#[derive(Default)]
pub(crate) struct OwnAddresses(Mutex<Option<(Instant, Arc<HostAddresses>)>>);

impl OwnAddresses {
    pub(crate) fn now(&self) -> Arc<HostAddresses> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            Some((at, addresses)) if at.elapsed() < BELIEVED => Arc::clone(addresses),
            _ => {
                let addresses = Arc::new(look());
                *seen = Some((Instant::now(), Arc::clone(&addresses)));
                addresses
            }
        }
    }
}

fn look() -> HostAddresses {
    match getifaddrs() {
        Ok(interfaces) => interfaces.filter_map(|interface| ip(&interface.address?)).collect(),
        Err(error) => {
            // loopback and private ranges are refused without it
            tracing::warn!(%error, "the addresses of this machine are not known");
            HostAddresses::default()
        }
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_them() {
        assert!(OwnAddresses::default().now().contains(IpAddr::from([127, 0, 0, 1])));
    }
}
