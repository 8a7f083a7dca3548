//! The one table of who may call what. A method without a row is refused to everybody; a test walks the contracts and
//! fails on one.

use crate::principal::{FileAccess, Role};

/// Who may call a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// anybody, also without a token
    Public,
    /// users and admins; whose things they touch is checked where the thing is found
    Caller,
    /// admins only: what it does is not their tenant's alone
    Admin,
    /// services of ours only
    Service,
    /// the node of the sandbox only, over the sandbox's own socket: no token, never on a network
    Socket,
}

const TABLE: &[(&str, Access)] = &[
    ("/cloud_sandbox.v1.AuthService/IssueToken", Access::Public),
    ("/cloud_sandbox.v1.AuthService/CreateFileUrl", Access::Caller),
    ("/cloud_sandbox.v1.SchedulerService/AcquireSandbox", Access::Caller),
    ("/cloud_sandbox.v1.SchedulerService/ReleaseSandbox", Access::Caller),
    ("/cloud_sandbox.v1.SchedulerService/KeepAliveSandbox", Access::Caller),
    ("/cloud_sandbox.v1.SchedulerService/GetSandbox", Access::Caller),
    ("/cloud_sandbox.v1.SchedulerService/ListSandboxes", Access::Caller),
    ("/cloud_sandbox.v1.SchedulerService/UpdateSandbox", Access::Caller),
    ("/cloud_sandbox.v1.SchedulerService/GetSandboxStats", Access::Caller),
    ("/cloud_sandbox.v1.TemplateService/CreateTemplate", Access::Admin),
    ("/cloud_sandbox.v1.TemplateService/GetTemplate", Access::Caller),
    ("/cloud_sandbox.v1.TemplateService/WatchTemplate", Access::Caller),
    ("/cloud_sandbox.v1.TemplateService/ListTemplates", Access::Caller),
    ("/cloud_sandbox.v1.TemplateService/DeleteTemplate", Access::Admin),
    ("/cloud_sandbox.v1.SessionService/CreateSession", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/GetSession", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/ListSessions", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/PauseSession", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/ResumeSession", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/UpdateSession", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/DeleteSession", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/CreateCheckpoint", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/ListCheckpoints", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/ForkSession", Access::Caller),
    ("/cloud_sandbox.v1.SessionService/ListSessionEvents", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/Execute", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/ExecuteStream", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/Exec", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/StartExecution", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/ListExecutions", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/GetExecution", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/AttachExecution", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/ReadExecutionOutput", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/GrepExecutionOutput", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/WriteExecutionStdin", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/SignalExecution", Access::Caller),
    ("/cloud_sandbox.v1.ExecService/ResizeExecutionTerminal", Access::Caller),
    ("/cloud_sandbox.v1.ContextService/CreateContext", Access::Caller),
    ("/cloud_sandbox.v1.ContextService/ListContexts", Access::Caller),
    ("/cloud_sandbox.v1.ContextService/GetContext", Access::Caller),
    ("/cloud_sandbox.v1.ContextService/RestartContext", Access::Caller),
    ("/cloud_sandbox.v1.ContextService/InterruptContext", Access::Caller),
    ("/cloud_sandbox.v1.ContextService/DeleteContext", Access::Caller),
    ("/cloud_sandbox.v1.FileService/ReadFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/DownloadFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/WriteFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/UploadFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/WriteFiles", Access::Caller),
    ("/cloud_sandbox.v1.FileService/DeleteFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/ListFiles", Access::Caller),
    ("/cloud_sandbox.v1.FileService/StatFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/MakeFolder", Access::Caller),
    ("/cloud_sandbox.v1.FileService/ChangeMode", Access::Caller),
    ("/cloud_sandbox.v1.FileService/MoveFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/CopyFile", Access::Caller),
    ("/cloud_sandbox.v1.FileService/SearchFiles", Access::Caller),
    ("/cloud_sandbox.v1.FileService/WatchFiles", Access::Caller),
    ("/cloud_sandbox.v1.FileService/DownloadArchive", Access::Caller),
    ("/cloud_sandbox.v1.FileService/UploadArchive", Access::Caller),
    ("/cloud_sandbox.node.v1.NodeService/AcquireSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/ReleaseSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/KeepAliveSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/GetSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/UpdateSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/PauseSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/ResumeSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/CheckpointSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/RestoreSandbox", Access::Service),
    ("/cloud_sandbox.node.v1.NodeService/SetTemplates", Access::Service),
    ("/cloud_sandbox.agent.v1.AgentService/Check", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/ProveWalls", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/Run", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/Signal", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/TakeSnapshot", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/CompareSnapshot", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/StopProcesses", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/ContinueProcesses", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/SaveTree", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/RestoreTree", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/Listen", Access::Socket),
    ("/cloud_sandbox.agent.v1.AgentService/Accept", Access::Socket),
    // what orchestrators and tools ask before they have a token; it tells nothing that the contracts do not
    ("/grpc.health.v1.Health/Check", Access::Public),
    ("/grpc.health.v1.Health/Watch", Access::Public),
    ("/grpc.health.v1.Health/List", Access::Public),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Public),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Public),
];

/// What a token for one file opens: these methods and no other, also none that is public.
const GRANTED: &[(&str, FileAccess)] = &[
    ("/cloud_sandbox.v1.FileService/ReadFile", FileAccess::Read),
    ("/cloud_sandbox.v1.FileService/DownloadFile", FileAccess::Read),
    ("/cloud_sandbox.v1.FileService/WriteFile", FileAccess::Write),
    ("/cloud_sandbox.v1.FileService/UploadFile", FileAccess::Write),
];

/// Whether a token for one file opens the method at `path`. That the call is about that file is not said yet.
#[must_use]
pub fn granted(path: &str, access: FileAccess) -> bool {
    GRANTED.contains(&(path, access))
}

/// Who may call the method at `path` (`/package.Service/Method`); `None` for a method without a row.
#[must_use]
pub fn of(path: &str) -> Option<Access> {
    TABLE.iter().find(|(row, _)| *row == path).map(|(_, access)| *access)
}

impl Access {
    /// The same method at a node: what is not for everybody is for services of ours, who have checked the caller.
    #[must_use]
    pub const fn at_node(self) -> Self {
        match self {
            Self::Caller | Self::Admin => Self::Service,
            Self::Public | Self::Service | Self::Socket => self,
        }
    }

    /// Whether `role` may call a method with this access.
    #[must_use]
    pub const fn allows(self, role: Role) -> bool {
        match self {
            Self::Public => true,
            Self::Caller => matches!(role, Role::User | Role::Admin),
            Self::Admin => matches!(role, Role::Admin),
            Self::Service => matches!(role, Role::Service),
            Self::Socket => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use prost::Message;

    use super::*;

    #[test]
    fn every_method_of_the_contracts_has_one_row_and_no_row_is_left_over() {
        let set = prost_types::FileDescriptorSet::decode(cloud_sandbox_proto::DESCRIPTOR_SET).unwrap();
        let mut methods = HashSet::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    methods.insert(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
                }
            }
        }
        let rows: Vec<_> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        let ours: HashSet<_> = rows.iter().filter(|path| !path.starts_with("/grpc.")).cloned().collect();
        assert_eq!(methods, ours);
        assert_eq!(rows.len(), rows.iter().collect::<HashSet<_>>().len());
    }

    #[test]
    fn grants_are_of_methods_for_callers() {
        for (path, access) in GRANTED {
            assert_eq!(of(path), Some(Access::Caller), "{path}");
            let other = if *access == FileAccess::Read { FileAccess::Write } else { FileAccess::Read };
            assert!(granted(path, *access) && !granted(path, other), "{path}");
        }
    }

    #[test]
    fn node_lets_nobody_but_services_call_what_is_not_public() {
        for (path, access) in TABLE {
            let at_node = access.at_node();
            let public = *access == Access::Public;
            assert_eq!(at_node.allows(Role::User) || at_node.allows(Role::Admin), public, "{path}");
            assert_eq!(at_node.allows(Role::Service), *access != Access::Socket, "{path}");
        }
    }

    #[test]
    fn what_changes_the_state_of_everybody_is_for_admins_alone() {
        for method in ["CreateTemplate", "DeleteTemplate"] {
            let access = of(&format!("/cloud_sandbox.v1.TemplateService/{method}")).unwrap();
            assert!(access.allows(Role::Admin) && !access.allows(Role::User) && !access.allows(Role::Service));
        }
    }

    #[test]
    fn node_methods_are_for_services_alone() {
        for (path, access) in TABLE.iter().filter(|(path, _)| path.contains(".node.")) {
            assert_eq!(*access, Access::Service, "{path}");
            assert!(!access.allows(Role::Admin) && !access.allows(Role::User));
        }
    }
}
