//! How long a producer's appends are on their way, and their spans where their messages belong to a trace.

use std::{sync::Arc, time::Duration};

use ::metrics::Histogram;
use streaming_types::{Properties, properties::key};
use tracing::Span;
use woodpecker_base::{
    clock::{Clock, Instant},
    trace,
};

use crate::{metrics, wal::group::Asked};

/// Between two lines about slow appends of one producer.
const PAUSE: Duration = Duration::from_secs(1);

pub struct OnTheWay {
    clock: Clock,
    pchannel: Arc<str>,
    /// An append that takes longer is worth a line in the log.
    slow: Duration,
    took: Histogram,
    failed_after: Histogram,
    logged: Option<Instant>,
    /// Slow ones since then.
    unlogged: u64,
}

impl OnTheWay {
    pub fn new(clock: Clock, pchannel: Arc<str>, slow: Duration) -> Self {
        let (took, failed_after) = (metrics::append_took(&pchannel, "ok"), metrics::append_took(&pchannel, "error"));
        Self { clock, pchannel, slow, took, failed_after, logged: None, unlogged: 0 }
    }

    pub fn begins(&self, request_id: i64, properties: &Properties, bytes: usize) -> Asked {
        let span = match properties.get(key::TRACE_PARENT) {
            None => Span::none(),
            Some(place) => {
                let span = tracing::trace_span!(target: trace::TARGET, parent: None, "wal.append", channel = &*self.pchannel, bytes);
                trace::continue_from(&span, place);
                span
            }
        };
        Asked { request_id, bytes, at: self.clock.now(), span }
    }

    pub fn ends(&mut self, Asked { at, bytes, span, .. }: Asked, durable: bool) {
        drop(span);
        let now = self.clock.now();
        let took = now.duration_since(at);
        let histogram = if durable { &self.took } else { &self.failed_after };
        histogram.record(took);
        if took >= self.slow {
            self.tell(now, took, bytes, durable);
        }
    }

    fn tell(&mut self, now: Instant, took: Duration, bytes: usize, durable: bool) {
        if self.logged.is_some_and(|logged| now.duration_since(logged) < PAUSE) {
            self.unlogged += 1;
            return;
        }
        self.logged = Some(now);
        let unlogged = std::mem::take(&mut self.unlogged);
        tracing::warn!(channel = &*self.pchannel, ?took, bytes, durable, unlogged, "a slow append");
    }
}
