//! What every [`Directory`] must do; each implementation runs all of it.

use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const BLINK: Duration = Duration::from_millis(60);

/// Makes one test of each case below. The expression gives a directory and what it cannot live without.
macro_rules! directory_suite {
    ($make:expr) => {
        $crate::directory::conformance::directory_suite!($make =>
            entry_is_read_back_as_written,
            put_again_replaces,
            removed_entry_is_gone_and_may_be_removed_again,
            entry_is_found_until_its_node_has_told_its_end,
            entry_put_with_its_lease_over_is_not_there,
            list_is_the_tenants_own_in_order_of_ids,
            list_pages_without_gap_or_repeat,
            list_filters_by_every_field,
            list_leaves_out_what_expired_and_what_was_removed,
            ended_sandbox_is_read_until_its_time_but_not_listed,
            ended_sandbox_stays_ended,
            ended_sandbox_may_be_removed,
            nodes_are_listed_in_order_until_they_leave,
            node_that_stops_reporting_is_dead,
            claim_is_won_once_until_it_is_given_up,
            claim_ends_with_its_time,
            one_of_many_claims_wins,
            claim_is_given_up_only_by_its_value,
            store_answers,
        );
    };
    ($make:expr => $($case:ident,)*) => {$(
        #[tokio::test]
        async fn $case() {
            let (_guard, directory) = $make;
            $crate::directory::conformance::$case(&directory).await;
        }
    )*};
}
pub(crate) use directory_suite;

/// An entry of a new sandbox whose lease ends after `lease`.
pub(crate) fn entry(tenant: &str, user: &str, lease: Duration) -> SandboxEntry {
    let now = SystemTime::now();
    SandboxEntry {
        id: SandboxId::generate(),
        tenant: tenant.into(),
        user: user.into(),
        node: NodeId::generate(),
        node_address: "http://10.0.0.1:9093".into(),
        template: "host".into(),
        runtime: "docker+runsc".into(),
        paused: false,
        ended: false,
        limits: Limits::DEFAULT,
        metadata: BTreeMap::from([("team".into(), "a=b\"ü\n".into())]),
        acquired_at: now,
        expires_at: now + lease,
    }
}

fn node() -> NodeEntry {
    NodeEntry {
        id: NodeId::generate(),
        address: "http://10.0.0.2:9093".into(),
        templates: vec![
            NodeTemplate::ready("host", "linux"),
            NodeTemplate { runtime_unavailable: true, ..NodeTemplate::ready("python@1", "docker+runc") },
        ],
        ready: 1,
        acquired: 4,
        paused: 2,
        creating: 3,
        capacity: 50,
        draining: true,
        low_memory: true,
    }
}

fn of(tenant: &str) -> SandboxFilter {
    SandboxFilter { tenant: tenant.into(), ..SandboxFilter::default() }
}

async fn listed(directory: &dyn Directory, filter: &SandboxFilter) -> Vec<SandboxId> {
    directory.sandboxes(filter, None, 1000).await.unwrap().iter().map(|entry| entry.id).collect()
}

pub(crate) async fn entry_is_read_back_as_written(directory: &dyn Directory) {
    let written = SandboxEntry { paused: true, ..entry("t", "u", MINUTE) };
    directory.put_sandbox(&written).await.unwrap();
    assert_eq!(directory.sandbox(written.id).await.unwrap(), Some(written));
    assert_eq!(directory.sandbox(SandboxId::generate()).await.unwrap(), None);
}

pub(crate) async fn put_again_replaces(directory: &dyn Directory) {
    let first = entry("t", "u", BLINK);
    let renewed = SandboxEntry { paused: true, expires_at: SystemTime::now() + MINUTE, ..first.clone() };
    directory.put_sandbox(&first).await.unwrap();
    directory.put_sandbox(&renewed).await.unwrap();
    tokio::time::sleep(BLINK * 2).await;
    assert_eq!(directory.sandbox(first.id).await.unwrap(), Some(renewed.clone()));
    assert_eq!(directory.sandboxes(&of("t"), None, 9).await.unwrap(), [renewed]);
}

pub(crate) async fn removed_entry_is_gone_and_may_be_removed_again(directory: &dyn Directory) {
    let entry = entry("t", "u", MINUTE);
    directory.put_sandbox(&entry).await.unwrap();
    for _ in 0..2 {
        directory.remove_sandbox(entry.id).await.unwrap();
        assert_eq!(directory.sandbox(entry.id).await.unwrap(), None);
    }
}

pub(crate) async fn entry_is_found_until_its_node_has_told_its_end(directory: &dyn Directory) {
    let (just, long) = (entry("t", "u", BLINK), entry("t", "u", MINUTE));
    let long = SandboxEntry { expires_at: SystemTime::now() - ENDS_WITHIN + BLINK, ..long };
    for entry in [&just, &long] {
        directory.put_sandbox(entry).await.unwrap();
    }
    tokio::time::sleep(BLINK * 2).await;
    assert_eq!(directory.sandbox(just.id).await.unwrap(), Some(just.clone()));
    assert_eq!(directory.sandbox(long.id).await.unwrap(), None);
    assert_eq!(listed(directory, &of("t")).await, []);
    for entry in [just, long] {
        directory.remove_sandbox(entry.id).await.unwrap();
        assert_eq!(directory.sandbox(entry.id).await.unwrap(), None);
    }
}

pub(crate) async fn entry_put_with_its_lease_over_is_not_there(directory: &dyn Directory) {
    let mut entry = entry("t", "u", MINUTE);
    directory.put_sandbox(&entry).await.unwrap();
    entry.expires_at = SystemTime::now() - MINUTE;
    directory.put_sandbox(&entry).await.unwrap();
    assert_eq!(directory.sandbox(entry.id).await.unwrap(), None);
    assert_eq!(listed(directory, &of("t")).await, []);
}

pub(crate) async fn list_is_the_tenants_own_in_order_of_ids(directory: &dyn Directory) {
    let mut ids = Vec::new();
    for _ in 0..5 {
        let own = entry("t", "u", MINUTE);
        ids.push(own.id);
        directory.put_sandbox(&own).await.unwrap();
        directory.put_sandbox(&entry("t2", "u", MINUTE)).await.unwrap();
    }
    ids.sort();
    assert_eq!(listed(directory, &of("t")).await, ids);
    assert_eq!(listed(directory, &of("nobody")).await, []);
}

pub(crate) async fn list_pages_without_gap_or_repeat(directory: &dyn Directory) {
    let mut ids = Vec::new();
    for number in 0..23 {
        // two of three are somebody else's, so that a page of matches is more than a page of entries
        let own = entry("t", if number % 3 == 0 { "ada" } else { "bob" }, MINUTE);
        if own.user == "ada" {
            ids.push(own.id);
        }
        directory.put_sandbox(&own).await.unwrap();
    }
    ids.sort();
    let filter = SandboxFilter { user: Some("ada".into()), ..of("t") };
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = directory.sandboxes(&filter, after, 3).await.unwrap();
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        seen.extend(page.iter().map(|entry| entry.id));
    }
    assert_eq!(seen, ids);
    assert_eq!(directory.sandboxes(&filter, None, 0).await.unwrap(), []);
}

pub(crate) async fn list_filters_by_every_field(directory: &dyn Directory) {
    let plain = entry("t", "ada", MINUTE);
    let other = SandboxEntry {
        user: "bob".into(),
        template: "python@3".into(),
        paused: true,
        metadata: BTreeMap::from([("team".into(), "x".into()), ("n".into(), "1".into())]),
        ..entry("t", "bob", MINUTE)
    };
    directory.put_sandbox(&plain).await.unwrap();
    directory.put_sandbox(&other).await.unwrap();
    let labels = vec![("team".to_owned(), "x".to_owned()), ("n".to_owned(), "1".to_owned())];
    for filter in [
        SandboxFilter { user: Some("bob".into()), ..of("t") },
        SandboxFilter { template: Some("python".into()), ..of("t") },
        SandboxFilter { template: Some("python@3".into()), ..of("t") },
        SandboxFilter { paused: Some(true), ..of("t") },
        SandboxFilter { metadata: labels, ..of("t") },
    ] {
        assert_eq!(listed(directory, &filter).await, [other.id], "{filter:?}");
    }
    for wrong in [
        SandboxFilter { metadata: vec![("team".into(), "y".into())], ..of("t") },
        SandboxFilter { template: Some("pytho".into()), ..of("t") },
        SandboxFilter { template: Some("python@".into()), ..of("t") },
    ] {
        assert_eq!(listed(directory, &wrong).await, [], "{wrong:?}");
    }
    assert_eq!(listed(directory, &SandboxFilter { paused: Some(false), ..of("t") }).await, [plain.id]);
}

pub(crate) async fn list_leaves_out_what_expired_and_what_was_removed(directory: &dyn Directory) {
    let (stays, expires, removed) = (entry("t", "u", MINUTE), entry("t", "u", BLINK), entry("t", "u", MINUTE));
    for entry in [&stays, &expires, &removed] {
        directory.put_sandbox(entry).await.unwrap();
    }
    directory.remove_sandbox(removed.id).await.unwrap();
    tokio::time::sleep(BLINK * 2).await;
    for _ in 0..2 {
        assert_eq!(listed(directory, &of("t")).await, [stays.id]);
    }
}

pub(crate) async fn ended_sandbox_is_read_until_its_time_but_not_listed(directory: &dyn Directory) {
    let lives = entry("t", "u", MINUTE);
    // one that was listed, and one that nobody saw alive
    let (was_listed, new) = (entry("t", "u", MINUTE), SandboxEntry { ended: true, ..entry("t", "u", MINUTE) });
    for entry in [&lives, &was_listed, &new] {
        directory.put_sandbox(entry).await.unwrap();
    }
    let ended = SandboxEntry { ended: true, ..was_listed };
    directory.put_sandbox(&ended).await.unwrap();
    for _ in 0..2 {
        assert_eq!(listed(directory, &of("t")).await, [lives.id]);
    }
    for entry in [ended, new] {
        assert_eq!(directory.sandbox(entry.id).await.unwrap(), Some(entry.clone()));
        let over = SandboxEntry { expires_at: SystemTime::now() + BLINK, ..entry };
        directory.put_sandbox(&over).await.unwrap();
        tokio::time::sleep(BLINK * 2).await;
        assert_eq!(directory.sandbox(over.id).await.unwrap(), None);
    }
}

pub(crate) async fn ended_sandbox_stays_ended(directory: &dyn Directory) {
    let lived = entry("t", "u", MINUTE);
    let ended = SandboxEntry { ended: true, ..lived.clone() };
    directory.put_sandbox(&ended).await.unwrap();
    // a late report of it, and one so late that the lease in it is over
    let late = SandboxEntry { expires_at: SystemTime::now() - MINUTE, ..lived.clone() };
    for stale in [lived, late] {
        directory.put_sandbox(&stale).await.unwrap();
        assert_eq!(directory.sandbox(ended.id).await.unwrap(), Some(ended.clone()));
        for _ in 0..2 {
            assert_eq!(listed(directory, &of("t")).await, []);
        }
    }
    let longer = SandboxEntry { expires_at: SystemTime::now() + MINUTE * 2, ..ended };
    directory.put_sandbox(&longer).await.unwrap();
    assert_eq!(directory.sandbox(longer.id).await.unwrap(), Some(longer), "its node may keep it for longer");
}

pub(crate) async fn ended_sandbox_may_be_removed(directory: &dyn Directory) {
    let ended = SandboxEntry { ended: true, ..entry("t", "u", MINUTE) };
    directory.put_sandbox(&ended).await.unwrap();
    directory.remove_sandbox(ended.id).await.unwrap();
    assert_eq!(directory.sandbox(ended.id).await.unwrap(), None);
}

pub(crate) async fn nodes_are_listed_in_order_until_they_leave(directory: &dyn Directory) {
    assert_eq!(directory.nodes().await.unwrap(), []);
    let mut nodes = [node(), node(), node()];
    for node in &nodes {
        directory.put_node(node, MINUTE).await.unwrap();
    }
    nodes.sort_by_key(|node| node.id);
    assert_eq!(directory.nodes().await.unwrap(), nodes);

    nodes[1].ready = 9;
    directory.put_node(&nodes[1], MINUTE).await.unwrap();
    directory.remove_node(nodes[0].id).await.unwrap();
    directory.remove_node(nodes[0].id).await.unwrap();
    assert_eq!(directory.nodes().await.unwrap(), nodes[1..]);
}

pub(crate) async fn node_that_stops_reporting_is_dead(directory: &dyn Directory) {
    let (dies, reports) = (node(), node());
    directory.put_node(&dies, BLINK).await.unwrap();
    directory.put_node(&reports, BLINK).await.unwrap();
    directory.put_node(&reports, MINUTE).await.unwrap();
    tokio::time::sleep(BLINK * 2).await;
    assert_eq!(directory.nodes().await.unwrap(), [reports]);
}

pub(crate) async fn claim_is_won_once_until_it_is_given_up(directory: &dyn Directory) {
    assert_eq!(directory.claim("a:b c/ü", "1", MINUTE).await.unwrap(), Claim::Won);
    assert_eq!(directory.claim("a:b c/ü", "2", MINUTE).await.unwrap(), Claim::Held("1".into()));
    assert_eq!(directory.claim("a:b c/ü", "1", MINUTE).await.unwrap(), Claim::Held("1".into()));
    assert_eq!(directory.claim("another", "2", MINUTE).await.unwrap(), Claim::Won);
    directory.unclaim("a:b c/ü", "1").await.unwrap();
    assert_eq!(directory.claim("a:b c/ü", "2", MINUTE).await.unwrap(), Claim::Won);
}

pub(crate) async fn claim_ends_with_its_time(directory: &dyn Directory) {
    directory.claim("k", "1", BLINK).await.unwrap();
    tokio::time::sleep(BLINK * 2).await;
    assert_eq!(directory.claim("k", "2", MINUTE).await.unwrap(), Claim::Won);
}

pub(crate) async fn one_of_many_claims_wins(directory: &dyn Directory) {
    let claims = ["1", "2", "3", "4", "5"].map(|value| directory.claim("k", value, MINUTE));
    let mut won = 0;
    let [a, b, c, d, e] = claims;
    let all = tokio::join!(a, b, c, d, e);
    for claim in [all.0, all.1, all.2, all.3, all.4] {
        won += u32::from(claim.unwrap() == Claim::Won);
    }
    assert_eq!(won, 1);
}

pub(crate) async fn claim_is_given_up_only_by_its_value(directory: &dyn Directory) {
    directory.claim("k", "1", MINUTE).await.unwrap();
    directory.unclaim("k", "2").await.unwrap();
    directory.unclaim("unknown", "1").await.unwrap();
    assert_eq!(directory.claim("k", "3", MINUTE).await.unwrap(), Claim::Held("1".into()));
}

pub(crate) async fn store_answers(directory: &dyn Directory) {
    directory.check().await.unwrap();
}
