//! The final form of a closed segment: *runs* in object storage, each one object that says itself what it holds, is
//! written once, and is never changed. `docs/sealed-format.md` describes it byte by byte.

mod format;
mod reader;
mod run;
mod store;
#[cfg(test)]
mod tests;

pub(crate) use self::run::inspect;
pub use self::{
    reader::SealedReader,
    run::{Run, RunBuilder, Source},
    store::{Leftover, SealedSettings, SealedStore},
};
