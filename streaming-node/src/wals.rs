//! The pchannels of this node: each driven by one task from what it reached to what the coordinator wants.

mod lifetime;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arc_swap::ArcSwapOption;
use futures::future::join_all;
use streaming_proto::streaming as pb;
use streaming_types::{PChannel, StreamingError};
use tokio::sync::watch;
use woodpecker_base::tasks::Tasks;

use self::lifetime::{Lifetime, Outcome, Step};
use crate::{
    identity::Identity,
    metrics,
    wal::{
        Wal,
        open::{OpenError, Opener},
        trouble::Trouble,
    },
};

/// All pchannels that were ever assigned here.
#[derive(Debug)]
pub struct Wals {
    opener: Opener,
    identity: Arc<Identity>,
    tasks: Tasks,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    channels: BTreeMap<String, Arc<Channel>>,
    closing: bool,
    /// Whether the node's server id is over and it has no other yet.
    releasing: bool,
}

/// One pchannel on this node.
#[derive(Debug, Default)]
struct Channel {
    lifetime: Mutex<Lifetime>,
    /// Wakes who waits for the lifetime; carries nothing.
    changed: watch::Sender<()>,
    /// What is open now.
    wal: ArcSwapOption<Wal>,
}

impl Wals {
    /// No pchannels yet.
    pub fn new(opener: Opener, identity: Arc<Identity>, tasks: Tasks) -> Self {
        Self { opener, identity, tasks, state: Mutex::default() }
    }

    /// Opens a pchannel at a term and waits until it serves. A caller that gives up does not stop the open: it may ask
    /// for the same term again.
    ///
    /// # Errors
    /// ON_SHUTDOWN, IGNORED_OPERATION for a term that is not ahead, UNMATCHED_CHANNEL_TERM when a newer one took over,
    /// UNKNOWN with the reason of a failed open.
    pub async fn assign(&self, asked: &PChannel) -> Result<(), StreamingError> {
        let channel = {
            let mut state = self.lock();
            if state.closing || state.releasing {
                return Err(StreamingError::manager_closed());
            }
            let channel = state.channels.entry(asked.name().to_owned()).or_insert_with(|| self.drive(asked.name()));
            // Under the lock, so that who releases what is open finds it.
            channel
                .change(|lifetime| lifetime.assign(asked.term(), asked.is_read_only()))
                .map_err(|_| StreamingError::expired_open(asked.name(), asked.term()))?;
            Arc::clone(channel)
        };
        channel.outcome(|lifetime| lifetime.assign_outcome(asked.term())).await
    }

    /// Closes a pchannel and waits until it is closed. Says why it had ended already, if it had by itself.
    ///
    /// # Errors
    /// IGNORED_OPERATION for a term that is past, UNMATCHED_CHANNEL_TERM when a newer one took over.
    pub async fn remove(&self, asked: &PChannel) -> Result<Option<String>, StreamingError> {
        let channel = {
            let mut state = self.lock();
            let channel = state.channels.entry(asked.name().to_owned()).or_insert_with(|| self.drive(asked.name()));
            Arc::clone(channel)
        };
        channel.change(|lifetime| lifetime.remove(asked.term())).map_err(|_| {
            StreamingError::ignored_operation(format!(
                "channel {} with expired term {}, cannot change expected state for remove",
                asked.name(),
                asked.term()
            ))
        })?;
        channel.outcome(|lifetime| lifetime.remove_outcome(asked.term())).await?;
        Ok(channel.lock().loss(asked.term()))
    }

    /// The open WAL of a pchannel at exactly the term asked for.
    ///
    /// # Errors
    /// ON_SHUTDOWN, CHANNEL_NOT_EXIST, UNMATCHED_CHANNEL_TERM.
    pub fn find(&self, asked: &PChannel) -> Result<Arc<Wal>, StreamingError> {
        let wal = self.serving(asked.name())?;
        if wal.channel().term() != asked.term() {
            return Err(StreamingError::unmatched_channel_term(asked.name(), asked.term(), wal.channel().term()));
        }
        Ok(wal)
    }

    /// The open WAL of a pchannel, whatever its term.
    ///
    /// # Errors
    /// ON_SHUTDOWN, CHANNEL_NOT_EXIST.
    pub fn serving(&self, pchannel: &str) -> Result<Arc<Wal>, StreamingError> {
        let channel = {
            let state = self.lock();
            if state.closing {
                return Err(StreamingError::manager_closed());
            }
            state.channels.get(pchannel).map(Arc::clone)
        };
        channel
            .and_then(|channel| channel.wal.load_full())
            .filter(|wal| !wal.ended().is_cancelled())
            .ok_or_else(|| StreamingError::channel_not_exist(pchannel))
    }

    /// Everything that is open, for the coordinator. Waits for no WAL.
    ///
    /// # Errors
    /// ON_SHUTDOWN: what is not there then has not ended by itself.
    pub fn metrics(&self) -> Result<Vec<pb::StreamingNodeWalMetrics>, StreamingError> {
        let channels: Vec<_> = self.lock().channels.values().map(Arc::clone).collect();
        let open = channels.iter().filter_map(|channel| channel.wal.load_full());
        let metrics = open.filter(|wal| !wal.ended().is_cancelled()).map(|wal| wal.metrics()).collect();
        // Looked at last: until now nothing was closed by the node's own end.
        let state = self.lock();
        if state.closing || state.releasing { Err(StreamingError::manager_closed()) } else { Ok(metrics) }
    }

    /// Opens nothing more and closes what is open.
    pub async fn close(&self) {
        self.lock().closing = true;
        self.release().await;
    }

    /// Closes what is open, all at a time; its terms are over. Opens nothing more until the node [begins anew](Self::begin_anew):
    /// what it is told until then is meant for who it was.
    pub async fn release(&self) {
        let channels: Vec<_> = {
            let mut state = self.lock();
            state.releasing = true;
            state.channels.values().map(Arc::clone).collect()
        };
        join_all(channels.iter().map(|channel| async {
            let term = channel.lock().term();
            // Whatever the outcome, nothing of this term is open then.
            let _ = channel.change(|lifetime| lifetime.remove(term));
            let _ = channel.outcome(|lifetime| lifetime.remove_outcome(term)).await;
        }))
        .await;
    }

    /// The node is `server_id` from now on.
    pub fn begin_anew(&self, server_id: i64) {
        let mut state = self.lock();
        self.identity.set_server_id(server_id);
        state.releasing = false;
    }

    fn drive(&self, name: &str) -> Arc<Channel> {
        let channel = Arc::new(Channel::default());
        let (opener, identity) = (self.opener.clone(), Arc::clone(&self.identity));
        let driven = Arc::clone(&channel);
        let name = name.to_owned();
        self.tasks.spawn_until_stopped(async move { driven.drive(&name, &opener, &identity).await });
        channel
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, Lifetime> {
        self.lifetime.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Lifetime) -> R) -> R {
        let result = change(&mut self.lock());
        self.changed.send_replace(());
        result
    }

    async fn outcome(&self, outcome: impl Fn(&Lifetime) -> Outcome) -> Result<(), StreamingError> {
        let mut changed = self.changed.subscribe();
        loop {
            let known = outcome(&self.lock());
            match known {
                Outcome::Pending => {}
                Outcome::Done => return Ok(()),
                Outcome::Overtaken { wanted, actual } => return Err(StreamingError::overtaken_term(wanted, actual)),
                Outcome::Failed(reason) => return Err(StreamingError::unknown(reason)),
            }
            // The sender is ours and lives as long as we do.
            let _ = changed.changed().await;
        }
    }

    async fn drive(&self, name: &str, opener: &Opener, identity: &Identity) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let step = self.lock().begin();
            match step {
                Some(Step::Open { term, read_only }) => self.open(name, term, read_only, opener, identity).await,
                Some(Step::Close { .. }) => {
                    let mut why = None;
                    if let Some(wal) = self.wal.swap(None) {
                        wal.close().await;
                        why = wal.trouble().map(ToString::to_string);
                    }
                    self.change(|lifetime| lifetime.closed(why));
                }
                None => self.rest(&mut changed).await,
            }
        }
    }

    async fn open(&self, name: &str, term: i64, read_only: bool, opener: &Opener, identity: &Identity) {
        let channel = if read_only { PChannel::read_only(name, term) } else { PChannel::read_write(name, term) };
        let channel = match channel {
            Ok(channel) => channel,
            Err(error) => return self.change(|lifetime| lifetime.open_failed(error)),
        };
        let opened = tokio::select! {
            biased;
            () = self.overtaken() => Err(OpenError::Overtaken),
            opened = opener.open(&channel, identity.server_id()) => opened,
        };
        match opened {
            Ok(wal) => {
                tracing::info!(pchannel = name, term, read_only, "opened");
                self.wal.store(Some(Arc::new(wal)));
                self.change(Lifetime::opened);
            }
            Err(error) => {
                let trouble = Trouble::from(&error);
                tracing::warn!(pchannel = name, term, error = %trouble, "opening failed");
                metrics::failed(name, trouble.code());
                self.change(|lifetime| lifetime.open_failed(trouble));
            }
        }
    }

    async fn overtaken(&self) {
        let mut changed = self.changed.subscribe();
        while !self.lock().open_is_overtaken() {
            let _ = changed.changed().await;
        }
    }

    /// Waits for an order, or for what is open to end by itself: then its term is over.
    async fn rest(&self, changed: &mut watch::Receiver<()>) {
        let Some(wal) = self.wal.load_full() else {
            let _ = changed.changed().await;
            return;
        };
        tokio::select! {
            biased;
            _ = changed.changed() => {}
            () = wal.ended().cancelled() => {
                // An order that came in between is ahead of this one.
                let _ = self.change(|lifetime| lifetime.remove(wal.channel().term()));
            }
        }
    }
}
