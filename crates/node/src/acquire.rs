//! Acquire: from a request to a sandbox that is its owner's.

use std::{collections::HashMap, sync::Arc, time::Duration, time::SystemTime};

use cloud_sandbox_model::{
    Limits,
    error::{Error, ErrorKind, Result, reason},
    input::Violations,
};
use cloud_sandbox_proto::{node::v1::Owner, v1};
use cloud_sandbox_rpc::{from_status, limits_of, network_policy, to_status};
use tokio::time::timeout;
use tracing::Instrument;

use crate::{
    claims::{Acquired, Turn},
    fingerprint,
    node::Shared,
    pool::{Slot, Taken, Way},
    sandbox::{ClaimKey, EndCause, Lease, Purpose, spawn},
    templates::Origin,
};

/// A lease unless the caller says otherwise, in seconds.
const TIMEOUT_DEFAULT: u32 = 300;
/// The longest lease, in seconds.
pub(crate) const TIMEOUT_MAX: u32 = 86_400;
/// Sandboxes may end while they are handed over; so many in a row are no accident.
const ATTEMPTS: usize = 8;

/// What a caller wants, validated.
struct Wanted {
    template: String,
    limits: Limits,
    lease: Lease,
}

/// Claims a warm sandbox or has one made.
pub(crate) async fn acquire(node: &Arc<Shared>, owner: Owner, request: v1::AcquireSandboxRequest) -> Result<Acquired> {
    let fingerprint = (!request.request_id.is_empty()).then(|| fingerprint::of_acquire(&request));
    let wanted = validate(node, owner, request)?;
    let (Some(key), Some(fingerprint)) = (wanted.lease.claim.clone(), fingerprint) else {
        return admit(node, wanted).await;
    };
    let mut outcome = match node.claims.turn(&key, fingerprint) {
        Turn::Later(outcome) => outcome,
        Turn::Reused => {
            let message = format!("request_id {} stands for another acquire", key.2);
            return Err(Error::new(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, message));
        }
        Turn::First(sender, outcome) => {
            // in a task of its own: a retry finds the answer even when this caller hangs up
            let admission = {
                let node = Arc::clone(node);
                async move {
                    let result = admit(&node, wanted).await.map_err(to_status);
                    sender.send_replace(Some(result));
                    node.claims.forget_failed(&key);
                }
            };
            node.tasks.spawn(admission.in_current_span());
            outcome
        }
    };
    let answer = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
    match answer {
        Ok(Some(result)) => result.map_err(|status| from_status(&status)),
        Ok(None) | Err(_) => Err(Error::internal("acquire a sandbox", "its task ended without an answer")),
    }
}

fn validate(node: &Shared, owner: Owner, request: v1::AcquireSandboxRequest) -> Result<Wanted> {
    let origin = node.templates.find(&request.template);
    let own = origin.as_ref().map_or(node.options.default_limits, |origin| origin.limits);
    let mut violations = Violations::default();
    violations.name("owner.tenant", &owner.tenant);
    violations.name("owner.user_id", &owner.user_id);
    violations.range("timeout_seconds", &request.timeout_seconds, &0, &TIMEOUT_MAX);
    violations.env("env", &request.env);
    violations.metadata("metadata", &request.metadata);
    violations.request_id("request_id", &request.request_id);
    let network = violations.take(network_policy("network", request.network.as_ref())).unwrap_or_default();
    let wanted = request.limits.map_or(Limits::UNSET, limits_of);
    let limits = violations.take(own.overlaid(wanted, node.options.max_limits)).unwrap_or(own);
    violations.finish()?;
    origin?;

    let seconds = if request.timeout_seconds == 0 { TIMEOUT_DEFAULT } else { request.timeout_seconds };
    let length = Duration::from_secs(seconds.into());
    let acquired_at = SystemTime::now();
    let claim: Option<ClaimKey> =
        (!request.request_id.is_empty()).then(|| (owner.tenant.clone(), owner.user_id.clone(), request.request_id));
    let lease = Lease {
        tenant: owner.tenant,
        user: owner.user_id,
        env: request.env,
        metadata: request.metadata.into_iter().collect(),
        limits,
        network,
        proxy: HashMap::new(),
        length,
        acquired_at,
        expires_at: acquired_at + length,
        claim,
    };
    Ok(Wanted { template: request.template, limits: wanted, lease })
}

async fn admit(node: &Arc<Shared>, wanted: Wanted) -> Result<Acquired> {
    // a shutdown that has not been seen here yet waits for this and for what comes of it
    let _counted = node.tasks.token();
    let admitted = if node.is_draining() { Err(draining()) } else { find(node, wanted).await };
    let path = match &admitted {
        Ok(acquired) if acquired.warm => "warm",
        Ok(_) => "cold",
        Err(_) => "refused",
    };
    metrics::counter!("cloud_sandbox_acquire_node_total", "path" => path).increment(1);
    admitted
}

async fn find(node: &Arc<Shared>, wanted: Wanted) -> Result<Acquired> {
    let mut may_be_warm = true;
    for _ in 0..ATTEMPTS {
        // the template may be another by now, or gone
        let origin = node.templates.find(&wanted.template)?;
        let limits = origin.limits.overlaid(wanted.limits, node.options.max_limits)?;
        let fits_warm = may_be_warm && limits.disk_bytes == origin.limits.disk_bytes;
        let made = |slot| create(node, slot, Arc::clone(&origin), limits);
        let (taken, warm) = match node.pool.choose(&origin, fits_warm) {
            Way::Warm(taken) => (Ok(taken), true),
            Way::Wait(receiver) => match receiver.await {
                Ok(taken) => (Ok(taken), false),
                // what was being made came to nothing
                Err(_) => continue,
            },
            Way::Create(slot) => (made(slot).await, false),
            Way::Evict(victim, promise) => {
                evict(node, victim).await;
                let Some(slot) = promise.redeem() else { continue };
                (made(slot).await, false)
            }
            Way::Full if node.is_draining() => return Err(draining()),
            Way::Full => break,
        };
        let taken = match taken {
            Ok(taken) => taken,
            // what it was to be made from is no more: there is another by now, or none
            Err(error) if error.reason() == reason::TEMPLATE_NOT_READY => continue,
            Err(error) => return Err(error),
        };
        let mut lease = Lease { limits, ..wanted.lease.clone() };
        // the lease begins when the sandbox is the caller's, however long it took to make
        lease.acquired_at = SystemTime::now();
        lease.expires_at = lease.acquired_at + lease.length;
        match taken.sandbox().claim(lease).await {
            Ok(_) => return Ok(Acquired { sandbox: taken.keep(), warm }),
            // it ended in the pool a moment ago
            Err(error) if warm && error.reason() == reason::SANDBOX_GONE => {}
            // a fresh one has from the beginning what this host cannot give to one that lives
            Err(error) if fits_warm && error.reason() == reason::UNSUPPORTED_BY_HOST => may_be_warm = false,
            Err(error) => return Err(error),
        }
    }
    let message = format!("node {} has no room for another sandbox", node.options.id);
    Err(Error::new(ErrorKind::ResourceExhausted, reason::CAPACITY, message))
}

/// Makes a sandbox for this caller. One whose caller hangs up meanwhile is destroyed as soon as it is made.
async fn create(node: &Arc<Shared>, slot: Slot, origin: Arc<Origin>, limits: Limits) -> Result<Taken> {
    let permit = Arc::clone(&node.creating).acquire_owned().await.expect("the semaphore is never closed");
    let (sandbox, made) = spawn(node, slot, origin, limits, Purpose::Caller, permit);
    let taken = Taken::new(sandbox);
    match made.await {
        Ok(Ok(())) => Ok(taken),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::internal("make a sandbox", "its owner ended")),
    }
}

/// Returns when the victim is gone. One that cannot be destroyed keeps its slot, and another way is looked for.
async fn evict(node: &Shared, victim: Taken) {
    let sandbox = victim.keep();
    sandbox.end(EndCause::Evicted);
    let _ = timeout(node.options.release_patience, sandbox.finished.cancelled()).await;
}

fn draining() -> Error {
    Error::new(ErrorKind::Unavailable, reason::DRAINING, "the node is shutting down and takes no more sandboxes")
}
