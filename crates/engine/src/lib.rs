//! Containers and sandboxes behind engine-api.

mod images;

pub use images::ImageService;
