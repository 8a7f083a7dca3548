//! What every [`TemplateStore`] must do; each implementation runs all of it.

use std::collections::BTreeSet;

use cloud_sandbox_model::template::{Credentials, Source};

use super::*;
use crate::sessions::{from_millis, to_millis};

/// Hands every case below to another macro.
macro_rules! template_cases {
    ($then:ident!($make:expr)) => {
        $then! { $make =>
            template_is_read_back_as_created,
            each_create_is_the_next_version_of_its_name,
            no_version_is_given_twice,
            request_id_makes_one_template_of_a_user,
            creates_at_once_get_versions_of_their_own,
            lists_page_without_gap_or_repeat,
            revision_grows_with_each_change_and_with_nothing_else,
            deletes_tell_what_is_gone,
            number_and_size_of_all_are_bounded,
            store_answers,
        }
    };
}
pub(crate) use template_cases;

/// Makes one test of each case. The expression gives what the store cannot live without, and the store.
macro_rules! test_each {
    ($make:expr => $($case:ident,)*) => {$(
        #[tokio::test]
        async fn $case() {
            let (_guard, store) = $make;
            $crate::templates::conformance::$case(&store).await;
        }
    )*};
}
pub(crate) use test_each;

/// Runs all cases one after another, where each test of its own would cost a server. A failure names its line.
macro_rules! run_all {
    ($make:expr => $($case:ident,)*) => {$({
        let store = $make;
        $crate::templates::conformance::$case(&store).await;
    })*};
}
pub(crate) use run_all;

/// A template to be created by `user`.
pub(crate) fn record(name: &str, user: &str, request_id: Option<&str>) -> TemplateRecord {
    let mut template = Template::docker("python:3.11-slim");
    template.name = name.into();
    template.env.insert("A".into(), "ü\0'\u{1}".into());
    if let Source::DockerImage(image) = &mut template.source {
        image.credentials = Some(Credentials { username: "ada".into(), password: "hunter2".into() });
    }
    TemplateRecord {
        template,
        tenant: "t".into(),
        user: user.into(),
        request_id: request_id.map(str::to_owned),
        created_at: from_millis(to_millis(SystemTime::now())),
    }
}

async fn create(store: &dyn TemplateStore, record: &TemplateRecord) -> TemplateRecord {
    match store.create(record).await.unwrap() {
        Created::New(record) => record,
        other => panic!("not new: {other:?}"),
    }
}

fn references(records: &[TemplateRecord]) -> Vec<String> {
    records.iter().map(|record| record.template.reference()).collect()
}

pub(crate) async fn template_is_read_back_as_created(store: &dyn TemplateStore) {
    let wanted = record("python", "a\0da", Some("r"));
    let created = create(store, &wanted).await;
    let template = Template { version: 1, ..wanted.template.clone() };
    assert_eq!(created, TemplateRecord { template, ..wanted });
    for version in [None, Some(1)] {
        assert_eq!(store.get("python", version).await.unwrap().as_ref(), Some(&created));
    }
    assert_eq!(store.get("python", Some(2)).await.unwrap(), None);
    assert_eq!(store.get("pytho", None).await.unwrap(), None);
    assert_eq!(store.all().await.unwrap().templates, [created.template]);
}

pub(crate) async fn each_create_is_the_next_version_of_its_name(store: &dyn TemplateStore) {
    for (name, version) in [("a", 1), ("b", 1), ("a", 2), ("a", 3), ("b", 2)] {
        assert_eq!(create(store, &record(name, "ada", None)).await.template.version, version);
    }
    assert_eq!(store.get("a", None).await.unwrap().unwrap().template.version, 3);
}

pub(crate) async fn no_version_is_given_twice(store: &dyn TemplateStore) {
    for _ in 0..2 {
        create(store, &record("a", "ada", None)).await;
    }
    assert_eq!(store.delete("a", Some(2)).await.unwrap(), [2]);
    assert_eq!(store.get("a", None).await.unwrap().unwrap().template.version, 1);
    assert_eq!(create(store, &record("a", "ada", None)).await.template.version, 3);
    assert_eq!(store.delete("a", None).await.unwrap(), [1, 3]);
    assert_eq!(create(store, &record("a", "ada", None)).await.template.version, 4);
}

pub(crate) async fn request_id_makes_one_template_of_a_user(store: &dyn TemplateStore) {
    let first = create(store, &record("a", "ada", Some("r"))).await;
    // whatever it asks for: to compare is up to the caller
    let other = store.create(&record("b", "ada", Some("r"))).await.unwrap();
    assert_eq!(other, Created::Existing(first));
    assert_eq!(store.get("b", None).await.unwrap(), None);
    let elsewhere = TemplateRecord { tenant: "t2".into(), ..record("a", "ada", Some("r")) };
    for other in [record("a", "bob", Some("r")), record("a", "ada", Some("s")), elsewhere] {
        create(store, &other).await;
    }
    store.delete("a", None).await.unwrap();
    create(store, &record("a", "ada", Some("r"))).await;
}

pub(crate) async fn creates_at_once_get_versions_of_their_own(store: &dyn TemplateStore) {
    let (one, same) = (record("a", "ada", None), record("a", "ada", Some("r")));
    let made = tokio::join!(store.create(&one), store.create(&one), store.create(&same), store.create(&same));
    let made = [made.0.unwrap(), made.1.unwrap(), made.2.unwrap(), made.3.unwrap()];
    let new: BTreeSet<_> = made
        .iter()
        .filter_map(|created| match created {
            Created::New(record) => Some(record.template.version),
            _ => None,
        })
        .collect();
    assert_eq!(new.into_iter().collect::<Vec<_>>(), [1, 2, 3], "{made:?}");
}

pub(crate) async fn lists_page_without_gap_or_repeat(store: &dyn TemplateStore) {
    for name in ["b", "a-b", "a", "a", "a.b", "c", "a"] {
        create(store, &record(name, "ada", None)).await;
    }
    assert_eq!(references(&store.newest(None, 3).await.unwrap()), ["a@3", "a-b@1", "a.b@1"]);
    assert_eq!(references(&store.newest(Some("a.b"), 3).await.unwrap()), ["b@1", "c@1"]);
    assert_eq!(references(&store.versions("a", None, 2).await.unwrap()), ["a@3", "a@2"]);
    assert_eq!(references(&store.versions("a", Some(2), 2).await.unwrap()), ["a@1"]);
    assert_eq!(store.versions("x", None, 2).await.unwrap(), []);
    let all = store.all().await.unwrap().templates;
    let all: Vec<_> = all.iter().map(Template::reference).collect();
    assert_eq!(all, ["a@1", "a@2", "a@3", "a-b@1", "a.b@1", "b@1", "c@1"]);
}

pub(crate) async fn revision_grows_with_each_change_and_with_nothing_else(store: &dyn TemplateStore) {
    let before = store.revision().await.unwrap();
    assert_eq!(store.all().await.unwrap(), AllTemplates { revision: before, templates: Vec::new() });
    create(store, &record("a", "ada", Some("r"))).await;
    let created = store.revision().await.unwrap();
    assert!(created > before);
    store.create(&record("a", "ada", Some("r"))).await.unwrap();
    store.delete("b", None).await.unwrap();
    store.delete("a", Some(9)).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), created, "nothing has changed");
    assert_eq!(store.all().await.unwrap().revision, created);
    // a clock that is behind does not take it back
    let early = TemplateRecord { created_at: SystemTime::UNIX_EPOCH, ..record("a", "ada", None) };
    create(store, &early).await;
    let again = store.revision().await.unwrap();
    assert!(again > created);
    store.delete("a", None).await.unwrap();
    assert!(store.revision().await.unwrap() > again);
}

pub(crate) async fn deletes_tell_what_is_gone(store: &dyn TemplateStore) {
    for _ in 0..3 {
        create(store, &record("a", "ada", None)).await;
    }
    create(store, &record("b", "ada", None)).await;
    assert_eq!(store.delete("a", Some(2)).await.unwrap(), [2]);
    assert_eq!(store.delete("a", Some(2)).await.unwrap(), [0_u32; 0]);
    assert_eq!(store.delete("a", None).await.unwrap(), [1, 3]);
    assert_eq!(store.delete("a", None).await.unwrap(), [0_u32; 0]);
    assert_eq!(references(&store.newest(None, 9).await.unwrap()), ["b@1"]);
}

pub(crate) async fn number_and_size_of_all_are_bounded(store: &dyn TemplateStore) {
    let mut large = record("large", "ada", None);
    large.template.env.insert("B".into(), "x".repeat(BYTES_MAX / 2));
    create(store, &large).await;
    assert_eq!(store.create(&large).await.unwrap(), Created::Full);
    for _ in 1..TEMPLATES_MAX {
        create(store, &record("small", "ada", None)).await;
    }
    assert_eq!(store.create(&record("small", "ada", None)).await.unwrap(), Created::Full);
    store.delete("large", None).await.unwrap();
    // what was refused has no number
    assert_eq!(create(store, &large).await.template.version, 2);
}

pub(crate) async fn store_answers(store: &dyn TemplateStore) {
    store.check().await.unwrap();
    store.close().await;
}
