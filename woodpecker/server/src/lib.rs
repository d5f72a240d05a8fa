//! The log store: replicas of segments of many logs, of many instances, on one disk volume behind gRPC.
//!
//! It is the passive side of the quorum backend. A client decides what is acked and how a segment is recovered; a store
//! keeps three promises on which those decisions stand:
//!
//! - what it confirmed as durable survives the death of the process and of the machine;
//! - once it answered a fence, it confirms nothing to an epoch below, for ever;
//! - of what it may have lost it says that it does not know, never that there was nothing.
//!
//! All logs share one writer thread and its sync ([`woodpecker_store::disk`]), so a thousand logs cost what one does.
//! `docs/logstore.md` tells operators how to run one; `proto/logstore.proto` is what it speaks.

mod failure;
mod ledger;
mod metrics;
mod namespace;
mod outbox;
mod quota;
mod refusal;
mod registration;
mod released;
mod replica;
mod serve;
mod service;
mod settings;
mod store;
#[cfg(test)]
mod tests;
mod watermark;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use self::{
    quota::Quota,
    refusal::Refusal,
    serve::{Edges, LogStore, serve},
    settings::{InFlight, Settings, SettingsError},
    store::{NamespaceStatus, Parts, StartError},
    watermark::{Mark, Watermarks},
};

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
