//! How a node is called by the address that it gave to the directory, whether it runs in this process or on another
//! machine.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use crate::upstream::{BoxError, Upstream, connect};

/// Makes an upstream of an address.
pub trait Dial: Send + Sync + 'static {
    /// The service at `address`. Making one does no I/O: an address where nothing listens fails at the first call.
    fn dial(&self, address: &str) -> Result<Upstream, BoxError>;
}

/// How many connections are kept. A fleet of this many nodes dials each once; the table of a larger one, or one whose
/// addresses change all the time, starts anew when it is full.
const CONNECTIONS_MAX: usize = 4096;

/// Dials over the network, one connection for each address.
pub struct RemoteDial {
    wrap: Box<dyn Fn(Upstream) -> Upstream + Send + Sync>,
    connections: Mutex<HashMap<String, Upstream>>,
}

impl RemoteDial {
    /// A dial whose every upstream goes through `wrap` once, to have the caller's identity attached for example.
    #[must_use]
    pub fn new(wrap: impl Fn(Upstream) -> Upstream + Send + Sync + 'static) -> Self {
        Self { wrap: Box::new(wrap), connections: Mutex::default() }
    }
}

impl Dial for RemoteDial {
    fn dial(&self, address: &str) -> Result<Upstream, BoxError> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = connections.get(address) {
            return Ok(upstream.clone());
        }
        let upstream = (self.wrap)(connect(address)?);
        if connections.len() >= CONNECTIONS_MAX {
            // calls under way hold their own handle and are not cut
            connections.clear();
        }
        connections.insert(address.to_owned(), upstream.clone());
        Ok(upstream)
    }
}

/// Dials services of this process: an address is a name that one was put under. Clones share the names.
#[derive(Clone, Default)]
pub struct LocalDial(Arc<RwLock<HashMap<String, Upstream>>>);

impl LocalDial {
    /// A dial that knows no address yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `upstream` under `address`, instead of what was there.
    pub fn put(&self, address: &str, upstream: Upstream) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), upstream);
    }

    /// Forgets `address`.
    pub fn remove(&self, address: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(address);
    }
}

impl Dial for LocalDial {
    fn dial(&self, address: &str) -> Result<Upstream, BoxError> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).get(address).cloned();
        known.ok_or_else(|| format!("no service of this process is at {address}").into())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use http::{Request, Response};
    use tonic::body::Body;

    use super::*;
    use crate::upstream::in_process;

    #[tokio::test]
    async fn address_is_dialled_once_and_wrapped() {
        let wrapped = Arc::new(AtomicUsize::new(0));
        let count = wrapped.clone();
        let dial = RemoteDial::new(move |upstream| {
            count.fetch_add(1, Ordering::Relaxed);
            upstream
        });
        for address in ["http://10.0.0.1:1", "http://10.0.0.2:1", "http://10.0.0.1:1"] {
            assert!(dial.dial(address).is_ok());
        }
        assert_eq!(wrapped.load(Ordering::Relaxed), 2);
        assert!(dial.dial("not an address").is_err());
    }

    #[tokio::test]
    async fn connections_are_bounded() {
        let dial = RemoteDial::new(|upstream| upstream);
        for number in 0..=CONNECTIONS_MAX {
            dial.dial(&format!("http://10.0.{}.{}:1", number / 256, number % 256)).unwrap();
        }
        assert_eq!(dial.connections.lock().unwrap().len(), 1);
    }

    #[test]
    fn local_dial_knows_what_was_put_until_it_is_removed() {
        let service = tower::service_fn(|_: Request<Body>| async { Ok::<_, Infallible>(Response::new(Body::empty())) });
        let dial = LocalDial::new();
        let clone = dial.clone();
        dial.put("node", in_process(service));
        assert!(clone.dial("node").is_ok());
        dial.remove("node");
        assert!(dial.dial("node").is_err());
    }
}
