//! Segments in object storage.

pub mod store;
