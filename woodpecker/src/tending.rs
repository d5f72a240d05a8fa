//! Looking after the open writers of a process, idle ones too: one task and one timer for all of them.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use woodpecker_base::clock::Clock;

use crate::{client::Inner, view::View, writer::Shared};

/// How often they are looked after: a few times in a segment's life, but not all the time.
const PERIOD: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const LOOKS: u32 = 10;
/// Chains that are changing, and records that are read for one look, at most.
const AT_ONCE: usize = 256;

pub(crate) async fn tend(client: Weak<Inner>, clock: Clock, segment_age: Duration) {
    let mut ticker = clock.ticker((segment_age / LOOKS).clamp(PERIOD.0, PERIOD.1));
    let mut looked_at = 0;
    loop {
        ticker.tick().await;
        let Some(client) = client.upgrade() else { return };
        let mut writers = client.open_writers();
        // Each has its turn, however many there are.
        let begin = looked_at % writers.len().max(1);
        writers.rotate_left(begin);
        looked_at = begin + tend_some(&writers);
    }
}

/// How many were looked at.
fn tend_some(writers: &[Arc<Shared>]) -> usize {
    let mut busy = writers.iter().filter(|writer| writer.is_settling()).count();
    for (at, writer) in writers.iter().enumerate() {
        if busy >= AT_ONCE {
            return at;
        }
        // Without a reader nobody here may know what others want of the log.
        if !writer.is_settling() && (writer.follow() | writer.tend()) {
            busy += 1;
        }
    }
    writers.len()
}

impl Inner {
    /// Whether the log's next segment belongs on another backend of this process than its newest one is on.
    pub fn is_elsewhere(&self, view: &View) -> bool {
        view.ask(|log| {
            let wanted = log.settings.backend.as_deref().unwrap_or(&self.settings.backend);
            self.backend(wanted).is_ok() && log.open.last().is_some_and(|open| open.backend != wanted)
        })
    }
}
