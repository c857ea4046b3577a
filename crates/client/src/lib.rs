//! One transport to the API server: HTTPS or in process.
