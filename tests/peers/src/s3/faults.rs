//! What can go wrong on purpose.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Put,
    Get,
    Head,
    Delete,
    List,
    Multipart,
}

impl Op {
    /// Every kind.
    pub const ALL: [Self; 6] = [Self::Put, Self::Get, Self::Head, Self::Delete, Self::List, Self::Multipart];
}

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status (500, 503, …) and not done.
    Refuse(u16),
    /// Done, then the connection breaks before the answer.
    LoseAnswer,
    /// Done, then answered with this status.
    Misreport(u16),
    /// Neither done nor answered.
    Hang,
}

/// How the server treats `If-None-Match` and `If-Match` on a PUT.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conditional {
    /// Checked together with the write.
    #[default]
    Honest,
    /// Not looked at: every PUT overwrites.
    Ignored,
    /// Answered with 501.
    Refused,
}

/// The switches. Clones share them.
#[derive(Clone, Default)]
pub struct Faults {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    rules: [Rule; Op::ALL.len()],
    conditional: Conditional,
    bytes_per_second: Option<u64>,
    random: Option<fastrand::Rng>,
}

#[derive(Default)]
struct Rule {
    delay: Duration,
    next: VecDeque<Fault>,
    chances: Vec<(f64, Fault)>,
}

impl Faults {
    /// Adds `delay` to every request of this kind, before it is done.
    pub fn delay(&self, op: Op, delay: Duration) {
        self.state().rules[op as usize].delay = delay;
    }

    /// Lets bodies, in and out, pass at this rate only; `None` is full speed.
    pub fn bandwidth(&self, bytes_per_second: Option<u64>) {
        self.state().bytes_per_second = bytes_per_second;
    }

    /// The next `count` requests of this kind meet `fault`.
    pub fn next(&self, op: Op, count: usize, fault: Fault) {
        self.state().rules[op as usize].next.extend(std::iter::repeat_n(fault, count));
    }

    /// From now on each request of this kind meets `fault` with this probability. Adds to earlier calls.
    pub fn chance(&self, op: Op, probability: f64, fault: Fault) {
        self.state().rules[op as usize].chances.push((probability, fault));
    }

    /// Makes the chances repeatable, as far as the order of requests is.
    pub fn seed(&self, seed: u64) {
        self.state().random = Some(fastrand::Rng::with_seed(seed));
    }

    /// Sets how conditional PUTs are treated.
    pub fn conditional(&self, conditional: Conditional) {
        self.state().conditional = conditional;
    }

    /// Ends every fault and delay. What hangs already goes on hanging.
    pub fn clear(&self) {
        let random = self.state().random.take();
        *self.state() = State { random, ..State::default() };
    }

    pub(super) fn treats_conditions(&self) -> Conditional {
        self.state().conditional
    }

    pub(super) fn transfer_time(&self, bytes: u64) -> Duration {
        match self.state().bytes_per_second {
            Some(rate) => Duration::from_micros(bytes.saturating_mul(1_000_000) / rate.max(1)),
            None => Duration::ZERO,
        }
    }

    /// Decides about one request.
    pub(super) fn draw(&self, op: Op) -> (Duration, Option<Fault>) {
        let mut state = self.state();
        let State { rules, random, .. } = &mut *state;
        let rule = &mut rules[op as usize];
        if let Some(fault) = rule.next.pop_front() {
            return (rule.delay, Some(fault));
        }
        if rule.chances.is_empty() {
            return (rule.delay, None);
        }
        let mut left = random.get_or_insert_with(|| fastrand::Rng::with_seed(1)).f64();
        let hit = rule.chances.iter().find(|(probability, _)| {
            left -= probability;
            left < 0.0
        });
        (rule.delay, hit.map(|(_, fault)| *fault))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("conditional", &self.treats_conditions()).finish_non_exhaustive()
    }
}
