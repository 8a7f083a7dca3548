//! What an attack is.

use crate::target::Target;

/// One attack, a test of its own.
pub struct Attempt {
    /// what it tries
    pub name: &'static str,
    /// tries it, and panics where it gets through
    pub run: fn(&Target),
    /// what the runtime must be able to do for it
    pub needs: Need,
    /// whether it is harmless on a bare host and gets through there
    pub proved: bool,
}

/// What some attacks need of a runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// a sandbox
    Sandbox,
    /// a bound of the memory of all processes together
    MemoryLimit,
    /// a network interface
    Interface,
}

impl Attempt {
    pub const fn new(name: &'static str, run: fn(&Target)) -> Self {
        Self { name, run, needs: Need::Sandbox, proved: false }
    }

    pub const fn proved(self) -> Self {
        Self { proved: true, ..self }
    }

    pub const fn needs(self, needs: Need) -> Self {
        Self { needs, ..self }
    }
}

/// A theme's attacks, named as their functions: `ATTEMPTS` of the module. Those behind `proved` get through on a bare host.
macro_rules! attempts {
    ($($(#[$kind:ident $(($argument:expr))?])* $name:ident),* $(,)?) => {
        pub const ATTEMPTS: &[$crate::attempt::Attempt] =
            &[$($crate::attempt::Attempt::new(stringify!($name), $name)$(.$kind($($argument)?))*),*];
    };
}
pub(crate) use attempts;
