//! Whether something of the store cannot be written: then it takes no more appends. A volume that failed stays so until
//! the store is started again, or until there is room again if that was what it failed for; facts that cannot be written,
//! until they can.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::watch;

use crate::lock;

/// What cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Volume,
    Facts,
}

/// The first failure of each part; the others follow from it.
#[derive(Debug, Default)]
pub struct Failure {
    failed: AtomicBool,
    reasons: Mutex<BTreeMap<Part, Arc<str>>>,
    told: watch::Sender<Option<Arc<str>>>,
}

impl Failure {
    pub fn set(&self, part: Part, reason: &Arc<str>) {
        let mut reasons = lock(&self.reasons);
        if let Entry::Vacant(first) = reasons.entry(part) {
            tracing::error!(%reason, "the store takes no more appends; reads go on");
            first.insert(reason.clone());
            self.tell(&reasons);
        }
    }

    /// Adds to the reason what ends it.
    pub fn advise(&self, part: Part, what: &str) {
        let mut reasons = lock(&self.reasons);
        if let Some(reason) = reasons.get_mut(&part) {
            *reason = format!("{reason}; {what}").into();
            self.tell(&reasons);
        }
    }

    /// The part can be written again.
    pub fn clear(&self, part: Part) {
        let mut reasons = lock(&self.reasons);
        if let Some(reason) = reasons.remove(&part) {
            if reasons.is_empty() {
                tracing::info!(%reason, "this is over: the store takes appends");
            }
            self.tell(&reasons);
        }
    }

    fn tell(&self, reasons: &BTreeMap<Part, Arc<str>>) {
        let first = reasons.values().next().cloned();
        self.failed.store(first.is_some(), Ordering::Release);
        self.told.send_replace(first);
    }

    pub fn is_of(&self, part: Part) -> bool {
        lock(&self.reasons).contains_key(&part)
    }

    /// The reason from now on.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.told.subscribe()
    }

    pub fn reason(&self) -> Option<Arc<str>> {
        if self.failed.load(Ordering::Acquire) { self.told.borrow().clone() } else { None }
    }
}
