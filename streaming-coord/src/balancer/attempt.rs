//! Drives one hand-over: the I/O around the state machine.

use tokio::sync::mpsc;
use woodpecker_base::clock::Clock;

use crate::{
    catalog::{Catalog, CatalogError, Record},
    nodes::{NodeError, NodeView},
    pchannel::{HandOver, Node, Ownership, PChannel, Step},
    settings,
};

/// What a running job tells the balancer.
#[derive(Debug)]
pub(super) enum Event {
    /// The channel as it is stored now.
    Stored(PChannel),
    /// The WAL of an earlier ownership had ended by itself.
    Ended { channel: String, past: Ownership, why: String },
    /// The job is over.
    Finished { channel: PChannel, record: Record, outcome: Result<(), AttemptError> },
}

/// Why a try at bringing a channel to a node came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    #[error("storing the channel: {0}")]
    Catalog(#[from] CatalogError),
    #[error("removing term {term}: {error}")]
    Remove { term: i64, error: NodeError },
    #[error("assigning term {term}: {error}")]
    Assign { term: i64, error: NodeError },
    #[error("node {0} went away")]
    NodeGone(i64),
}

/// What every job works with.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    pub(super) catalog: Catalog,
    pub(super) nodes: NodeView,
    pub(super) settings: settings::Nodes,
    pub(super) clock: Clock,
    pub(super) events: mpsc::Sender<Event>,
}

/// Runs a hand-over to its end, successful or not. There is no limit to it as a whole: each call has its deadline, and
/// a node that goes away ends the call to it.
pub(super) async fn run(mut tools: Tools, mut hand_over: HandOver, mut record: Record) {
    let outcome = drive(&mut tools, &mut hand_over, &mut record).await;
    let channel = hand_over.channel().clone();
    send(&tools.events, Event::Finished { channel, record, outcome }).await;
}

/// Stores that the WAL of an assigned channel was seen to fail.
pub(super) async fn mark_unavailable(tools: Tools, channel: PChannel, mut record: Record) {
    let outcome = tools.catalog.store_channel(&mut record, &channel).await.map_err(AttemptError::from);
    send(&tools.events, Event::Finished { channel, record, outcome }).await;
}

async fn drive(tools: &mut Tools, hand_over: &mut HandOver, record: &mut Record) -> Result<(), AttemptError> {
    loop {
        match hand_over.step() {
            Step::Store(channel) => {
                tools.catalog.store_channel(record, &channel).await?;
                hand_over.stored();
                send(&tools.events, Event::Stored(channel)).await;
            }
            Step::Remove(past) => {
                if let Some(why) = remove(tools, hand_over.channel(), &past).await? {
                    let channel = hand_over.channel().name().to_owned();
                    send(&tools.events, Event::Ended { channel, past, why }).await;
                }
                hand_over.removed();
            }
            Step::Assign(node) => {
                assign(tools, hand_over.channel(), &node).await?;
                hand_over.opened(tools.clock.wall().as_secs());
            }
            Step::Done => return Ok(()),
        }
    }
}

/// Ends an ownership, and says why its WAL had ended by itself. A node without a session owns nothing: it has stopped, or is
/// fenced by whoever opens next.
async fn remove(tools: &mut Tools, channel: &PChannel, past: &Ownership) -> Result<Option<String>, AttemptError> {
    let id = past.node.server_id;
    let Some(client) = tools.nodes.now().get(id).map(|status| status.client.clone()) else { return Ok(None) };
    let removal = client.remove(channel.info_of(past), tools.settings.remove_timeout);
    tokio::select! {
        outcome = removal => outcome.map_err(|error| AttemptError::Remove { term: past.term, error }),
        () = tools.nodes.until(|nodes| nodes.get(id).is_none()) => Ok(None),
    }
}

/// Opens the channel at its present term. A long recovery is progress: it is waited for as long as the node lives.
async fn assign(tools: &mut Tools, channel: &PChannel, node: &Node) -> Result<(), AttemptError> {
    let id = node.server_id;
    let client = tools.nodes.now().get(id).filter(|status| status.condition.retains()).map(|s| s.client.clone());
    let Some(client) = client else { return Err(AttemptError::NodeGone(id)) };
    let assignment = client.assign(channel.info(), tools.settings.assign_timeout);
    tokio::select! {
        outcome = assignment => outcome.map_err(|error| AttemptError::Assign { term: channel.term(), error }),
        () = tools.nodes.until(|nodes| !nodes.retains(id)) => Err(AttemptError::NodeGone(id)),
    }
}

async fn send(events: &mpsc::Sender<Event>, event: Event) {
    if events.send(event).await.is_err() {
        tracing::debug!("the balancer has stopped before its jobs");
    }
}
