//! Checkpoints: made, listed, gone back to, kept by number and age, and collected when nobody needs them.

use std::time::Duration;

use cloud_sandbox_model::{ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{
    PauseDepth, ResumeSessionRequest, SessionState, session_service_server::SessionService as _,
};
use cloud_sandbox_session::Options;
use cloud_sandbox_sim_node::by_admin;
use cloud_sandbox_storage::SessionStore as _;

use crate::world::{World, checkpoint, fork_of, outcome, sandbox};

#[tokio::test]
async fn checkpoint_of_a_running_session_lets_it_go_on() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let first = world.checkpoint(id).await.unwrap();
    assert_eq!((first.files, first.bytes, first.parent_id.as_str()), (1, 4, ""));
    assert!(!world.node.is_stopped(sandbox(&session)));
    let running = world.get(id).await.unwrap();
    assert_eq!((running.state(), &running.checkpoint_id), (SessionState::Running, &first.checkpoint_id));
    assert_eq!(running.expire_time, session.expire_time, "it counts from when it began to run");
    world.node.set_content(sandbox(&session), "one\ntwo\n");
    let second = world.checkpoint(id).await.unwrap();
    assert_eq!(second.parent_id, first.checkpoint_id);
    assert_eq!(world.checkpoints(id).await, [second.checkpoint_id, first.checkpoint_id], "newest first");
    assert_eq!(world.kinds(id).await, ["created", "checkpointed", "checkpointed"]);
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    assert_eq!(world.checkpoint(id).await.unwrap_err().reason(), reason::SESSION_STATE);
}

#[tokio::test]
async fn session_goes_back_to_an_older_checkpoint_and_later_ones_stay() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let first = world.checkpoint(id).await.unwrap();
    world.node.set_content(sandbox(&session), "two\n");
    let later = world.pause(id, PauseDepth::Checkpointed).await.unwrap().checkpoint_id;
    let back = world.resume_from(id, &first.checkpoint_id).await.unwrap();
    assert_eq!(world.content(id).await, "one\n");
    let lost = back.resume_manifest.unwrap().lost;
    assert_eq!(
        (lost[0].kind.as_str(), lost[0].reason.as_str()),
        ("work", "the session was taken back to this checkpoint")
    );
    assert_eq!(back.checkpoint_id, first.checkpoint_id);
    let refused = world.resume_from(id, &later).await.unwrap_err();
    assert_eq!(refused.reason(), reason::SESSION_STATE, "it runs");
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    world.resume_from(id, &later).await.unwrap();
    assert_eq!((world.content(id).await.as_str(), world.node.sandboxes().len()), ("two\n", 1));
}

#[tokio::test]
async fn unknown_checkpoint_is_not_found_and_a_bad_id_is_named() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let other = world.session_with("other\n").await;
    let theirs = world.checkpoint(&other.session_id).await.unwrap().checkpoint_id;
    let id = &session.session_id;
    world.pause(id, PauseDepth::Checkpointed).await.unwrap();
    let refused = world.resume_from(id, &theirs).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::NotFound, reason::CHECKPOINT_NOT_FOUND));
    assert_eq!(world.resume_from(id, "junk").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Paused);
}

#[tokio::test]
async fn old_checkpoints_go_with_the_folders_that_nobody_needs() {
    let world = World::with(Options { checkpoints_kept: 2, ..Options::default() }).await;
    let session = world.session_with("").await;
    let id = &session.session_id;
    let mut made = Vec::new();
    // the first line lies in the pack of the first checkpoint for ever, the others change
    for content in ["one\n", "one\ntwo\n", "one\nthree\n", "one\nfour\n"] {
        world.node.set_content(sandbox(&session), content);
        made.insert(0, world.checkpoint(id).await.unwrap().checkpoint_id);
    }
    assert_eq!(world.checkpoints(id).await, made[..2]);
    assert_eq!(world.kinds(id).await.iter().filter(|kind| *kind == "checkpoint_removed").count(), 2);
    world.keeper.collect().await;
    let left = [&made[3], &made[1], &made[0]].map(|id| checkpoint(id));
    assert_eq!(world.workspaces.all(), left, "the second is gone, the first is needed");
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    world.resume_from(id, &made[1]).await.unwrap();
    assert_eq!(world.content(id).await, "one\nthree\n");
    world.delete(id).await.unwrap();
    world.keeper.collect().await;
    assert_eq!(world.workspaces.all(), []);
}

#[tokio::test]
async fn checkpoints_grow_old_also_when_nobody_makes_new_ones() {
    let world = World::with(Options { checkpoints_kept_for: Duration::from_secs(1000), ..Options::default() }).await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let first = world.checkpoint(id).await.unwrap();
    world.node.set_content(sandbox(&session), "two\n");
    let last = world.pause(id, PauseDepth::Checkpointed).await.unwrap().checkpoint_id;
    world.look().await;
    assert_eq!(world.checkpoints(id).await, [last.clone(), first.checkpoint_id.clone()]);
    let mut record = world.stored(id).await.unwrap();
    let mut kept = world.store.checkpoints(record.id).await.unwrap();
    kept.iter_mut().for_each(|checkpoint| checkpoint.created_at = crate::world::ago(2000));
    let along = cloud_sandbox_storage::sessions::Along { checkpoints: kept, ..Default::default() };
    record.due_at = None;
    assert!(world.store.update(&record, &along).await.unwrap());
    world.look().await;
    assert_eq!(world.checkpoints(id).await, [last], "the last one always stays");
    let told = format!("checkpoint {} has become too old", first.checkpoint_id);
    assert_eq!(world.events(id).await.pop().unwrap(), ("checkpoint_removed".to_owned(), told));
}

#[tokio::test]
async fn fork_keeps_what_it_has_of_a_session_that_is_deleted() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let fork = world.fork(fork_of(&session.session_id)).await.unwrap().session_id;
    world.delete(&session.session_id).await.unwrap();
    world.keeper.collect().await;
    assert_eq!(world.workspaces.all().len(), 1);
    world.pause(&fork, PauseDepth::Checkpointed).await.unwrap();
    world.keeper.collect().await;
    world.resume(&fork).await.unwrap();
    assert_eq!(world.content(&fork).await, "one\n");
    world.delete(&fork).await.unwrap();
    world.keeper.collect().await;
    assert_eq!(world.workspaces.all(), []);
}

#[tokio::test]
async fn damaged_checkpoint_offers_the_one_before_it() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let older = world.checkpoint(id).await.unwrap().checkpoint_id;
    world.node.set_content(sandbox(&session), "two\n");
    let last = world.pause(id, PauseDepth::Checkpointed).await.unwrap().checkpoint_id;
    world.workspaces.damage(checkpoint(&last));
    let refused = world.resume(id).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::DataLoss, reason::CHECKPOINT_DAMAGED));
    assert!(
        refused.metadata().contains(&("older_checkpoint_id".to_owned(), older.clone())),
        "{:?}",
        refused.metadata()
    );
    assert!(refused.to_string().contains(&older));
    assert_eq!((world.get(id).await.unwrap().state(), world.node.sandboxes()), (SessionState::Paused, vec![]));
    world.resume_from(id, &older).await.unwrap();
    assert_eq!(world.content(id).await, "one\n");
    world.pause(id, PauseDepth::Checkpointed).await.unwrap();
    world.workspaces.damage(checkpoint(&older));
    assert!(world.resume_from(id, &older).await.unwrap_err().metadata().is_empty(), "there is none before it");
}

#[tokio::test]
async fn session_whose_last_checkpoint_is_damaged_is_saved_whole() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let damaged = world.checkpoint(id).await.unwrap().checkpoint_id;
    world.workspaces.damage(checkpoint(&damaged));
    world.node.set_content(sandbox(&session), "one\ntwo\n");
    let saved = world.checkpoint(id).await.unwrap();
    assert_eq!(saved.parent_id, "", "it stands alone");
    world.pause(id, PauseDepth::Checkpointed).await.unwrap();
    world.resume(id).await.unwrap();
    assert_eq!(world.content(id).await, "one\ntwo\n");
}

#[tokio::test]
async fn failed_session_goes_on_from_its_last_checkpoint_and_says_what_was_lost() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let last = world.checkpoint(id).await.unwrap().checkpoint_id;
    world.node.set_content(sandbox(&session), "one\ntwo\n");
    world.node.end(sandbox(&session)).await;
    let failed = world.get(id).await.unwrap();
    assert_eq!((failed.state(), failed.failure.as_str()), (SessionState::Failed, "its sandbox ended"));
    let told = format!("its sandbox ended; it can be resumed from checkpoint {last}");
    assert_eq!(world.events(id).await.pop().unwrap(), ("failed".to_owned(), told));
    let resumed = world.resume(id).await.unwrap();
    assert_eq!((resumed.state(), resumed.failure.as_str()), (SessionState::Running, ""));
    assert_eq!(world.content(id).await, "one\n");
    let lost = resumed.resume_manifest.unwrap().lost;
    assert_eq!((lost[0].kind.as_str(), lost[0].reason.as_str()), ("work", "the session failed: its sandbox ended"));
}

#[tokio::test]
async fn admin_thaws_but_does_not_restore_somebody_elses_session() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let resume = || ResumeSessionRequest { session_id: id.clone(), ..ResumeSessionRequest::default() };
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    outcome(world.service.resume_session(by_admin(resume())).await).unwrap();
    world.pause(id, PauseDepth::Checkpointed).await.unwrap();
    let refused = outcome(world.service.resume_session(by_admin(resume())).await).unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::PermissionDenied, reason::ROLE_DENIED));
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Paused);
}
