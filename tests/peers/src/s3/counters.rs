//! What the server was asked, per kind of request.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::faults::Op;

/// Requests and bytes since the start of the server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub puts: u64,
    pub gets: u64,
    pub heads: u64,
    pub deletes: u64,
    pub lists: u64,
    pub multiparts: u64,
    /// Bytes of PUT bodies that were received, by their declared length.
    pub bytes_in: u64,
    /// Bytes of GET bodies that were answered.
    pub bytes_out: u64,
    /// The most PUTs that were in flight together.
    pub puts_at_once: u64,
}

#[derive(Debug, Default)]
pub struct Counters {
    requests: [AtomicU64; Op::ALL.len()],
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    puts_now: AtomicU64,
    puts_at_once: AtomicU64,
}

impl Counters {
    /// Counts a request from here until the answer is dropped.
    pub fn begin(&self, op: Op, bytes_in: u64) -> InFlight<'_> {
        self.requests[op as usize].fetch_add(1, Relaxed);
        self.bytes_in.fetch_add(bytes_in, Relaxed);
        if op == Op::Put {
            let now = self.puts_now.fetch_add(1, Relaxed) + 1;
            self.puts_at_once.fetch_max(now, Relaxed);
        }
        InFlight { counters: self, op }
    }

    pub fn snapshot(&self) -> Counts {
        let of = |op: Op| self.requests[op as usize].load(Relaxed);
        Counts {
            puts: of(Op::Put),
            gets: of(Op::Get),
            heads: of(Op::Head),
            deletes: of(Op::Delete),
            lists: of(Op::List),
            multiparts: of(Op::Multipart),
            bytes_in: self.bytes_in.load(Relaxed),
            bytes_out: self.bytes_out.load(Relaxed),
            puts_at_once: self.puts_at_once.load(Relaxed),
        }
    }
}

/// A request being served.
pub struct InFlight<'a> {
    counters: &'a Counters,
    op: Op,
}

impl InFlight<'_> {
    pub fn answered(&self, bytes_out: u64) {
        self.counters.bytes_out.fetch_add(bytes_out, Relaxed);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.op == Op::Put {
            self.counters.puts_now.fetch_sub(1, Relaxed);
        }
    }
}
