//! Which checkpoints of a session are kept: the last ones, by number and by age, and what was left half-written is not.

use std::time::SystemTime;

use cloud_sandbox_model::CheckpointId;
use cloud_sandbox_storage::CheckpointRecord;

use crate::options::Options;

/// Those of `kept` that are not kept any more once `last` is complete.
pub(crate) fn superfluous(kept: &[CheckpointRecord], last: &CheckpointRecord, options: &Options) -> Vec<CheckpointId> {
    let others: Vec<_> = kept.iter().filter(|checkpoint| checkpoint.id != last.id).collect();
    let mut complete: Vec<_> = others.iter().filter(|checkpoint| checkpoint.complete).collect();
    // newest first; ids of one session sort by their time, unless its clock was turned back
    complete.sort_by_key(|checkpoint| std::cmp::Reverse((checkpoint.created_at, checkpoint.id)));
    let too_many = complete.iter().skip(options.checkpoints_kept.max(1) - 1).map(|checkpoint| checkpoint.id);
    let oldest = last.created_at.checked_sub(options.checkpoints_kept_for).unwrap_or(SystemTime::UNIX_EPOCH);
    let too_old = complete.iter().filter(|checkpoint| checkpoint.created_at < oldest).map(|checkpoint| checkpoint.id);
    // nobody writes another one while this one is being completed
    let half = others.iter().filter(|checkpoint| !checkpoint.complete).map(|checkpoint| checkpoint.id);
    let mut gone: Vec<_> = too_many.chain(too_old).chain(half).collect();
    gone.sort();
    gone.dedup();
    gone
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cloud_sandbox_model::SessionId;

    use super::*;

    fn made(day: u64, complete: bool) -> CheckpointRecord {
        let id = CheckpointId::generate();
        CheckpointRecord {
            id,
            session: SessionId::generate(),
            complete,
            folder: id,
            digest: Vec::new(),
            parent: None,
            packs: [id].into(),
            files: 0,
            bytes: 0,
            stored_bytes: 0,
            created_at: SystemTime::UNIX_EPOCH + Duration::from_secs(day * 86_400),
        }
    }

    fn days(gone: &[CheckpointId], kept: &[CheckpointRecord]) -> Vec<u64> {
        let day = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 86_400;
        kept.iter().filter(|checkpoint| gone.contains(&checkpoint.id)).map(|kept| day(kept.created_at)).collect()
    }

    #[test]
    fn last_ones_are_kept_by_number_and_age_and_the_very_last_always() {
        let kept: Vec<_> = [100, 101, 102, 103].into_iter().map(|day| made(day, true)).collect();
        let options = Options {
            checkpoints_kept: 3,
            checkpoints_kept_for: Duration::from_secs(30 * 86_400),
            ..Options::default()
        };
        let gone = |day, options: &Options| days(&superfluous(&kept, &made(day, true), options), &kept);
        assert_eq!(gone(104, &options), [100, 101]);
        assert_eq!(gone(132, &options), [100, 101], "of 30 days");
        assert_eq!(gone(133, &options), [100, 101, 102]);
        assert_eq!(gone(500, &options), [100, 101, 102, 103]);
        let one = Options { checkpoints_kept: 0, ..options };
        assert_eq!(gone(104, &one), [100, 101, 102, 103]);
    }

    #[test]
    fn half_written_one_is_not_kept() {
        let kept = [made(1, true), made(2, false)];
        assert_eq!(days(&superfluous(&kept, &made(3, true), &Options::default()), &kept), [2]);
    }
}
