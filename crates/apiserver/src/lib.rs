//! One pipeline for every kind: authentication, authorization, admission, watch cache, discovery, OpenAPI.

pub mod cache;
pub mod pki;
pub mod storage;
