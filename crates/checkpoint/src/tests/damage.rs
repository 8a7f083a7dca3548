//! What is not what was saved is noticed, and said.

use std::sync::Arc;

use cloud_sandbox_model::ErrorKind;
use cloud_sandbox_model::{CheckpointId, error::Error, error::reason};
use prost::Message;

use super::{
    agent::{Tree, file, folder, noise},
    open, restored,
    round_trip::small,
    save,
    store::FakeStore,
};
use crate::{Checkpoint, Saved};

fn is_damaged(error: &Error, checkpoint: CheckpointId) -> bool {
    (error.kind(), error.reason()) == (ErrorKind::DataLoss, reason::CHECKPOINT_DAMAGED)
        && error.message().contains(&checkpoint.to_string())
}

async fn assert_refused(store: &Arc<FakeStore>, id: CheckpointId, digest: &[u8], what: &str) {
    let error = Checkpoint::open(store.as_ref(), id, digest).await.err().unwrap_or_else(|| panic!("{what} was taken"));
    assert!(is_damaged(&error, id), "{what}: {error}");
}

/// Puts another manifest in the place of one, with the digest that it has.
async fn assert_manifest_refused(store: &Arc<FakeStore>, id: CheckpointId, records: &[u8], what: &str) {
    let manifest = zstd::encode_all(records, 1).unwrap();
    let digest = blake3::hash(&manifest);
    store.replace(id, "manifest", manifest);
    assert_refused(store, id, digest.as_bytes(), what).await;
}

async fn saved() -> (Arc<FakeStore>, Saved, Vec<u8>) {
    let store = Arc::new(FakeStore::default());
    let saved = save(&store, &small(), None).await.unwrap();
    let manifest = store.object(saved.id, "manifest").to_vec();
    (store, saved, manifest)
}

#[tokio::test]
async fn every_cut_of_a_manifest_is_refused() {
    let (store, saved, manifest) = saved().await;
    for length in 0..manifest.len() {
        store.replace(saved.id, "manifest", manifest[..length].to_vec());
        assert_refused(&store, saved.id, &saved.digest, "a cut manifest").await;
        // also by who would believe its digest
        let digest = blake3::hash(&manifest[..length]);
        assert_refused(&store, saved.id, digest.as_bytes(), "a cut manifest with its digest").await;
    }
    let records = zstd::decode_all(&manifest[..]).unwrap();
    for length in 0..records.len() {
        assert_manifest_refused(&store, saved.id, &records[..length], "cut records").await;
    }
    assert_manifest_refused(&store, saved.id, &[&records[..], &records[..]].concat(), "records twice").await;
}

#[tokio::test]
async fn every_flipped_byte_of_a_manifest_is_noticed() {
    let (store, saved, manifest) = saved().await;
    for at in 0..manifest.len() {
        let mut flipped = manifest.clone();
        flipped[at] ^= 0x10;
        store.replace(saved.id, "manifest", flipped);
        assert_refused(&store, saved.id, &saved.digest, "a flipped manifest").await;
    }
    store.remove(saved.id, "manifest");
    assert_refused(&store, saved.id, &saved.digest, "no manifest").await;
}

#[tokio::test]
async fn no_flipped_byte_of_the_records_is_a_panic() {
    let (store, saved, manifest) = saved().await;
    let records = zstd::decode_all(&manifest[..]).unwrap();
    for at in 0..records.len() {
        let mut flipped = records.clone();
        flipped[at] ^= 0x01;
        let manifest = zstd::encode_all(&flipped[..], 1).unwrap();
        let digest = *blake3::hash(&manifest).as_bytes();
        store.replace(saved.id, "manifest", manifest);
        // many mean something else now; none of those that can be opened may break a restore
        match Checkpoint::open(store.as_ref(), saved.id, &digest).await {
            Ok(checkpoint) => drop(restored(&store, &checkpoint).await),
            Err(error) => assert!(is_damaged(&error, saved.id), "{error}"),
        }
    }
}

#[tokio::test]
async fn manifest_of_another_checkpoint_or_format_is_refused() {
    let (store, saved, manifest) = saved().await;
    let other = CheckpointId::generate();
    store.replace(other, "manifest", manifest.clone());
    assert_refused(&store, other, &saved.digest, "another's manifest").await;

    let records = bytes::Bytes::from(zstd::decode_all(&manifest[..]).unwrap());
    let mut rest = records.clone();
    let length = prost::decode_length_delimiter(&mut rest).unwrap();
    let mut record = cloud_sandbox_proto::checkpoint::v1::ManifestRecord::decode(rest.split_to(length)).unwrap();
    let Some(cloud_sandbox_proto::checkpoint::v1::manifest_record::Record::Header(header)) = &mut record.record else {
        panic!("no header")
    };
    header.format = 2;
    let later = [&record.encode_length_delimited_to_vec()[..], &rest[..]].concat();
    assert_manifest_refused(&store, saved.id, &later, "a later format").await;
}

#[tokio::test]
async fn every_flipped_byte_of_a_pack_is_noticed_with_the_names_of_all() {
    let (store, saved, _) = saved().await;
    let checkpoint = open(&store, &saved).await.unwrap();
    let pack = store.object(saved.id, "pack-00000");
    for at in 0..pack.len() {
        let mut flipped = pack.to_vec();
        flipped[at] ^= 1;
        store.replace(saved.id, "pack-00000", flipped);
        let error = restored(&store, &checkpoint).await.unwrap_err();
        assert!(is_damaged(&error, saved.id), "byte {at}: {error}");
        assert!(error.message().contains(&format!("{}/pack-00000", saved.id)), "{error}");
        assert!(error.message().contains("of file \"/workspace/"), "{error}");
    }
    store.replace(saved.id, "pack-00000", pack);
    assert_eq!(restored(&store, &checkpoint).await.unwrap(), small().seen());
}

#[tokio::test]
async fn missing_or_cut_pack_is_noticed() {
    let store = Arc::new(FakeStore::default());
    let tree = Tree::new([("/w", folder([("one", file(noise(1, 2000))), ("other", file(noise(2, 100)))]))]);
    let saved = save(&store, &tree, None).await.unwrap();
    let checkpoint = open(&store, &saved).await.unwrap();
    let pack = store.object(saved.id, "pack-00000");
    for length in [0, 1, 1999, 2050, pack.len() - 1] {
        store.replace(saved.id, "pack-00000", pack.slice(..length));
        assert!(is_damaged(&restored(&store, &checkpoint).await.unwrap_err(), saved.id), "{length}");
    }
    store.remove(saved.id, "pack-00000");
    let error = restored(&store, &checkpoint).await.unwrap_err();
    assert!(is_damaged(&error, saved.id) && error.message().contains("missing"), "{error}");
}

#[tokio::test]
async fn digest_of_another_length_is_an_invalid_argument() {
    let (store, saved, _) = saved().await;
    let error = Checkpoint::open(store.as_ref(), saved.id, &saved.digest[..31]).await.err().unwrap();
    assert_eq!((error.kind(), error.message()), (ErrorKind::InvalidArgument, "digest must have 32 bytes"));
}
