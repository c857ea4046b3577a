//! How the server and what it keeps are protected: encryption at rest, admission, the audit log.

use std::path::PathBuf;

/// The choices of who runs the server. Paths are absolute.
#[derive(Debug, Clone, Default)]
pub struct Protection {
    /// An EncryptionConfiguration: which resources are encrypted in the store, and with which keys.
    pub encryption_provider_config: Option<PathBuf>,
    /// An AdmissionConfiguration: what plugins of admission hold for right, and which there are besides.
    pub admission_control_config_file: Option<PathBuf>,
    /// Who did what.
    pub audit: Audit,
}

/// What is audited and where to. Without a policy nothing is.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// A Policy of audit.k8s.io/v1.
    pub policy_file: Option<PathBuf>,
    /// The log; `-` is standard output.
    pub log_path: Option<PathBuf>,
    /// Days after which old log files go; 0: never.
    pub log_maxage: u32,
    /// How many old log files stay; 0: all.
    pub log_maxbackup: u32,
    /// Megabytes at which a log file is put aside; 0: upstream's 100.
    pub log_maxsize: u32,
    /// A webhook that takes the events, in kubeconfig format.
    pub webhook_config_file: Option<PathBuf>,
}
