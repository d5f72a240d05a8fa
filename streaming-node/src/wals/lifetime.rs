//! Which term of one pchannel this node serves: what it was told, what it reached, and what to do next.
//!
//! A pure state machine. A state is a pair (term, phase) that only grows: within a term a pchannel goes from available
//! to unavailable and never back, so a term whose open failed is burnt. One step runs at a time, hence the open and the
//! close of a pchannel never overlap, and an older term is closed before a newer one opens.

use std::fmt;

/// Within a term, what comes first orders first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Available,
    Unavailable,
}

/// A point in a pchannel's life on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct State {
    pub term: i64,
    pub phase: Phase,
}

impl State {
    const fn available(term: i64) -> Self {
        Self { term, phase: Phase::Available }
    }

    const fn unavailable(term: i64) -> Self {
        Self { term, phase: Phase::Unavailable }
    }
}

/// What has to be done next to get from the reached state to the wanted one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Open { term: i64, read_only: bool },
    Close { term: i64 },
}

/// The order names a term that is not ahead of what was asked before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale;

/// What became of an order, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Pending,
    Done,
    /// A newer term took over.
    Overtaken {
        wanted: i64,
        actual: i64,
    },
    /// The open failed, for this reason.
    Failed(String),
}

/// The state machine of one pchannel.
#[derive(Debug, Clone)]
pub struct Lifetime {
    wanted: State,
    read_only: bool,
    reached: State,
    running: Option<Step>,
    failure: Option<String>,
    /// The term that ended by itself last, and why.
    loss: Option<(i64, String)>,
}

impl Default for Lifetime {
    fn default() -> Self {
        let never = State::unavailable(-1);
        Self { wanted: never, read_only: false, reached: never, running: None, failure: None, loss: None }
    }
}

impl Lifetime {
    /// Asks for a term to be opened. Asking again for the term that is wanted now, in the same access mode, joins it: a caller
    /// that gave up waiting may come back without burning what was done for it.
    pub fn assign(&mut self, term: i64, read_only: bool) -> Result<(), Stale> {
        let wanted = State::available(term);
        if wanted == self.wanted && read_only == self.read_only {
            return Ok(());
        }
        if wanted <= self.wanted {
            return Err(Stale);
        }
        self.wanted = wanted;
        self.read_only = read_only;
        Ok(())
    }

    /// Asks for a term to be closed; closing what is closed, or what never opened, is no error.
    pub fn remove(&mut self, term: i64) -> Result<(), Stale> {
        let wanted = State::unavailable(term);
        if wanted < self.wanted {
            return Err(Stale);
        }
        self.wanted = wanted;
        self.settle();
        Ok(())
    }

    /// Takes the next step, which the caller then runs; `None` while one runs or when there is nothing to do.
    pub fn begin(&mut self) -> Option<Step> {
        if self.running.is_some() || self.reached == self.wanted {
            return None;
        }
        self.running = Some(match self.reached.phase {
            Phase::Available => Step::Close { term: self.reached.term },
            Phase::Unavailable => Step::Open { term: self.wanted.term, read_only: self.read_only },
        });
        self.running
    }

    /// The running open succeeded.
    pub fn opened(&mut self) {
        if let Some(Step::Open { term, .. }) = self.running.take() {
            self.reach(State::available(term));
        }
    }

    /// The running open failed: its term is burnt.
    pub fn open_failed(&mut self, reason: impl fmt::Display) {
        if let Some(Step::Open { term, .. }) = self.running.take() {
            let burnt = State::unavailable(term);
            self.reach(burnt);
            self.failure = Some(reason.to_string());
            self.wanted = self.wanted.max(burnt);
            self.settle();
        }
    }

    /// The running close ended; the reason is that of an end that came by itself before.
    pub fn closed(&mut self, why: Option<String>) {
        if let Some(Step::Close { term }) = self.running.take() {
            self.loss = why.map(|why| (term, why));
            self.reach(State::unavailable(term));
            self.settle();
        }
    }

    /// Nothing is open and nothing is wanted: there is nothing to do for it.
    fn settle(&mut self) {
        let idle = self.running.is_none() && self.reached.phase == Phase::Unavailable;
        if idle && self.wanted.phase == Phase::Unavailable && self.reached != self.wanted {
            self.reach(self.wanted);
        }
    }

    fn reach(&mut self, state: State) {
        self.reached = state;
        self.failure = None;
    }

    /// Whether the open that runs is not wanted any more.
    pub fn open_is_overtaken(&self) -> bool {
        matches!(self.running, Some(Step::Open { term, .. }) if self.wanted > State::available(term))
    }

    /// The highest term this node was told about, -1 before any.
    pub fn term(&self) -> i64 {
        self.wanted.term
    }

    /// What became of [`Lifetime::assign`].
    pub fn assign_outcome(&self, term: i64) -> Outcome {
        let asked = State::available(term);
        if self.reached < asked {
            return Outcome::Pending;
        }
        if self.reached == asked {
            return Outcome::Done;
        }
        match &self.failure {
            Some(failure) if self.reached.term == term => Outcome::Failed(failure.clone()),
            _ => Outcome::Overtaken { wanted: term, actual: self.reached.term },
        }
    }

    /// Why a term ended by itself, if it did and none was closed since.
    pub fn loss(&self, term: i64) -> Option<String> {
        self.loss.as_ref().filter(|(lost, _)| *lost == term).map(|(_, why)| why.clone())
    }

    /// What became of [`Lifetime::remove`].
    pub fn remove_outcome(&self, term: i64) -> Outcome {
        if self.reached < State::unavailable(term) {
            return Outcome::Pending;
        }
        if self.reached.term > term {
            return Outcome::Overtaken { wanted: term, actual: self.reached.term };
        }
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const RW: bool = false;
    const RO: bool = true;

    fn opened(term: i64) -> Lifetime {
        let mut lifetime = Lifetime::default();
        lifetime.assign(term, RW).unwrap();
        assert_eq!(lifetime.begin(), Some(Step::Open { term, read_only: RW }));
        lifetime.opened();
        lifetime
    }

    #[test]
    fn newer_term_closes_the_older_one_first() {
        let mut lifetime = opened(1);
        lifetime.assign(3, RO).unwrap();
        assert_eq!(lifetime.begin(), Some(Step::Close { term: 1 }));
        assert_eq!(lifetime.begin(), None, "one step at a time");
        lifetime.closed(None);
        assert_eq!(lifetime.begin(), Some(Step::Open { term: 3, read_only: RO }));
        assert_eq!(lifetime.assign_outcome(1), Outcome::Overtaken { wanted: 1, actual: 1 });
        lifetime.opened();
        assert_eq!(lifetime.assign_outcome(3), Outcome::Done);
        assert_eq!(lifetime.assign_outcome(1), Outcome::Overtaken { wanted: 1, actual: 3 });
    }

    #[test]
    fn failed_open_burns_its_term() {
        let mut lifetime = Lifetime::default();
        lifetime.assign(2, RW).unwrap();
        lifetime.begin();
        lifetime.open_failed("no storage");
        assert_eq!(lifetime.assign_outcome(2), Outcome::Failed("no storage".to_owned()));
        assert_eq!(lifetime.assign(2, RW), Err(Stale));
        assert_eq!(lifetime.remove(2), Ok(()), "removing what failed to open is fine");
        assert_eq!(lifetime.remove_outcome(2), Outcome::Done);
        assert_eq!(lifetime.begin(), None);
        assert_eq!(lifetime.assign(3, RW), Ok(()));
    }

    #[test]
    fn same_term_joins_while_opening_and_when_open() {
        let mut lifetime = Lifetime::default();
        lifetime.assign(2, RW).unwrap();
        lifetime.begin();
        assert_eq!(lifetime.assign(2, RW), Ok(()));
        assert_eq!(lifetime.assign(2, RO), Err(Stale));
        lifetime.opened();
        assert_eq!(lifetime.assign(2, RW), Ok(()));
        assert_eq!(lifetime.begin(), None);
        assert_eq!(lifetime.assign(1, RW), Err(Stale));
        assert_eq!(lifetime.remove(1), Err(Stale));
    }

    #[test]
    fn remove_of_what_was_never_open_is_done_at_once_and_bars_the_term() {
        let mut lifetime = Lifetime::default();
        lifetime.remove(4).unwrap();
        assert_eq!(lifetime.begin(), None);
        assert_eq!(lifetime.remove_outcome(4), Outcome::Done);
        assert_eq!(lifetime.assign(4, RW), Err(Stale));
    }

    #[derive(Debug, Clone)]
    enum Event {
        Assign(i64, bool),
        Remove(i64),
        Run { succeeds: bool },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..8i64, any::<bool>()).prop_map(|(term, read_only)| Event::Assign(term, read_only)),
            (0..8i64).prop_map(Event::Remove),
            any::<bool>().prop_map(|succeeds| Event::Run { succeeds }),
        ]
    }

    proptest! {
        #[test]
        fn states_only_grow_and_no_term_opens_twice(events in proptest::collection::vec(event(), 0..60)) {
            let mut lifetime = Lifetime::default();
            let (mut open, mut tried, mut running) = (None, BTreeSet::new(), None);
            for event in events {
                let before = (lifetime.wanted, lifetime.reached);
                match event {
                    Event::Assign(term, read_only) => {
                        let stale = lifetime.assign(term, read_only).is_err();
                        prop_assert!(stale || State::available(term) >= before.0);
                    }
                    Event::Remove(term) => {
                        let stale = lifetime.remove(term).is_err();
                        prop_assert_eq!(stale, State::unavailable(term) < before.0);
                    }
                    Event::Run { succeeds } => match running.take() {
                        None => {
                            running = lifetime.begin();
                            match running {
                                Some(Step::Open { term, .. }) => {
                                    prop_assert_eq!(open, None, "nothing else is open");
                                    prop_assert!(tried.insert(term), "term {} opens once", term);
                                }
                                Some(Step::Close { term }) => prop_assert_eq!(open, Some(term)),
                                None => {}
                            }
                        }
                        Some(Step::Open { term, .. }) if succeeds => {
                            lifetime.opened();
                            open = Some(term);
                        }
                        Some(Step::Open { .. }) => lifetime.open_failed("x"),
                        Some(Step::Close { .. }) => {
                            lifetime.closed(None);
                            open = None;
                        }
                    },
                }
                prop_assert!(lifetime.wanted >= before.0 && lifetime.reached >= before.1);
                prop_assert!(lifetime.reached <= lifetime.wanted);
            }
            // Whatever was asked, running the steps to the end reaches what is wanted.
            for _ in 0..4 {
                match running.take().or_else(|| lifetime.begin()) {
                    Some(Step::Open { .. }) => lifetime.opened(),
                    Some(Step::Close { .. }) => lifetime.closed(None),
                    None => {}
                }
            }
            prop_assert_eq!(lifetime.reached, lifetime.wanted);
        }
    }
}
