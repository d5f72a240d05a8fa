//! How entries are kept on a medium: formats, volumes on disk and in object storage, and the one seam the engine sees.

pub mod backend;
mod cache;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod disk;
pub mod format;
pub mod inspect;
pub mod memory;
pub mod object;
pub mod quorum;
pub mod seal;
