use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

fn address(text: &str) -> Key {
    Key::of(None, Some(text.parse().unwrap()))
}

fn principal(tenant: &str, user: &str) -> Key {
    Key::Principal { tenant: tenant.into(), user: user.into() }
}

#[tokio::test]
async fn caller_over_its_burst_is_told_when_to_come_back() {
    let limiter = Limiter::new(RateLimit { per_second: 1, burst: 2 }, None).unwrap();
    assert_eq!(limiter.take(address("10.0.0.1")).await.unwrap().remaining, 1);
    assert_eq!(limiter.take(address("10.0.0.1")).await.unwrap().remaining, 0);
    let (standing, error) = limiter.take(address("10.0.0.1")).await.unwrap_err();
    assert_eq!((standing.limit, standing.remaining, standing.reset), (2, 0, 1));
    assert!(error.retry_after().is_some_and(|after| after > Duration::ZERO));
    assert!(limiter.take(address("10.0.0.2")).await.is_ok(), "another caller has a bucket of its own");
}

#[test]
fn ipv6_callers_are_counted_by_network() {
    assert_eq!(address("2001:db8::1"), address("2001:db8::2"));
    assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
}

#[test]
fn zero_is_no_limit() {
    assert!(Limiter::new(RateLimit { per_second: 0, burst: 5 }, None).is_none());
}

#[test]
fn no_two_callers_have_one_text() {
    let keys = [principal("a", "b:c"), principal("a:b", "c"), principal("", "a"), address("10.0.0.1"), Key::Others];
    for (index, key) in keys.iter().enumerate() {
        assert!(keys[..index].iter().all(|other| other.to_string() != key.to_string()), "{key}");
    }
}

/// Buckets with room for everybody, which may be away.
#[derive(Default)]
struct Shared {
    away: AtomicBool,
    silent: AtomicBool,
    asked: AtomicUsize,
}

#[async_trait]
impl Limits for Shared {
    async fn take(&self, _: &Key) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.away.load(Ordering::SeqCst) {
            return Err("away".into());
        }
        Ok(Taken { granted: true, remaining: 7, wait: Duration::ZERO })
    }
}

#[tokio::test(start_paused = true)]
async fn edge_counts_by_itself_while_what_is_shared_is_away() {
    for silent in [false, true] {
        let shared = Arc::new(Shared::default());
        let limiter =
            Limiter::new(RateLimit { per_second: 1, burst: 2 }, Some(Arc::clone(&shared) as Arc<dyn Limits>)).unwrap();
        let caller = || limiter.take(principal("t", "ada"));
        for _ in 0..5 {
            assert_eq!(caller().await.unwrap().remaining, 7);
        }
        shared.away.store(true, Ordering::SeqCst);
        shared.silent.store(silent, Ordering::SeqCst);
        let begun = Instant::now();
        let granted = [caller().await.is_ok(), caller().await.is_ok(), caller().await.is_ok()];
        assert_eq!(granted, [true, true, false], "neither all are let through nor none");
        assert_eq!(shared.asked.load(Ordering::SeqCst), 6, "one of them has waited for what is away");
        assert!(begun.elapsed() <= ANSWER_WITHIN * 2, "{:?}", begun.elapsed());

        shared.away.store(false, Ordering::SeqCst);
        shared.silent.store(false, Ordering::SeqCst);
        tokio::time::sleep(AWAY_FOR).await;
        assert_eq!(caller().await.unwrap().remaining, 7, "it is asked again");
    }
}
