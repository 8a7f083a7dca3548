//! What every [`SessionStore`] must do; each implementation runs all of it.

use super::*;

/// Hands every case below to another macro.
macro_rules! session_cases {
    ($then:ident!($make:expr)) => {
        $then! { $make =>
            session_is_read_back_as_written,
            request_id_makes_one_session_of_a_user,
            sessions_without_request_id_do_not_collide,
            update_is_written_over_its_own_version_only,
            one_of_many_updates_wins,
            deleted_session_is_gone_and_its_request_id_free,
            list_pages_without_gap_or_repeat,
            list_filters_by_every_field,
            texts_of_any_characters_are_kept,
            store_answers,
        }
    };
}
pub(crate) use session_cases;

/// Makes one test of each case. The expression gives what the store cannot live without, and the store.
macro_rules! test_each {
    ($make:expr => $($case:ident,)*) => {$(
        #[tokio::test]
        async fn $case() {
            let (_guard, store) = $make;
            $crate::sessions::conformance::$case(&store).await;
        }
    )*};
}
pub(crate) use test_each;

/// Runs all cases one after another, where each test of its own would cost a server. A failure names its line.
macro_rules! run_all {
    ($make:expr => $($case:ident,)*) => {$({
        let store = $make;
        $crate::sessions::conformance::$case(&store).await;
    })*};
}
pub(crate) use run_all;

/// A new session of `user`.
pub(crate) fn record(user: &str, request_id: Option<&str>) -> SessionRecord {
    let now = from_millis(to_millis(SystemTime::now()));
    SessionRecord {
        id: SessionId::generate(),
        tenant: "t".into(),
        user: user.into(),
        state: SessionState::Creating,
        sandbox: None,
        template: "host".into(),
        metadata: BTreeMap::from([("a.b\"$[0]".into(), "ü\n'".into())]),
        failure: String::new(),
        request_id: request_id.map(str::to_owned),
        request_fingerprint: "f".into(),
        created_at: now,
        updated_at: now,
        version: 1,
    }
}

fn of(tenant: &str) -> SessionFilter {
    SessionFilter { tenant: Some(tenant.into()), ..SessionFilter::default() }
}

async fn listed(store: &dyn SessionStore, filter: &SessionFilter) -> Vec<SessionId> {
    store.list(filter, None, 1000).await.unwrap().iter().map(|record| record.id).collect()
}

pub(crate) async fn session_is_read_back_as_written(store: &dyn SessionStore) {
    for state in SessionState::ALL {
        let record = SessionRecord {
            state,
            sandbox: Some(SandboxId::generate()),
            failure: "its sandbox ended".into(),
            ..record("ada", Some(state.as_str()))
        };
        assert_eq!(store.insert(&record).await.unwrap(), Inserted::New);
        assert_eq!(store.get(record.id).await.unwrap(), Some(record));
    }
    assert_eq!(store.get(SessionId::generate()).await.unwrap(), None);
}

pub(crate) async fn request_id_makes_one_session_of_a_user(store: &dyn SessionStore) {
    let first = record("ada", Some("r"));
    assert_eq!(store.insert(&first).await.unwrap(), Inserted::New);
    let second = record("ada", Some("r"));
    assert_eq!(store.insert(&second).await.unwrap(), Inserted::Existing(Box::new(first)));
    assert_eq!(store.get(second.id).await.unwrap(), None);
    let elsewhere = SessionRecord { tenant: "t2".into(), ..record("ada", Some("r")) };
    for other in [record("bob", Some("r")), record("ada", Some("s")), elsewhere] {
        assert_eq!(store.insert(&other).await.unwrap(), Inserted::New);
    }
}

pub(crate) async fn sessions_without_request_id_do_not_collide(store: &dyn SessionStore) {
    for _ in 0..2 {
        assert_eq!(store.insert(&record("ada", None)).await.unwrap(), Inserted::New);
    }
}

pub(crate) async fn update_is_written_over_its_own_version_only(store: &dyn SessionStore) {
    let first = record("ada", None);
    store.insert(&first).await.unwrap();
    let running = SessionRecord {
        state: SessionState::Running,
        sandbox: Some(SandboxId::generate()),
        updated_at: first.updated_at + Duration::from_secs(1),
        ..first.clone()
    };
    assert!(store.update(&running).await.unwrap());
    let stored = store.get(first.id).await.unwrap().unwrap();
    assert_eq!(stored, SessionRecord { version: 2, ..running });

    let stale = SessionRecord { state: SessionState::Failed, ..first };
    assert!(!store.update(&stale).await.unwrap());
    assert_eq!(store.get(stale.id).await.unwrap(), Some(stored));
    assert!(!store.update(&record("ada", None)).await.unwrap(), "a session that is not there is not written");
}

pub(crate) async fn one_of_many_updates_wins(store: &dyn SessionStore) {
    let record = record("ada", None);
    store.insert(&record).await.unwrap();
    let (a, b, c) = tokio::join!(store.update(&record), store.update(&record), store.update(&record));
    let won = [a, b, c].into_iter().filter(|written| *written.as_ref().unwrap()).count();
    assert_eq!(won, 1);
}

pub(crate) async fn deleted_session_is_gone_and_its_request_id_free(store: &dyn SessionStore) {
    let record = record("ada", Some("r"));
    store.insert(&record).await.unwrap();
    assert!(!store.delete(record.id, 7).await.unwrap());
    for _ in 0..2 {
        assert!(store.delete(record.id, 1).await.unwrap());
        assert_eq!(store.get(record.id).await.unwrap(), None);
    }
    assert_eq!(store.insert(&record).await.unwrap(), Inserted::New);
}

pub(crate) async fn list_pages_without_gap_or_repeat(store: &dyn SessionStore) {
    let mut ids = Vec::new();
    for number in 0..12 {
        let record = record(if number % 3 == 0 { "bob" } else { "ada" }, None);
        store.insert(&record).await.unwrap();
        if record.user == "ada" {
            ids.push(record.id);
        }
    }
    ids.sort();
    let filter = SessionFilter { user: Some("ada".into()), ..of("t") };
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(&filter, after, 3).await.unwrap();
        assert!(page.len() <= 3);
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        seen.extend(page.iter().map(|record| record.id));
    }
    assert_eq!(seen, ids);
}

pub(crate) async fn list_filters_by_every_field(store: &dyn SessionStore) {
    let plain = record("ada", None);
    let now = plain.updated_at;
    let other = SessionRecord {
        user: "bob".into(),
        state: SessionState::Paused,
        metadata: BTreeMap::from([("team".into(), "x".into()), ("n".into(), "1".into())]),
        updated_at: now - Duration::from_secs(100),
        ..record("bob", None)
    };
    let elsewhere = SessionRecord { tenant: "t2".into(), ..record("ada", None) };
    for record in [&plain, &other, &elsewhere] {
        store.insert(record).await.unwrap();
    }
    let labels = vec![("team".to_owned(), "x".to_owned()), ("n".to_owned(), "1".to_owned())];
    for filter in [
        SessionFilter { user: Some("bob".into()), ..of("t") },
        SessionFilter { states: vec![SessionState::Failed, SessionState::Paused], ..of("t") },
        SessionFilter { idle_since: Some(now - Duration::from_secs(60)), ..SessionFilter::default() },
        SessionFilter { metadata: labels, ..of("t") },
    ] {
        assert_eq!(listed(store, &filter).await, [other.id], "{filter:?}");
    }
    let odd = SessionFilter { metadata: vec![("a.b\"$[0]".into(), "ü\n'".into())], ..of("t") };
    assert_eq!(listed(store, &odd).await, [plain.id]);
    let half = SessionFilter { metadata: vec![("team".into(), "y".into())], ..of("t") };
    assert_eq!(listed(store, &half).await, []);
    assert_eq!(listed(store, &SessionFilter::default()).await.len(), 3);
    assert_eq!(listed(store, &of("t2")).await, [elsewhere.id]);
}

pub(crate) async fn texts_of_any_characters_are_kept(store: &dyn SessionStore) {
    let odd = "\0 \u{1} \u{1}0 \u{7f} \u{ffff} \u{1f600} \\u0000 ' \" % _ $1";
    let record = SessionRecord {
        template: odd.into(),
        failure: odd.into(),
        metadata: BTreeMap::from([(odd.into(), odd.into())]),
        ..record(odd, None)
    };
    store.insert(&record).await.unwrap();
    assert_eq!(store.get(record.id).await.unwrap(), Some(record.clone()));
    assert!(store.update(&record).await.unwrap());
    let of_user = SessionFilter { user: Some(odd.into()), ..of("t") };
    assert_eq!(listed(store, &of_user).await, [record.id]);
    let other = SessionFilter { user: Some("\u{1}".into()), ..of("t") };
    assert_eq!(listed(store, &other).await, []);
}

pub(crate) async fn store_answers(store: &dyn SessionStore) {
    store.check().await.unwrap();
}
