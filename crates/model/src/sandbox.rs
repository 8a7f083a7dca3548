//! The life of a sandbox.
//!
//! ```text
//! creating → ready (in the pool) → acquired ⇄ paused
//!     └────────┴───────────────────────┴────────┴──→ terminating → (gone)
//! ```
//! A cold acquire goes from creating to ready to acquired as a warm one does.

/// The user and group inside that the agent and all user code run as, unless a template says otherwise.
pub const USER: u32 = 1000;

/// A step in a sandbox's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SandboxState {
    Creating,
    Ready,
    Acquired,
    Paused,
    Terminating,
}

impl SandboxState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Creating, Self::Ready, Self::Acquired, Self::Paused, Self::Terminating];

    /// Whether a sandbox may go from this state to `next`.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        matches!(
            (self, next),
            (Self::Creating, Self::Ready | Self::Terminating)
                | (Self::Ready, Self::Acquired | Self::Terminating)
                | (Self::Acquired, Self::Paused | Self::Terminating)
                | (Self::Paused, Self::Acquired | Self::Terminating)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::SandboxState::*;
    use super::*;

    #[test]
    fn only_the_drawn_transitions_are_allowed() {
        let drawn = [
            (Creating, Ready),
            (Creating, Terminating),
            (Ready, Acquired),
            (Ready, Terminating),
            (Acquired, Paused),
            (Acquired, Terminating),
            (Paused, Acquired),
            (Paused, Terminating),
        ];
        for from in SandboxState::ALL {
            for to in SandboxState::ALL {
                assert_eq!(from.may_become(to), drawn.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
    }
}
