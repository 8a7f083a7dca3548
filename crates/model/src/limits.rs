//! What one sandbox may take.

use crate::{error::Result, input::Violations};

const MIB: u64 = 1024 * 1024;

/// Bounds of one sandbox's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// bytes of memory, files in the sandbox included
    pub memory_bytes: u64,
    /// thousandths of a core
    pub cpu_millis: u32,
    /// processes and threads
    pub pids: u32,
    /// bytes in all writable folders
    pub disk_bytes: u64,
}

impl Limits {
    /// The least that a sandbox can work with.
    pub const MIN: Self = Self { memory_bytes: 16 * MIB, cpu_millis: 10, pids: 4, disk_bytes: MIB };
    /// What a template has unless it says otherwise: enough for a compiler, too little to hurt a neighbour.
    pub const DEFAULT: Self = Self { memory_bytes: 1024 * MIB, cpu_millis: 1000, pids: 256, disk_bytes: 512 * MIB };
    /// The most that a caller may ask for.
    pub const MAX: Self =
        Self { memory_bytes: 64 * 1024 * MIB, cpu_millis: 64_000, pids: 32_768, disk_bytes: 64 * 1024 * MIB };

    /// The limits with what `wanted` has instead; a zero there keeps what is here.
    pub fn overlaid(self, wanted: Self, max: Self) -> Result<Self> {
        fn pick<T: PartialEq + Default>(wanted: T, own: T) -> T {
            if wanted == T::default() { own } else { wanted }
        }
        let memory_bytes = pick(wanted.memory_bytes, self.memory_bytes);
        let own = Self { memory_bytes, ..self }.with_disk_within_memory();
        let limits = Self {
            memory_bytes,
            cpu_millis: pick(wanted.cpu_millis, self.cpu_millis),
            pids: pick(wanted.pids, self.pids),
            disk_bytes: pick(wanted.disk_bytes, own.disk_bytes),
        };
        let mut violations = Violations::default();
        violations.range("limits.memory_bytes", &limits.memory_bytes, &Self::MIN.memory_bytes, &max.memory_bytes);
        violations.range("limits.cpu_millis", &limits.cpu_millis, &Self::MIN.cpu_millis, &max.cpu_millis);
        violations.range("limits.pids", &limits.pids, &Self::MIN.pids, &max.pids);
        violations.range("limits.disk_bytes", &limits.disk_bytes, &Self::MIN.disk_bytes, &max.disk_bytes);
        let fits = limits.disk_bytes <= limits.disk_bytes_max();
        violations.check(fits, "limits.disk_bytes", "must be at most three quarters of limits.memory_bytes");
        violations.finish()?;
        Ok(limits)
    }

    /// The limits with no more disk than memory allows. Files are memory: a disk that could fill all of it would leave a
    /// full disk to the kernel, which kills, instead of to an error.
    #[must_use]
    pub fn with_disk_within_memory(self) -> Self {
        Self { disk_bytes: self.disk_bytes.min(self.memory_bytes / 2), ..self }
    }

    fn disk_bytes_max(self) -> u64 {
        self.memory_bytes / 4 * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Limits = Limits { memory_bytes: 0, cpu_millis: 0, pids: 0, disk_bytes: 0 };

    #[test]
    fn zero_keeps_the_default() {
        let limits = Limits::DEFAULT.overlaid(Limits { pids: 9, ..NONE }, Limits::MAX).unwrap();
        assert_eq!(limits, Limits { pids: 9, ..Limits::DEFAULT });
    }

    #[test]
    fn disk_stays_within_memory() {
        let limits = Limits::DEFAULT.overlaid(Limits { memory_bytes: 64 * MIB, ..NONE }, Limits::MAX).unwrap();
        assert_eq!(limits.disk_bytes, 32 * MIB);
        let wanted = Limits { memory_bytes: 64 * MIB, disk_bytes: 49 * MIB, ..NONE };
        let error = Limits::DEFAULT.overlaid(wanted, Limits::MAX).unwrap_err();
        assert_eq!(error.violations()[0].field, "limits.disk_bytes");
    }

    #[test]
    fn what_is_out_of_bounds_is_named_with_the_bound() {
        let error = Limits::DEFAULT.overlaid(Limits { pids: 3, memory_bytes: 1, ..NONE }, Limits::MAX).unwrap_err();
        assert!(error.message().contains("limits.pids must be from 4 to 32768"), "{error}");
        assert!(error.message().contains("limits.memory_bytes must be from 16777216"), "{error}");
    }
}
