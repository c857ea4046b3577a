//! The words of the Kubernetes API: what a resource, an object, a request and a failure are, and every pure operation
//! on them (selectors, patches, schemas, codecs). No I/O.

pub mod catalog;
pub mod cel;
pub mod connect;
pub mod conversion;
pub mod cron;
pub mod custom;
pub mod decode;
pub mod defaults;
#[cfg(test)]
mod generate;
pub mod meta;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod quota;
mod regexps;
pub mod request;
pub mod resources;
pub mod schema;
pub mod selectors;
pub mod status;
pub mod table;
pub mod validate;
pub mod wire;

pub use meta::{ObjectMeta, OwnerReference};
pub use object::{Key, Object};
pub use request::{
    Call, DeleteOptions, FieldValidation, GroupVersionResource, List, ListOptions, PatchType, Propagation,
    Request, Response, Verb, WatchEvent, WatchEventKind, WatchStream, WriteOptions,
};
pub use status::{Cause, Reason, Status};
