//! The engine as its users see it: traits for sandboxes, containers, images, builds and networks, and the plain data
//! that they speak in. Every CRI v1 and Docker Engine API call maps to a method here.
//!
//! | CRI v1 | Docker Engine API | here |
//! |---|---|---|
//! | RunPodSandbox | | [`Runtime::create_sandbox`] |
//! | StopPodSandbox, RemovePodSandbox | | [`Runtime::stop_sandbox`], [`Runtime::remove_sandbox`] |
//! | PodSandboxStatus, ListPodSandbox | | [`Runtime::sandboxes`] |
//! | CreateContainer | `POST /containers/create` | [`Runtime::create_container`] |
//! | StartContainer | `POST /containers/{id}/start` | [`Runtime::start_container`] |
//! | StopContainer | `POST /containers/{id}/stop`, `/kill` | [`Runtime::stop_container`], [`Runtime::signal_container`] |
//! | RemoveContainer | `DELETE /containers/{id}` | [`Runtime::remove_container`] |
//! | ContainerStatus, ListContainers | `GET /containers/json`, `/containers/{id}/json` | [`Runtime::containers`], [`Runtime::container`] |
//! | GetContainerEvents | `GET /events`, `POST /containers/{id}/wait` | [`Runtime::events`] |
//! | Exec, ExecSync | `POST /containers/{id}/exec`, `/exec/{id}/start` | [`Runtime::exec`] |
//! | Attach | `POST /containers/{id}/attach` | [`Runtime::attach`] |
//! | PortForward | | [`Runtime::connect`] |
//! | ContainerStats, ListContainerStats | `GET /containers/{id}/stats` | [`Runtime::stats`] |
//! | PullImage | `POST /images/create` | [`Images::pull`] |
//! | ListImages, ImageStatus | `GET /images/json`, `/images/{name}/json` | [`Images::list`], [`Images::resolve`] |
//! | RemoveImage | `DELETE /images/{name}` | [`Images::remove`] |
//! | | `POST /images/load`, `GET /images/get` | [`Images::load`], [`Images::save`] |
//! | | `POST /images/{name}/push`, `/tag` | [`Images::push`], [`Images::tag`] |
//! | | `POST /build`, `POST /commit` | [`Builds::build`], [`Builds::commit`] |

mod builds;
mod containers;
#[cfg(feature = "contract")]
pub mod contract;
mod error;
mod images;
pub mod logs;
mod networks;
mod streams;

pub use builds::{BuildEvent, BuildRequest, Builds, CommitRequest};
pub use containers::{
    AppArmorProfile, Connection, ContainerEvent, ContainerEventKind, ContainerSpec, ContainerState,
    ContainerStatus, Device, EventsLost, ExecSpec, Exit, Identity, LogPath, Mount, MountPropagation,
    MountSource, NamespaceSharing, OWNER_LABEL, Resources, Rlimit, Runtime, RuntimeHandler, SandboxSpec,
    SandboxState, SandboxStatus, SeccompProfile, Security, SelinuxOptions, Stats, User,
};
pub use error::{EngineError, ErrorKind};
pub use images::{
    Image, ImageConfig, ImageName, ImageOrigin, Images, Progress, ProgressStream, RegistryAuth, RemovalKind,
    Resolution,
};
pub use networks::{Protocol, PublishedPort, SandboxNetwork, SandboxNetworks};
pub use streams::{ByteStream, Process, ProcessIo, TerminalSize};
