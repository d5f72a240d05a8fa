//! The state against itself: whatever was written down when, and whatever was lost in between, a new owner comes to the
//! same state as one that read the whole log.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use proptest::prelude::*;
use prost::Message as _;
use streaming_proto::{
    common::ReplicateCheckpoint,
    messages::{
        AlterReplicateConfigMessageHeader, BroadcastHeader, CreateCollectionMessageHeader,
        CreatePartitionMessageHeader, CreateSegmentMessageHeader, DropCollectionMessageHeader,
        DropPartitionMessageHeader, FlushMessageHeader, InsertMessageHeader, ManualFlushMessageHeader,
        PartitionSegmentAssignment, SchemaChangeMessageBody, SchemaChangeMessageHeader, SegmentAssignment,
    },
    msg::CreateCollectionRequest,
    schema::CollectionSchema,
    streaming::{CollectionSchemaOfVChannel, SegmentAssignmentMeta},
};
use streaming_types::{Message, MessageBuilder, MessageId, TimeTick};
use woodpecker::EntryId;
use woodpecker_base::{
    clock::Clock,
    metadata::{Interfered, Interference, MemoryStore, MetadataError, MetadataStore, Txn, TxnOutcome, Write},
};

use super::{
    catalog::{Catalog, CatalogError, Changes, Persisted},
    seen::Seen,
    state::{Checkpoint, LARGEST_SCHEMA, State, VChannel},
};
use crate::{
    replication::samples::{header, topology},
    wal::record,
};

const ROOT: &str = "by-dev/meta";
const WAL: &str = "by-dev/meta/streamingnode-meta/wal/p_0";

fn schema(name: &str) -> CollectionSchema {
    CollectionSchema { name: name.to_owned(), ..CollectionSchema::default() }
}

fn create_collection(vchannel: &str, collection_id: i64, partition_ids: Vec<i64>) -> Message {
    let header = CreateCollectionMessageHeader { collection_id, partition_ids, db_id: 1 };
    let body = CreateCollectionRequest { schema: schema("first").encode_to_vec().into(), ..Default::default() };
    MessageBuilder::new(&header).vchannel(vchannel).body(&body).build().unwrap()
}

fn create_segment(vchannel: &str, collection_id: i64, partition_id: i64, segment_id: i64) -> Message {
    let header = CreateSegmentMessageHeader {
        collection_id,
        partition_id,
        segment_id,
        max_segment_size: 1000,
        level: 2,
        storage_version: 2,
        ..Default::default()
    };
    MessageBuilder::new(&header).vchannel(vchannel).build().unwrap()
}

fn insert(vchannel: &str, collection_id: i64, partition_id: i64, segment_id: i64, rows: u64) -> Message {
    let partition = PartitionSegmentAssignment {
        partition_id,
        rows,
        binary_size: rows * 10,
        segment_assignment: Some(SegmentAssignment { segment_id }),
    };
    let header = InsertMessageHeader { collection_id, partitions: vec![partition] };
    MessageBuilder::new(&header).vchannel(vchannel).payload("rows").build().unwrap()
}

fn change_schema(vchannel: &str, collection_id: i64, flushed_segment_ids: Vec<i64>) -> Message {
    let header = SchemaChangeMessageHeader { collection_id, flushed_segment_ids };
    let body = SchemaChangeMessageBody { schema: Some(schema("next")) };
    MessageBuilder::new(&header).vchannel(vchannel).body(&body).build().unwrap()
}

fn at(entry: u64) -> EntryId {
    EntryId { segment: 1, entry }
}

/// The record of a message at an entry, whose tick is 100 times its number.
fn written(entry: u64, mut message: Message) -> bytes::Bytes {
    message.properties.set_time_tick(TimeTick(entry * 100));
    message.properties.set_last_confirmed_is_self();
    record::encode(&mut message, 1)
}

fn apply(state: &mut State, entry: u64, record: &bytes::Bytes) {
    state.apply(&Seen::read(at(entry), record).unwrap());
}

async fn claim(store: &MemoryStore, term: i64) -> Result<Catalog, CatalogError> {
    Catalog::claim(Arc::new(store.clone()), ROOT, "p_0", term).await
}

async fn keys(store: &MemoryStore) -> Vec<String> {
    let items = store.list(&format!("{WAL}/")).await.unwrap().items;
    items.into_iter().map(|item| item.key[WAL.len() + 1..].to_owned()).collect()
}

#[tokio::test]
async fn collections_and_segments_are_kept_in_the_keys_of_the_protocol() {
    let store = MemoryStore::new(Clock::system());
    let catalog = claim(&store, 2).await.unwrap();
    let mut state = empty();
    let messages = [
        create_collection("p_0_7v0", 7, vec![70, 71]),
        create_segment("p_0_7v0", 7, 70, 700),
        insert("p_0_7v0", 7, 70, 700, 3),
        change_schema("p_0_7v0", 7, vec![]),
    ];
    for (entry, message) in (1..).zip(messages) {
        apply(&mut state, entry, &written(entry, message));
    }
    catalog.save(&state.take_changes()).await.unwrap();
    let expected = [
        "consume-checkpoint",
        "idempotency-keys-from",
        "segment-assign/700",
        "term",
        "vchannel/p_0_7v0",
        "vchannel/p_0_7v0/schema/100",
        "vchannel/p_0_7v0/schema/400",
    ];
    assert_eq!(keys(&store).await, expected);
    let segment = store.get(&format!("{WAL}/segment-assign/700")).await.unwrap().unwrap();
    let segment = SegmentAssignmentMeta::decode(segment.value).unwrap();
    let stat = segment.stat.unwrap();
    assert_eq!((stat.modified_rows, stat.modified_binary_size, stat.max_binary_size), (3, 30, 1000));
    assert_eq!((stat.create_segment_time_tick, segment.checkpoint_time_tick), (200, 300));
    let key = format!("{WAL}/vchannel/p_0_7v0/schema/400");
    let kept = CollectionSchemaOfVChannel::decode(store.get(&key).await.unwrap().unwrap().value).unwrap();
    assert_eq!((kept.schema, kept.checkpoint_time_tick, kept.state), (Some(schema("next")), 400, 1));

    let again = State::recovered(catalog.load().await.unwrap(), "by-dev", "p_0", KEY_SPAN);
    assert_eq!(again.checkpoint(), &Checkpoint::at(at(4), 400));
    assert_eq!(again.vchannels(), state.vchannels());
    assert!(again.segments().iter().eq(state.segments().iter()));

    let drop = MessageBuilder::new(&DropCollectionMessageHeader { collection_id: 7, db_id: 1 });
    apply(&mut state, 5, &written(5, drop.vchannel("p_0_7v0").payload("x").build().unwrap()));
    catalog.save(&state.take_changes()).await.unwrap();
    let mut left = vec!["consume-checkpoint", "dropped-vchannel/p_0_7v0", "idempotency-keys-from", "term"];
    assert_eq!(keys(&store).await, left, "of a dropped collection only that, as long as somebody may come to its drop");

    let mut state = State::recovered(catalog.load().await.unwrap(), "by-dev", "p_0", KEY_SPAN);
    for (end, forgets) in [(4, false), (5, true)] {
        state.truncated(at(end));
        catalog.save(&state.take_changes()).await.unwrap();
        left.retain(|key| !forgets || !key.starts_with("dropped-vchannel/"));
        assert_eq!(keys(&store).await, left);
    }
}

#[tokio::test]
async fn place_at_the_source_that_a_follower_is_promoted_without_is_kept() {
    let store = MemoryStore::new(Clock::system());
    let catalog = claim(&store, 2).await.unwrap();
    let mut state = State::recovered(Persisted::default(), "b", "b-p_0", KEY_SPAN);
    let alter = |edges, force_promote| {
        let replicate_configuration = Some(topology(edges));
        let header = AlterReplicateConfigMessageHeader { replicate_configuration, force_promote, ..Default::default() };
        MessageBuilder::new(&header).vchannel("b-p_0").build().unwrap()
    };
    let mut taken = insert("b-p_0_7v0", 7, 70, 700, 3);
    taken.properties.set_replicate(&header(9, 90));
    let messages = [alter(&[("a", "b")], false), taken, alter(&[], true), insert("b-p_0_7v0", 7, 70, 700, 3)];
    for (entry, message) in (1..).zip(messages) {
        apply(&mut state, entry, &written(entry, message));
    }
    catalog.save(&state.take_changes()).await.unwrap();
    let kept = store.get(&format!("{WAL}/salvage-checkpoint/a")).await.unwrap().unwrap();
    let kept = ReplicateCheckpoint::decode(kept.value).unwrap();
    assert_eq!((kept.pchannel.as_str(), kept.time_tick), ("a-p_0", 90));
    assert_eq!(kept.message_id, Some(MessageId::new(1, 9).to_proto()));
    assert_eq!(state.take_changes().components, [], "once");
    catalog.load().await.unwrap();
}

#[tokio::test]
async fn older_owner_cannot_overwrite() {
    let store = MemoryStore::new(Clock::system());
    let old = claim(&store, 2).await.unwrap();
    assert!(claim(&store, 2).await.is_ok(), "an open that is tried again");
    let new = claim(&store, 3).await.unwrap();
    let changes =
        |entry| Changes { components: Vec::new(), checkpoint: Checkpoint::at(at(entry), entry), keys_from: None };
    new.save(&changes(9)).await.unwrap();
    assert!(matches!(old.save(&changes(5)).await, Err(CatalogError::Overtaken(term)) if term == "3"));
    assert!(matches!(old.report("p_0", Checkpoint::at(at(5), 5)).await, Err(CatalogError::Overtaken(_))));
    assert!(matches!(old.load().await, Err(CatalogError::Overtaken(_))));
    assert!(matches!(claim(&store, 2).await, Err(CatalogError::Overtaken(_))));
    assert_eq!(new.load().await.unwrap().checkpoint, Some(Checkpoint::at(at(9), 9)));
}

#[tokio::test]
async fn changes_of_any_number_are_written() {
    let store = MemoryStore::new(Clock::system());
    let catalog = claim(&store, 1).await.unwrap();
    let mut state = empty();
    for entry in 1..400 {
        let id = i64::try_from(entry).unwrap();
        apply(&mut state, entry, &written(entry, create_collection(&format!("p_0_{entry}v0"), id, vec![1])));
    }
    catalog.save(&state.take_changes()).await.unwrap();
    assert_eq!(catalog.load().await.unwrap().vchannels.len(), 399);
}

/// Refuses what etcd would, and takes so many transactions.
#[derive(Debug)]
struct Strict(AtomicUsize);

#[async_trait]
impl Interference for Strict {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        let bytes = |write: &Write| match write {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Delete { key } | Write::DeletePrefix { prefix: key } => key.len(),
        };
        if txn.writes.iter().map(bytes).sum::<usize>() > 3 << 19 {
            return Err(MetadataError::Invalid("request is too large".to_owned()));
        }
        let left = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        left.map_err(|_| MetadataError::Unavailable("a test says so".to_owned()))?;
        store.commit(txn).await
    }
}

async fn strict(store: &MemoryStore, term: i64, transactions: usize) -> Catalog {
    let store = Interfered::new(Arc::new(store.clone()), Strict(AtomicUsize::new(transactions)));
    Catalog::claim(Arc::new(store), ROOT, "p_0", term).await.unwrap()
}

#[tokio::test]
async fn changes_of_any_size_are_written() {
    let store = MemoryStore::new(Clock::system());
    let catalog = strict(&store, 1, usize::MAX).await;
    let mut state = empty();
    for entry in 1..40 {
        let header = CreateCollectionMessageHeader { collection_id: 1, partition_ids: vec![1], db_id: 1 };
        let bytes = if entry == 20 { LARGEST_SCHEMA } else { 100_000 };
        let body = CreateCollectionRequest { schema: vec![0; bytes].into(), ..Default::default() };
        let message = MessageBuilder::new(&header).vchannel(format!("p_0_{entry}v0")).body(&body).build().unwrap();
        apply(&mut state, entry, &written(entry, message));
    }
    catalog.save(&state.take_changes()).await.unwrap();
    assert_eq!(catalog.load().await.unwrap().vchannels.len(), 39);
}

#[tokio::test]
async fn next_owner_goes_on_where_a_crash_came_between_schemas_and_their_vchannel() {
    let (store, vchannels) = (MemoryStore::new(Clock::system()), ["p_0_7v0", "p_0_8v0"]);
    let created = vchannels.map(|vchannel| create_collection(vchannel, 7, vec![]));
    let changed = |vchannel: &str, count| vec![change_schema(vchannel, 7, vec![]); count];
    let messages = created.into_iter().chain(changed(vchannels[0], 100)).chain(changed(vchannels[1], 40));
    let log: Vec<_> = (1..).zip(messages).map(|(entry, message)| (entry, written(entry, message))).collect();

    // One transaction claims the term, one takes all of the first vchannel and a part of the second one's schemas.
    let catalog = strict(&store, 1, 3).await;
    let mut state = empty();
    log[..2].iter().for_each(|(entry, record)| apply(&mut state, *entry, record));
    catalog.save(&state.take_changes()).await.unwrap();
    log[2..].iter().for_each(|(entry, record)| apply(&mut state, *entry, record));
    catalog.save(&state.take_changes()).await.unwrap_err();

    let catalog = claim(&store, 2).await.unwrap();
    let mut next = State::recovered(catalog.load().await.unwrap(), "by-dev", "p_0", KEY_SPAN);
    log.iter().for_each(|(entry, record)| apply(&mut next, *entry, record));
    catalog.save(&next.take_changes()).await.unwrap();
    let again = State::recovered(catalog.load().await.unwrap(), "by-dev", "p_0", KEY_SPAN);
    assert_eq!((next.vchannels(), again.vchannels()), (state.vchannels(), state.vchannels()));
}

#[tokio::test]
async fn schemas_that_are_written_are_left_alone() {
    let store = MemoryStore::new(Clock::system());
    let catalog = claim(&store, 1).await.unwrap();
    let mut state = empty();
    let mut revisions = Vec::new();
    for entry in 1..4 {
        let message = match entry {
            1 => create_collection("p_0_7v0", 7, vec![]),
            _ => change_schema("p_0_7v0", 7, vec![]),
        };
        apply(&mut state, entry, &written(entry, message));
        catalog.save(&state.take_changes()).await.unwrap();
        let first = store.get(&format!("{WAL}/vchannel/p_0_7v0/schema/100")).await.unwrap().unwrap();
        revisions.push(first.mod_revision);
    }
    assert!(revisions.iter().all(|revision| *revision == revisions[0]), "{revisions:?}");
    assert_eq!(catalog.load().await.unwrap().vchannels["p_0_7v0"].schemas.len(), 3);
}

#[tokio::test]
async fn unreadable_records_are_left_out() {
    let store = MemoryStore::new(Clock::system());
    let catalog = claim(&store, 1).await.unwrap();
    let mut txn = Txn::new();
    for key in ["consume-checkpoint", "vchannel/a", "segment-assign/x", "segment-assign/1", "vchannel/b/schema/1"] {
        txn = txn.put(format!("{WAL}/{key}"), "\u{7f}garbage");
    }
    store.commit(txn).await.unwrap();
    let persisted = catalog.load().await.unwrap();
    assert!(persisted.checkpoint.is_none() && persisted.vchannels.is_empty() && persisted.segments.is_empty());
}

#[test]
fn checkpoint_stays_before_a_broadcast_until_it_is_acknowledged() {
    let mut state = empty();
    apply(&mut state, 1, &written(1, insert("p_0_7v0", 7, 70, 700, 1)));
    for entry in [2, 4] {
        let mut message = create_collection(&format!("p_0_{entry}v0"), 7, vec![]);
        message.properties.set_broadcast(&BroadcastHeader { broadcast_id: entry, ..Default::default() });
        apply(&mut state, entry, &written(entry, message));
        apply(&mut state, entry + 1, &written(entry + 1, insert("p_0_7v0", 7, 70, 700, 1)));
    }
    assert_eq!(state.checkpoint(), &Checkpoint::at(at(1), 100));
    state.release(400);
    assert_eq!(state.checkpoint(), &Checkpoint::at(at(1), 100), "one before it is not done");
    state.release(200);
    assert_eq!(state.checkpoint(), &Checkpoint::at(at(5), 500));
}

#[derive(Debug, Clone)]
enum Step {
    Write(Message),
    /// Components and checkpoint are written down.
    Save,
    /// Components are, then the process dies.
    Torn,
    /// The process dies, and the next one goes on from what was written down.
    Die,
}

fn message() -> impl Strategy<Value = Message> {
    let name = |collection: i64| format!("p_0_{collection}v0");
    let ids = (1..4_i64, 1..3_i64, 1..5_i64, 1..9_u64);
    (0..9, ids).prop_map(move |(kind, (collection, partition, segment, rows))| {
        let vchannel = name(collection);
        let segment = collection * 100 + partition * 10 + segment;
        match kind {
            0 => create_collection(&vchannel, collection, vec![1]),
            1 => {
                let header = DropCollectionMessageHeader { collection_id: collection, db_id: 1 };
                MessageBuilder::new(&header).vchannel(vchannel).payload("x").build().unwrap()
            }
            2 => {
                let header = CreatePartitionMessageHeader { collection_id: collection, partition_id: partition };
                MessageBuilder::new(&header).vchannel(vchannel).payload("x").build().unwrap()
            }
            3 => {
                let header = DropPartitionMessageHeader { collection_id: collection, partition_id: partition };
                MessageBuilder::new(&header).vchannel(vchannel).payload("x").build().unwrap()
            }
            4 => {
                let header =
                    FlushMessageHeader { collection_id: collection, partition_id: partition, segment_id: segment };
                MessageBuilder::new(&header).vchannel(vchannel).build().unwrap()
            }
            5 => {
                let header =
                    ManualFlushMessageHeader { collection_id: collection, flush_ts: 1, segment_ids: vec![segment] };
                MessageBuilder::new(&header).vchannel(vchannel).build().unwrap()
            }
            6 => change_schema(&vchannel, collection, vec![segment]),
            7 => create_segment(&vchannel, collection, partition, segment),
            _ => insert(&vchannel, collection, partition, segment, rows),
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => message().prop_map(Step::Write),
        2 => Just(Step::Save),
        1 => Just(Step::Torn),
        1 => Just(Step::Die),
    ]
}

/// So few that a restart reads more than what follows the checkpoint only now and then.
const KEY_SPAN: u64 = 500;

fn empty() -> State {
    State::recovered(Persisted::default(), "by-dev", "p_0", KEY_SPAN)
}

type Known = (BTreeMap<String, VChannel>, BTreeMap<String, EntryId>, Vec<SegmentAssignmentMeta>);

fn known(state: &State) -> Known {
    (state.vchannels().clone(), state.dropped().clone(), state.segments().iter().cloned().collect())
}

/// What the next owner knows.
async fn restart(catalog: &Catalog, log: &[bytes::Bytes]) -> State {
    let mut state = State::recovered(catalog.load().await.unwrap(), "by-dev", "p_0", KEY_SPAN);
    let from = state.replay_from();
    for (entry, record) in (1..).zip(log).filter(|(entry, _)| at(*entry) >= from) {
        apply(&mut state, entry, record);
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn restarts_at_any_moment_change_nothing(steps in prop::collection::vec(step(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let store = MemoryStore::new(Clock::system());
            let catalog = claim(&store, 1).await.unwrap();
            let (mut log, mut model, mut state) = (Vec::new(), empty(), empty());
            for step in steps {
                match step {
                    Step::Write(message) => {
                        let entry = log.len() as u64 + 1;
                        log.push(written(entry, message));
                        apply(&mut state, entry, &log[log.len() - 1]);
                        apply(&mut model, entry, &log[log.len() - 1]);
                    }
                    Step::Save => catalog.save(&state.take_changes()).await.unwrap(),
                    Step::Torn => {
                        let before = catalog.load().await.unwrap().checkpoint.unwrap_or_default();
                        let changes = Changes { checkpoint: before, ..state.take_changes() };
                        catalog.save(&changes).await.unwrap();
                        state = restart(&catalog, &log).await;
                    }
                    Step::Die => state = restart(&catalog, &log).await,
                }
                prop_assert_eq!(known(&state), known(&model));
            }
            Ok(())
        })?;
    }
}
