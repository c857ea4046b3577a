//! A second host joins over HTTPS; a Service, logs and exec across both.
