//! OCI content by digest, layers and snapshots, pull and push.
