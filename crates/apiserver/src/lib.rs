//! One pipeline for every kind: authentication, authorization, admission, watch cache, discovery, OpenAPI.
