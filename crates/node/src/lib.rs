//! A worker per pod, probes, volumes, status and streams.
//!
//! The [`Agent`] is fed by an informer on the pods of its node, by the runtime's events and by timers. Each pod has one
//! worker (`worker`), which decides with pure functions (`pod`) and applies. `server` is the node's HTTP server for
//! logs, exec, attach and port-forward, also in process.

mod admission;
mod agent;
mod certificates;
mod config;
mod cpus;
mod deps;
mod env_files;
mod eviction;
mod figures;
mod groups;
mod hooks;
mod images;
mod kubelet_config;
mod local_path;
mod logs;
mod meminfo;
mod plugins;
mod pod;
mod probes;
mod registration;
mod resize;
mod root;
mod runtime_class;
mod runtime_state;
mod server;
mod shutdown;
mod sources;
mod static_pods;
mod tokens;
mod traces;
mod volumes;
mod watched;
mod worker;

pub use agent::{Agent, Handles};
pub use config::{Config, FollowsApiServer, PodRange, Reserved, ServerConfig};
pub use cpus::{CpuPolicy, CpuSet, CpuSettings};
pub use eviction::{Amount, Eviction, Signal, Threshold};
pub use hooks::end_container;
pub use images::{CredentialProviderFiles, GarbagePolicy, ImagesConfig, Verification};
pub use kubelet_config::{ImageFields, KubeletConfiguration};
pub use pod::record::termination_grace;
pub use root::{KNOWN_AS, hide_root, share_root, show_root};
pub use server::NodeServer;
pub use shutdown::{ShutdownPeriod, ShutdownSettings};
