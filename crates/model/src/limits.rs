//! What one sandbox may take.

use serde::{Deserialize, Serialize};

use crate::{error::Result, input::Violations};

const MIB: u64 = 1024 * 1024;

/// Bounds of one sandbox's use. By default, and where it is read and does not say, a limit is unset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// bytes of memory, files in the sandbox included
    pub memory_bytes: u64,
    /// thousandths of a core
    pub cpu_millis: u32,
    /// processes and threads
    pub pids: u32,
    /// bytes in all writable folders
    pub disk_bytes: u64,
    /// files that one process may have open
    pub open_files: u32,
    /// bytes that are kept of one execution's output
    pub output_bytes: u64,
    /// the longest that one execution in the foreground may take, in seconds
    pub execution_seconds: u32,
    /// share of the CPU against that of other sandboxes
    pub cpu_weight: u32,
}

impl Limits {
    /// Nothing said of any limit.
    pub const UNSET: Self = Self {
        memory_bytes: 0,
        cpu_millis: 0,
        pids: 0,
        disk_bytes: 0,
        open_files: 0,
        output_bytes: 0,
        execution_seconds: 0,
        cpu_weight: 0,
    };
    /// The least that a sandbox can work with.
    pub const MIN: Self = Self {
        memory_bytes: 16 * MIB,
        cpu_millis: 10,
        pids: 4,
        disk_bytes: MIB,
        open_files: 64,
        output_bytes: MIB / 16,
        execution_seconds: 1,
        cpu_weight: 1,
    };
    /// What a template has unless it says otherwise: enough for a compiler, too little to hurt a neighbour.
    pub const DEFAULT: Self = Self {
        memory_bytes: 1024 * MIB,
        cpu_millis: 1000,
        pids: 256,
        disk_bytes: 512 * MIB,
        // with the default limit of processes, less than what hosts allow all programs together
        open_files: 4096,
        // a build's whole log
        output_bytes: 64 * MIB,
        // an execution has a timeout of its own, which is a minute unless its caller says otherwise
        execution_seconds: 86_400,
        // what the kernel gives every group that says nothing
        cpu_weight: 100,
    };
    /// The most that a caller may ask for.
    pub const MAX: Self = Self {
        memory_bytes: 64 * 1024 * MIB,
        cpu_millis: 64_000,
        pids: 32_768,
        disk_bytes: 64 * 1024 * MIB,
        open_files: 65_536,
        output_bytes: 16 * 1024 * 1024 * MIB,
        execution_seconds: 86_400,
        cpu_weight: 10_000,
    };

    /// The limits with what `wanted` has instead; a zero there keeps what is here.
    pub fn overlaid(self, wanted: Self, max: Self) -> Result<Self> {
        let limits = self.with(wanted);
        limits.check("limits.", max)?;
        Ok(limits)
    }

    /// The same, unchecked.
    #[must_use]
    pub fn with(self, wanted: Self) -> Self {
        fn pick<T: PartialEq + Default>(wanted: T, own: T) -> T {
            if wanted == T::default() { own } else { wanted }
        }
        let memory_bytes = pick(wanted.memory_bytes, self.memory_bytes);
        let own = Self { memory_bytes, ..self }.with_disk_within_memory();
        Self {
            memory_bytes,
            cpu_millis: pick(wanted.cpu_millis, self.cpu_millis),
            pids: pick(wanted.pids, self.pids),
            disk_bytes: pick(wanted.disk_bytes, own.disk_bytes),
            open_files: pick(wanted.open_files, self.open_files),
            output_bytes: pick(wanted.output_bytes, self.output_bytes),
            execution_seconds: pick(wanted.execution_seconds, self.execution_seconds),
            cpu_weight: pick(wanted.cpu_weight, self.cpu_weight),
        }
    }

    /// Every limit that is out of its bounds, named with `prefix` before it.
    pub fn check(self, prefix: &str, max: Self) -> Result<()> {
        let mut violations = Violations::default();
        let min = Self::MIN;
        macro_rules! within {
            ($($limit:ident),*) => {
                $(violations.range(&format!("{prefix}{}", stringify!($limit)), &self.$limit, &min.$limit, &max.$limit);)*
            };
        }
        within!(memory_bytes, cpu_millis, pids, disk_bytes, open_files, output_bytes, execution_seconds, cpu_weight);
        let fits = self.disk_bytes <= self.disk_bytes_max();
        let rule = format!("must be at most three quarters of {prefix}memory_bytes");
        violations.check(fits, &format!("{prefix}disk_bytes"), rule);
        violations.finish()
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

    #[test]
    fn zero_keeps_the_default() {
        let limits = Limits::DEFAULT.overlaid(Limits { pids: 9, ..Limits::UNSET }, Limits::MAX).unwrap();
        assert_eq!(limits, Limits { pids: 9, ..Limits::DEFAULT });
    }

    #[test]
    fn disk_stays_within_memory() {
        let limits = Limits::DEFAULT.overlaid(Limits { memory_bytes: 64 * MIB, ..Limits::UNSET }, Limits::MAX).unwrap();
        assert_eq!(limits.disk_bytes, 32 * MIB);
        let wanted = Limits { memory_bytes: 64 * MIB, disk_bytes: 49 * MIB, ..Limits::UNSET };
        let error = Limits::DEFAULT.overlaid(wanted, Limits::MAX).unwrap_err();
        assert_eq!(error.violations()[0].field, "limits.disk_bytes");
    }

    #[test]
    fn what_is_out_of_bounds_is_named_with_the_bound() {
        let error =
            Limits::DEFAULT.overlaid(Limits { pids: 3, memory_bytes: 1, ..Limits::UNSET }, Limits::MAX).unwrap_err();
        assert!(error.message().contains("limits.pids must be from 4 to 32768"), "{error}");
        assert!(error.message().contains("limits.memory_bytes must be from 16777216"), "{error}");
    }
    #[test]
    fn each_limit_can_be_asked_for_and_has_both_bounds() {
        let max = Limits { open_files: 8192, output_bytes: 1 << 20, execution_seconds: 60, ..Limits::MAX };
        let own = Limits { output_bytes: 1 << 20, execution_seconds: 60, ..Limits::DEFAULT };
        let wanted =
            Limits { open_files: 64, output_bytes: 65_536, execution_seconds: 1, cpu_weight: 10_000, ..Limits::UNSET };
        let limits = own.overlaid(wanted, max).unwrap();
        let told = (limits.open_files, limits.output_bytes, limits.execution_seconds, limits.cpu_weight);
        assert_eq!(told, (64, 65_536, 1, 10_000));
        let bad = [
            (Limits { open_files: 63, ..Limits::UNSET }, "limits.open_files must be from 64 to 8192"),
            (Limits { open_files: 8193, ..Limits::UNSET }, "limits.open_files must be from 64 to 8192"),
            (Limits { output_bytes: 65_535, ..Limits::UNSET }, "limits.output_bytes must be from 65536 to 1048576"),
            (
                Limits { output_bytes: (1 << 20) + 1, ..Limits::UNSET },
                "limits.output_bytes must be from 65536 to 1048576",
            ),
            (Limits { execution_seconds: 61, ..Limits::UNSET }, "limits.execution_seconds must be from 1 to 60"),
            (Limits { cpu_weight: 10_001, ..Limits::UNSET }, "limits.cpu_weight must be from 1 to 10000"),
        ];
        for (wanted, rule) in bad {
            let error = own.overlaid(wanted, max).unwrap_err();
            assert!(error.message().contains(rule), "{error}");
        }
    }
}
