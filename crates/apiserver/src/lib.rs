//! One pipeline for every kind: authentication, authorization, admission, watch cache, discovery, OpenAPI.

pub mod authn;
pub mod authz;
pub mod cache;
pub mod pki;
pub mod storage;
