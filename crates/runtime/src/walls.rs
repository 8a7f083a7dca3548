//! The walls of a sandbox, by the names that `doctor`, the log, metrics and the proof from inside have for them.

/// Ids of the host that no user and no other sandbox has.
pub const UNIQUE_IDS: &str = "unique ids";
/// A user namespace: root inside is nobody outside.
pub const USER_NAMESPACE: &str = "user namespace";
/// No capability, and none to be gained by any program.
pub const NO_PRIVILEGES: &str = "no privileges";
/// An allow-list of system calls.
pub const SECCOMP: &str = "seccomp";
/// A second wall around files and, on newer kernels, sockets and signals.
pub const LANDLOCK: &str = "landlock";
/// A root of its own, read-only but for the writable folders; nothing of the host but what was bound.
pub const FILES: &str = "files";
/// Processes of others are not there.
pub const PROCESSES: &str = "processes";
/// Nothing of the network but a loopback of its own.
pub const NETWORK: &str = "network";
/// What of `/proc` and `/sys` tells about the host or changes it.
pub const PROC: &str = "proc";
/// The usual devices and no others.
pub const DEVICES: &str = "devices";
/// Host name, machine id and boot id of its own.
pub const IDENTITY: &str = "identity";

/// All that is proved from inside of a fresh sandbox.
pub const PROVED: [&str; 10] =
    [USER_NAMESPACE, NO_PRIVILEGES, SECCOMP, LANDLOCK, FILES, PROCESSES, NETWORK, PROC, DEVICES, IDENTITY];
