//! What every [`SessionStore`] must do; each implementation runs all of it.

use cloud_sandbox_model::NodeId;

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
            what_is_written_along_is_written_with_its_session_or_not_at_all,
            events_are_paged_and_the_oldest_are_dropped,
            checkpoints_are_written_over_and_removed,
            folders_are_needed_until_their_last_checkpoint_is_removed,
            session_is_looked_at_by_one_at_a_time,
            details_are_kept,
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
        due_at: None,
        details: SessionDetails::default(),
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
        assert_eq!(store.insert(&record, &Along::default()).await.unwrap(), Inserted::New);
        assert_eq!(store.get(record.id).await.unwrap(), Some(record));
    }
    assert_eq!(store.get(SessionId::generate()).await.unwrap(), None);
}

pub(crate) async fn request_id_makes_one_session_of_a_user(store: &dyn SessionStore) {
    let first = record("ada", Some("r"));
    assert_eq!(store.insert(&first, &Along::default()).await.unwrap(), Inserted::New);
    let second = record("ada", Some("r"));
    assert_eq!(store.insert(&second, &Along::default()).await.unwrap(), Inserted::Existing(Box::new(first)));
    assert_eq!(store.get(second.id).await.unwrap(), None);
    let elsewhere = SessionRecord { tenant: "t2".into(), ..record("ada", Some("r")) };
    for other in [record("bob", Some("r")), record("ada", Some("s")), elsewhere] {
        assert_eq!(store.insert(&other, &Along::default()).await.unwrap(), Inserted::New);
    }
}

pub(crate) async fn sessions_without_request_id_do_not_collide(store: &dyn SessionStore) {
    for _ in 0..2 {
        assert_eq!(store.insert(&record("ada", None), &Along::default()).await.unwrap(), Inserted::New);
    }
}

pub(crate) async fn update_is_written_over_its_own_version_only(store: &dyn SessionStore) {
    let first = record("ada", None);
    store.insert(&first, &Along::default()).await.unwrap();
    let running = SessionRecord {
        state: SessionState::Running,
        sandbox: Some(SandboxId::generate()),
        updated_at: first.updated_at + Duration::from_secs(1),
        ..first.clone()
    };
    assert!(store.update(&running, &Along::default()).await.unwrap());
    let stored = store.get(first.id).await.unwrap().unwrap();
    assert_eq!(stored, SessionRecord { version: 2, ..running });

    let stale = SessionRecord { state: SessionState::Failed, ..first };
    assert!(!store.update(&stale, &Along::default()).await.unwrap());
    assert_eq!(store.get(stale.id).await.unwrap(), Some(stored));
    assert!(
        !store.update(&record("ada", None), &Along::default()).await.unwrap(),
        "a session that is not there is not written"
    );
}

pub(crate) async fn one_of_many_updates_wins(store: &dyn SessionStore) {
    let record = record("ada", None);
    store.insert(&record, &Along::default()).await.unwrap();
    let along = Along { events: vec![event(1, "won")], ..Along::default() };
    let write = || store.update(&record, &along);
    let (a, b, c) = tokio::join!(write(), write(), write());
    let won = [a, b, c].into_iter().filter(|written| *written.as_ref().unwrap()).count();
    assert_eq!(won, 1);
    assert_eq!(store.events(record.id, 0, 10).await.unwrap(), along.events);
}

pub(crate) async fn deleted_session_is_gone_and_its_request_id_free(store: &dyn SessionStore) {
    let record = record("ada", Some("r"));
    store.insert(&record, &Along::default()).await.unwrap();
    assert!(!store.delete(record.id, 7).await.unwrap());
    for _ in 0..2 {
        assert!(store.delete(record.id, 1).await.unwrap());
        assert_eq!(store.get(record.id).await.unwrap(), None);
    }
    assert_eq!(store.insert(&record, &Along::default()).await.unwrap(), Inserted::New);
}

pub(crate) async fn list_pages_without_gap_or_repeat(store: &dyn SessionStore) {
    let mut ids = Vec::new();
    for number in 0..12 {
        let record = record(if number % 3 == 0 { "bob" } else { "ada" }, None);
        store.insert(&record, &Along::default()).await.unwrap();
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

    let newest = SessionFilter { newest_first: true, ..filter };
    let first = store.list(&newest, None, 2).await.unwrap();
    let second = store.list(&newest, Some(first[1].id), 100).await.unwrap();
    ids.reverse();
    assert_eq!(first.iter().chain(&second).map(|record| record.id).collect::<Vec<_>>(), ids);
}

pub(crate) async fn list_filters_by_every_field(store: &dyn SessionStore) {
    let plain = record("ada", None);
    let now = plain.updated_at;
    let other = SessionRecord {
        user: "bob".into(),
        state: SessionState::Paused,
        metadata: BTreeMap::from([("team".into(), "x".into()), ("n".into(), "1".into())]),
        due_at: Some(now - Duration::from_secs(100)),
        ..record("bob", None)
    };
    let elsewhere = SessionRecord { tenant: "t2".into(), ..record("ada", None) };
    for record in [&plain, &other, &elsewhere] {
        store.insert(record, &Along::default()).await.unwrap();
    }
    let labels = vec![("team".to_owned(), "x".to_owned()), ("n".to_owned(), "1".to_owned())];
    for filter in [
        SessionFilter { user: Some("bob".into()), ..of("t") },
        SessionFilter { states: vec![SessionState::Failed, SessionState::Paused], ..of("t") },
        SessionFilter { due_by: Some(now - Duration::from_secs(60)), ..SessionFilter::default() },
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
    store.insert(&record, &Along::default()).await.unwrap();
    assert_eq!(store.get(record.id).await.unwrap(), Some(record.clone()));
    assert!(store.update(&record, &Along::default()).await.unwrap());
    let of_user = SessionFilter { user: Some(odd.into()), ..of("t") };
    assert_eq!(listed(store, &of_user).await, [record.id]);
    let other = SessionFilter { user: Some("\u{1}".into()), ..of("t") };
    assert_eq!(listed(store, &other).await, []);
}

fn event(sequence: i64, message: &str) -> SessionEvent {
    let happened_at = from_millis(1_700_000_000_000 + sequence);
    SessionEvent { sequence, happened_at, kind: "updated".into(), message: message.into() }
}

fn checkpoint(session: SessionId, packs: &[CheckpointId]) -> CheckpointRecord {
    let id = CheckpointId::generate();
    CheckpointRecord {
        id,
        session,
        complete: false,
        folder: id,
        digest: Vec::new(),
        parent: packs.first().copied(),
        packs: packs.iter().copied().chain([id]).collect(),
        files: 0,
        bytes: 0,
        stored_bytes: 0,
        created_at: from_millis(1_700_000_000_000),
    }
}

fn along(checkpoint: &CheckpointRecord) -> Along {
    Along { checkpoints: vec![checkpoint.clone()], ..Along::default() }
}

pub(crate) async fn what_is_written_along_is_written_with_its_session_or_not_at_all(store: &dyn SessionStore) {
    let first = record("ada", Some("r"));
    let made = checkpoint(first.id, &[]);
    let all = Along { events: vec![event(1, "\0 odd \u{1}")], ..along(&made) };
    assert_eq!(store.insert(&first, &all).await.unwrap(), Inserted::New);
    let again = record("ada", Some("r"));
    let existing = store.insert(&again, &along(&checkpoint(again.id, &[]))).await.unwrap();
    assert_eq!(existing, Inserted::Existing(Box::new(first.clone())));
    let stale = SessionRecord { version: 7, ..first.clone() };
    let late = Along { events: vec![event(2, "late")], removed: vec![made.id], ..along(&checkpoint(first.id, &[])) };
    assert!(!store.update(&stale, &late).await.unwrap());
    // an event that is there already: the whole write fails
    let twice = Along { events: vec![event(1, "again")], ..along(&checkpoint(first.id, &[])) };
    assert!(store.update(&first, &twice).await.is_err());
    assert_eq!(store.get(first.id).await.unwrap(), Some(first.clone()));
    assert_eq!(store.events(first.id, 0, 10).await.unwrap(), all.events);
    assert_eq!(store.checkpoints(first.id).await.unwrap(), [made]);

    assert!(store.delete(first.id, 1).await.unwrap());
    assert_eq!(store.events(first.id, 0, 10).await.unwrap(), []);
    assert_eq!(store.checkpoints(first.id).await.unwrap(), []);
}

pub(crate) async fn events_are_paged_and_the_oldest_are_dropped(store: &dyn SessionStore) {
    let mut record = record("ada", None);
    store.insert(&record, &Along::default()).await.unwrap();
    let last = EVENTS_MAX + 5;
    let events: Vec<_> = (1..=last).map(|sequence| event(sequence, "x")).collect();
    for part in events.chunks(200) {
        assert!(store.update(&record, &Along { events: part.to_vec(), ..Along::default() }).await.unwrap());
        record.version += 1;
    }
    let first: Vec<_> = store.events(record.id, 0, 3).await.unwrap().iter().map(|event| event.sequence).collect();
    assert_eq!(first, [6, 7, 8]);
    assert_eq!(store.events(record.id, last - 2, 10).await.unwrap(), events[events.len() - 2..]);
    assert_eq!(store.events(SessionId::generate(), 0, 10).await.unwrap(), []);
}

pub(crate) async fn checkpoints_are_written_over_and_removed(store: &dyn SessionStore) {
    let mut record = record("ada", None);
    let first = checkpoint(record.id, &[]);
    store.insert(&record, &along(&first)).await.unwrap();
    let second = checkpoint(record.id, &[first.id]);
    assert!(store.update(&record, &along(&second)).await.unwrap());
    record.version += 1;
    let complete = CheckpointRecord {
        complete: true,
        digest: (0..=255).collect(),
        parent: None,
        packs: [first.id].into(),
        files: 3,
        bytes: 1 << 40,
        stored_bytes: 5,
        created_at: from_millis(1_700_000_000_009),
        ..second
    };
    assert!(store.update(&record, &along(&complete)).await.unwrap());
    record.version += 1;
    let mut kept = [first.clone(), complete.clone()];
    kept.sort_by_key(|checkpoint| checkpoint.id);
    assert_eq!(store.checkpoints(record.id).await.unwrap(), kept);
    let removed = Along { removed: vec![first.id], ..Along::default() };
    assert!(store.update(&record, &removed).await.unwrap());
    assert_eq!(store.checkpoints(record.id).await.unwrap(), [complete]);
}

pub(crate) async fn folders_are_needed_until_their_last_checkpoint_is_removed(store: &dyn SessionStore) {
    assert_eq!(store.needed_folders().await.unwrap(), BTreeSet::new());
    let (ada, bob) = (record("ada", None), record("bob", None));
    let base = CheckpointId::generate();
    let first = checkpoint(ada.id, &[base]);
    let fork = CheckpointRecord { folder: first.id, packs: [base].into(), ..checkpoint(bob.id, &[]) };
    store.insert(&ada, &along(&first)).await.unwrap();
    store.insert(&bob, &along(&fork)).await.unwrap();
    assert_eq!(store.needed_folders().await.unwrap(), BTreeSet::from([base, first.id]));
    assert!(store.delete(ada.id, 1).await.unwrap());
    assert_eq!(store.needed_folders().await.unwrap(), BTreeSet::from([base, first.id]));
    assert!(store.delete(bob.id, 1).await.unwrap());
    assert_eq!(store.needed_folders().await.unwrap(), BTreeSet::new());
}

pub(crate) async fn session_is_looked_at_by_one_at_a_time(store: &dyn SessionStore) {
    let due = |millis: i64| Some(from_millis(1_700_000_000_000 + millis));
    let first = SessionRecord { due_at: due(1), ..record("ada", None) };
    store.insert(&first, &Along::default()).await.unwrap();
    store.insert(&record("ada", None), &Along::default()).await.unwrap();
    let by = |millis| SessionFilter { due_by: due(millis), ..SessionFilter::default() };
    assert_eq!(listed(store, &by(0)).await, []);
    assert_eq!(listed(store, &by(1)).await, [first.id], "one that is never due is not listed");
    assert!(store.postpone(&first, due(9)).await.unwrap());
    assert!(!store.postpone(&first, due(10)).await.unwrap(), "somebody has said it before");
    assert_eq!(listed(store, &by(8)).await, []);
    let seen = store.get(first.id).await.unwrap().unwrap();
    assert_eq!((seen.version, seen.due_at), (1, due(9)));
    assert!(!store.postpone(&SessionRecord { version: 2, ..seen.clone() }, None).await.unwrap());
    assert!(store.postpone(&seen, None).await.unwrap());
    let never = SessionRecord { due_at: None, ..seen };
    assert!(store.postpone(&never, due(3)).await.unwrap());
}

pub(crate) async fn details_are_kept(store: &dyn SessionStore) {
    let odd = "\0 \u{1}0 ü".to_owned();
    let details = SessionDetails {
        env: BTreeMap::from([("A".into(), odd.clone())]),
        network: WantedNetwork {
            mode: "egress".into(),
            allow: vec!["*.example.org:*".into()],
            deny: vec!["a.example.org".into(), "10.0.0.0/8".into()],
        },
        limits: Some(cloud_sandbox_model::Limits {
            memory_bytes: u64::MAX,
            cpu_millis: 1,
            pids: 2,
            disk_bytes: 3,
            open_files: 4,
            output_bytes: u64::MAX - 1,
            execution_seconds: 5,
            cpu_weight: 6,
        }),
        timeout_seconds: 9,
        idle_timeout_seconds: 8,
        on_timeout: TimeoutAction::Delete,
        auto_resume: true,
        forked_from: Some(SessionId::generate()),
        running_since: Some(from_millis(1_700_000_000_123)),
        paused: Some(Paused { depth: Depth::Frozen, auto: true, since_ms: 5 }),
        checkpoint: Some(CheckpointId::generate()),
        manifest: (0..=255).collect(),
        node: Some(NodeId::generate()),
        missing_since: Some(from_millis(1_700_000_000_124)),
        discarded: vec![SandboxId::generate()],
        flight: Some(Flight {
            pilot: "p".into(),
            until_ms: 7,
            checkpoint: Some(CheckpointId::generate()),
            sandbox: Some(SandboxId::generate()),
            before: Some(Paused { depth: Depth::Checkpointed, auto: false, since_ms: 1 }),
            failure: odd,
        }),
        acquires: 4,
        events: 2,
    };
    let first = SessionRecord { details: details.clone(), ..record("ada", None) };
    store.insert(&first, &Along::default()).await.unwrap();
    assert_eq!(store.get(first.id).await.unwrap().as_ref(), Some(&first));
    let changed = SessionRecord { details: SessionDetails { acquires: 5, ..details }, ..first };
    assert!(store.update(&changed, &Along::default()).await.unwrap());
    let stored = store.get(changed.id).await.unwrap();
    assert_eq!(stored, Some(SessionRecord { version: 2, ..changed }));
}

pub(crate) async fn store_answers(store: &dyn SessionStore) {
    store.check().await.unwrap();
}
