//! The life of a session.
//!
//! ```text
//! creating → running → pausing → paused → resuming → running
//!    └──────────┴─────────┴────────┴─────────┴── failed ── deleting → (gone)
//! ```
//! A paused session may go back to pausing, for a deeper pause. Every state may go to failed and to deleting; a failed
//! session can be deleted, and go to resuming when it has a checkpoint.

/// A step in a session's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionState {
    Creating,
    Running,
    Pausing,
    Paused,
    Resuming,
    Failed,
    Deleting,
}

impl SessionState {
    /// Every state.
    pub const ALL: [Self; 7] =
        [Self::Creating, Self::Running, Self::Pausing, Self::Paused, Self::Resuming, Self::Failed, Self::Deleting];

    /// Whether a session may go from this state to `next`.
    #[must_use]
    pub const fn may_become(self, next: Self) -> bool {
        match (self, next) {
            (Self::Creating, Self::Running)
            | (Self::Running, Self::Pausing)
            | (Self::Pausing, Self::Paused | Self::Running)
            | (Self::Paused | Self::Failed, Self::Resuming)
            | (Self::Paused, Self::Pausing)
            | (Self::Resuming, Self::Running | Self::Paused) => true,
            (Self::Deleting | Self::Failed, Self::Failed) | (Self::Deleting, Self::Deleting) => false,
            (_, Self::Failed | Self::Deleting) => true,
            _ => false,
        }
    }

    /// The word for it in stores and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::SessionState::*;
    use super::*;

    #[test]
    fn only_the_drawn_transitions_are_allowed() {
        let ahead = [
            (Creating, Running),
            (Running, Pausing),
            (Pausing, Paused),
            (Pausing, Running),
            (Paused, Resuming),
            (Paused, Pausing),
            (Failed, Resuming),
            (Resuming, Running),
            (Resuming, Paused),
        ];
        for from in SessionState::ALL {
            for to in SessionState::ALL {
                let ends = match to {
                    Failed => !matches!(from, Failed | Deleting),
                    Deleting => from != Deleting,
                    _ => false,
                };
                assert_eq!(from.may_become(to), ends || ahead.contains(&(from, to)), "{from:?} to {to:?}");
            }
        }
    }

    #[test]
    fn words_are_read_back() {
        for state in SessionState::ALL {
            assert_eq!(SessionState::from_word(state.as_str()), Some(state));
        }
    }
}
