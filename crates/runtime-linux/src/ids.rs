//! Host ids for the users of sandboxes.

use std::sync::{Mutex, PoisonError};

use cloud_sandbox_jailer::IdMap;
use cloud_sandbox_model::sandbox::USER;
use nix::unistd::{Uid, getuid};

/// Ids in one sandbox's range.
const RANGE: u32 = 65_536;
/// The first id given out: above what useradd(8) and systemd-nspawn(1) take (0x6fff_ffff), below the sign bit.
const FIRST: u32 = 0x7000_0000;
/// How many ranges there are.
const SLOTS: usize = 4095;

/// Gives a range of its own to each sandbox, so that two sandboxes are strangers also to the kernel.
pub struct IdRanges {
    /// whether this process may map ranges; without privilege it can only map itself
    privileged: bool,
    taken: Mutex<Slots>,
}

struct Slots {
    taken: Vec<bool>,
    next: usize,
}

impl IdRanges {
    pub fn new() -> Self {
        // a random start keeps two servers on one host apart for all practical purposes
        let next = rand::random_range(0..SLOTS);
        let taken = Mutex::new(Slots { taken: vec![false; SLOTS], next });
        Self { privileged: Uid::effective().is_root(), taken }
    }

    /// Whether each sandbox gets ids of its own.
    pub fn are_unique(&self) -> bool {
        self.privileged
    }

    /// A range that no other sandbox has; `None` when all are taken.
    pub fn take(&self) -> Option<IdMap> {
        if !self.privileged {
            return Some(IdMap { inside: USER, outside: getuid().as_raw(), count: 1 });
        }
        let mut slots = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let start = slots.next;
        let slot = (0..SLOTS).map(|step| (start + step) % SLOTS).find(|slot| !slots.taken[*slot])?;
        slots.taken[slot] = true;
        slots.next = (slot + 1) % SLOTS;
        let outside = FIRST + u32::try_from(slot).expect("there are few slots") * RANGE;
        Some(IdMap { inside: 0, outside, count: RANGE })
    }

    /// Takes a range back.
    pub fn give_back(&self, map: IdMap) {
        if self.privileged {
            let mut slots = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            slots.taken[((map.outside - FIRST) / RANGE) as usize] = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn privileged() -> IdRanges {
        IdRanges { privileged: true, taken: Mutex::new(Slots { taken: vec![false; SLOTS], next: SLOTS - 2 }) }
    }

    #[test]
    fn ranges_are_disjoint_and_end() {
        let ranges = privileged();
        let firsts: HashSet<_> = (0..SLOTS).map(|_| ranges.take().unwrap().outside).collect();
        assert_eq!(firsts.len(), SLOTS);
        assert!(
            firsts.iter().all(|first| first % RANGE == 0 && first.checked_add(RANGE).is_some_and(|end| end < 1 << 31))
        );
        assert!(ranges.take().is_none());
    }

    #[test]
    fn range_given_back_is_taken_again() {
        let ranges = privileged();
        let maps: Vec<_> = (0..SLOTS).map(|_| ranges.take().unwrap()).collect();
        ranges.give_back(maps[7]);
        assert_eq!(ranges.take(), Some(maps[7]));
    }
}
