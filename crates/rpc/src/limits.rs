//! Limits as messages.

use cloud_sandbox_model::Limits;
use cloud_sandbox_proto::v1;

/// Limits as the contract has them.
#[must_use]
pub fn limits_message(limits: Limits) -> v1::ResourceLimits {
    v1::ResourceLimits {
        memory_bytes: limits.memory_bytes,
        cpu_millis: limits.cpu_millis,
        pids: limits.pids,
        disk_bytes: limits.disk_bytes,
        open_files: limits.open_files,
        output_bytes: limits.output_bytes,
        execution_seconds: limits.execution_seconds,
        cpu_weight: limits.cpu_weight,
    }
}

/// The contract's limits as ours.
#[must_use]
pub fn limits_of(message: v1::ResourceLimits) -> Limits {
    Limits {
        memory_bytes: message.memory_bytes,
        cpu_millis: message.cpu_millis,
        pids: message.pids,
        disk_bytes: message.disk_bytes,
        open_files: message.open_files,
        output_bytes: message.output_bytes,
        execution_seconds: message.execution_seconds,
        cpu_weight: message.cpu_weight,
    }
}
