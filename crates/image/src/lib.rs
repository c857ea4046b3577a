//! Images on disk: OCI content by digest, layers unpacked for overlayfs, a writable snapshot per container, archives,
//! and registries.
//!
//! A [`Store`] owns one directory:
//!
//! | path | content |
//! |---|---|
//! | `blobs/sha256/<hex>` | layers as they came, configurations, manifests; verified, synced, then renamed into place |
//! | `layers/<n>` | one unpacked layer in overlay form (whiteouts as 0/0 devices, opaque directories as xattrs) |
//! | `snapshots/<key>/{upper,work}` | what one container wrote |
//! | `state.json` | images, tags and their origin, which layer is unpacked where; replaced atomically |
//! | `partial/<hex>` | content that has come in part; a later pull goes on with it, or it is given up after a day |
//! | `staging/` | unfinished work; emptied at start |
//!
//! An image is in `state.json` only after all that it needs is on disk, and content leaves only after nothing in
//! `state.json` names it: a crash in between leaves garbage, which [`Store::open`] removes, never a broken image.
//!
//! Everything that comes from an archive is resolved inside its target directory by the kernel
//! (`openat2` with `RESOLVE_IN_ROOT`); see [`root::Root`].
//!
//! Calls block, except for [`Store::pull`] and [`Store::push`]: asynchronous callers use `spawn_blocking`.

mod archive;
mod blobs;
mod compression;
pub mod digest;
pub mod document;
mod download;
mod entries;
mod error;
mod held;
mod hosts;
pub mod overlay;
mod pack;
mod partial;
mod push;
pub mod reference;
mod refusal;
mod registry;
pub mod root;
mod snapshot;
mod source;
mod state;
mod store;
mod unpack;

pub use compression::decompress;
pub use digest::Digest;
pub use document::{ContainerConfig, History, ImageDocument};
pub use entries::is_archive;
pub use error::Error;
pub use hosts::RegistryConfig;
pub use pack::PackedLayer;
pub use reference::Reference;
pub use registry::{Credentials, Progress};
pub use snapshot::Snapshot;
pub use state::Origin;
pub use store::{Image, Lease, NewImage, Removed, Resolved, Store};
pub use unpack::{Owner, Unpack};
