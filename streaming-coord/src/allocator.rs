//! Timestamps and ids that are never given out twice, not even across a restart, a fail-over or a clock that steps
//! back: what may be given out lies below a ceiling that was made durable beforehand.

mod ids;
mod timestamps;

pub(crate) use self::{ids::Ids, timestamps::{Timestamps, physical_ms}};

/// The pure part of an allocator.
pub(crate) trait Sequence: Send + 'static {
    /// The first of `count` consecutive numbers, or `None` while no ceiling allows them. `stalled` says that the
    /// ceiling cannot be raised for now, so that what is left must last.
    fn take(&mut self, count: u32, wall_ms: u64, stalled: bool) -> Option<u64>;

    /// The ceiling that should be made durable soon, if the present one is running low.
    fn wanted(&self, wall_ms: u64) -> Option<u64>;

    /// A new ceiling is durable.
    fn raise(&mut self, ceiling: u64);
}
