//! What all buckets must do, those in memory and those in Redis, and what several edges see of one another.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cloud_sandbox_gateway_rest::MemoryLimits;
use futures::future::join_all;
use tokio::time::sleep;

use super::*;

/// A server of one test alone, killed with it.
struct Redis {
    child: Child,
    port: u16,
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Redis {
    /// `None` where whoever runs the tests has asked to leave it out.
    async fn start() -> Option<Self> {
        let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
        if skipped.split(',').any(|name| name.trim() == "redis") {
            eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names redis");
            return None;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let redis = Self { child: launch(port), port };
        redis.wait_until_it_listens().await;
        Some(redis)
    }

    async fn wait_until_it_listens(&self) {
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "redis-server does not answer");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn edge(&self, per_second: u32, burst: u32) -> SharedLimits {
        let redis = RedisLimits::connect(&format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let (per_second, burst) = RateLimit { per_second, burst }.numbers().unwrap();
        SharedLimits { redis, per_second, burst }
    }

    /// How many keys there are.
    fn keys(&self) -> u32 {
        self.command("DBSIZE").trim_start_matches(':').parse().unwrap()
    }

    fn empty(&self) {
        assert_eq!(self.command("FLUSHALL"), "+OK");
    }

    /// The first line of the answer.
    fn command(&self, name: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        connection.write_all(format!("{name}\r\nQUIT\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer.lines().next().unwrap().to_owned()
    }
}

fn launch(port: u16) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server runs (CLOUD_SANDBOX_TEST_SKIP=redis skips these tests)")
}

fn memory(per_second: u32, burst: u32) -> MemoryLimits {
    let (per_second, burst) = RateLimit { per_second, burst }.numbers().unwrap();
    MemoryLimits::new(per_second, burst)
}

fn user(name: &str) -> Key {
    Key::Principal { tenant: "t".into(), user: name.into() }
}

/// With a burst of 3, and one call a second. A busy machine may take longer, and then one more call is right.
async fn burst_is_granted_and_the_next_call_told_when_to_come(limits: &dyn Limits) {
    let begun = Instant::now();
    let mut taken = Vec::new();
    for _ in 0..6 {
        taken.push(limits.take(&user("ada")).await.unwrap());
    }
    let more = usize::try_from(begun.elapsed().as_secs()).unwrap();
    let granted = taken.iter().filter(|taken| taken.granted).count();
    assert!((3..=3 + more).contains(&granted), "{taken:?}");
    let left = taken[..3].iter().map(|taken| (taken.granted, taken.wait)).collect::<Vec<_>>();
    assert_eq!(left, [(true, Duration::ZERO); 3]);
    assert_eq!(taken[0].remaining, 2, "{taken:?}");
    for refused in taken.iter().filter(|taken| !taken.granted) {
        assert_eq!(refused.remaining, 0);
        assert!(refused.wait > Duration::ZERO && refused.wait <= Duration::from_secs(1), "{refused:?}");
    }
    assert!(limits.take(&user("bob")).await.unwrap().granted, "another caller has a bucket of its own");
}

/// With a burst of 1, and 20 calls a second.
async fn bucket_fills_at_its_rate(limits: &dyn Limits) {
    let begun = Instant::now();
    let mut granted = 0;
    while granted < 10 {
        let taken = limits.take(&user("ada")).await.unwrap();
        granted += u32::from(taken.granted);
        assert!(taken.wait <= Duration::from_millis(50), "{:?}", taken.wait);
        sleep(taken.wait).await;
    }
    assert!(begun.elapsed() >= Duration::from_millis(9 * 50 - 20), "{:?}", begun.elapsed());
}

/// With a burst of 10, and one call a second.
async fn of_many_calls_at_once_no_more_than_the_burst_are_granted(limits: &dyn Limits) {
    let (ada, begun) = (user("ada"), Instant::now());
    let taken = join_all((0..100).map(|_| limits.take(&ada))).await;
    let granted = taken.iter().filter(|taken| taken.as_ref().unwrap().granted).count() as u64;
    assert!((10..=10 + begun.elapsed().as_secs()).contains(&granted), "{granted}");
}

#[tokio::test]
async fn buckets_in_memory_do_what_all_must() {
    burst_is_granted_and_the_next_call_told_when_to_come(&memory(1, 3)).await;
    bucket_fills_at_its_rate(&memory(20, 1)).await;
    of_many_calls_at_once_no_more_than_the_burst_are_granted(&memory(1, 10)).await;
}

#[tokio::test]
async fn buckets_in_redis_do_what_all_must() {
    let Some(redis) = Redis::start().await else { return };
    burst_is_granted_and_the_next_call_told_when_to_come(&redis.edge(1, 3)).await;
    redis.empty();
    bucket_fills_at_its_rate(&redis.edge(20, 1)).await;
    redis.empty();
    of_many_calls_at_once_no_more_than_the_burst_are_granted(&redis.edge(1, 10)).await;
}

#[tokio::test]
async fn edges_on_one_redis_share_their_buckets() {
    let Some(redis) = Redis::start().await else { return };
    let (one, other) = (redis.edge(1, 4), redis.edge(1, 4));
    let begun = Instant::now();
    let mut granted = 0;
    for edge in [&one, &other, &one, &other, &one, &other, &one, &other] {
        granted += u64::from(edge.take(&user("ada")).await.unwrap().granted);
    }
    assert!((4..=4 + begun.elapsed().as_secs()).contains(&granted), "{granted}");
}

#[tokio::test]
async fn bucket_that_is_full_again_is_forgotten() {
    let Some(redis) = Redis::start().await else { return };
    let edge = redis.edge(5, 5);
    for name in ["ada", "bob"] {
        assert!(edge.take(&user(name)).await.unwrap().granted);
    }
    let begun = Instant::now();
    while redis.keys() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "{} keys are left", redis.keys());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn redis_that_is_away_is_told_and_found_again() {
    let Some(mut redis) = Redis::start().await else { return };
    let edge = redis.edge(1000, 1000);
    assert!(edge.take(&user("ada")).await.unwrap().granted);
    redis.kill();
    edge.take(&user("ada")).await.unwrap_err();
    // an edge starts without it, too
    let late = redis.edge(1000, 1000);
    late.take(&user("ada")).await.unwrap_err();
    redis.child = launch(redis.port);
    let begun = Instant::now();
    for edge in [edge, late] {
        while edge.take(&user("ada")).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "it is never found again");
            sleep(Duration::from_millis(20)).await;
        }
    }
}
