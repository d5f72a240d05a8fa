//! Shipping between two clusters in this process.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use streaming_client::{Client, ConsumeOptions, Consumer, Delivery, Discovery, Edges, Settings};
use streaming_node::NodeCell;
use streaming_proto::{
    common::{ConnectionParam, CrossClusterTopology, MilvusCluster, ReplicateConfiguration},
    messages::InsertMessageHeader,
};
use streaming_replicate::Replicator;
use streaming_types::{DeliverPolicy, Message, MessageBuilder, MessageType, channel::vchannel_name};
use tokio::sync::watch;
use woodpecker_base::{
    clock::Clock,
    metadata::{Interfered, Interference, MemoryStore, MetadataError, MetadataStore, Txn, TxnOutcome},
    net::tcp_connector,
    random::Random,
    tasks::Tasks,
};

use crate::{
    config::{Sources, load},
    roles::{Live, Machine, Reporters, Standalone},
};

const SOON: Duration = Duration::from_secs(20);
/// Larger than an entry of the log.
const LARGE: usize = 5 << 20;

/// The positions of consumers cannot be noted as long as it is so.
#[derive(Debug)]
struct Stuck(watch::Sender<bool>);

#[tonic::async_trait]
impl Interference for Stuck {
    async fn commit(&self, store: &dyn MetadataStore, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        if format!("{txn:?}").contains("/consumer/") {
            let _ = self.0.subscribe().wait_for(|stuck| !stuck).await;
        }
        store.commit(txn).await
    }
}

/// A cluster with one channel.
struct Site {
    name: &'static str,
    cluster: Standalone,
    client: Client,
    metadata: Arc<Interfered<Stuck>>,
    _directory: tempfile::TempDir,
}

fn edges() -> Edges {
    Edges { connector: tcp_connector(), clock: Clock::system(), random: Random::system() }
}

impl Site {
    async fn start(name: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = format!("woodpecker.storage.rootPath={}", directory.path().display());
        let cluster = format!("msgChannel.chanNamePrefix.cluster={name}");
        let settings = [&data, &cluster, "rootCoord.port=0", "streamingNode.port=0", "rootCoord.dmlChannelNum=1"];
        let assignments = settings.map(str::to_owned).to_vec();
        let config = load(&Sources { assignments, ..Sources::default() }).unwrap();
        let (machine, cell) = (Machine::real(&config).unwrap(), NodeCell::default());
        let inner = MemoryStore::new(machine.clock.clone());
        let metadata = Arc::new(Interfered::new(Arc::new(inner), Stuck(watch::Sender::new(false))));
        let store = Arc::<Interfered<Stuck>>::clone(&metadata);
        let mut cluster =
            Standalone::start_on(store, &config, &machine, &Reporters::default(), &cell, &Live::new(&config))
                .await
                .unwrap();
        cluster.until_served().await.unwrap();
        let discovery = Discovery::Address(cluster.address().to_owned());
        let settings = Settings { cluster: name.to_owned(), ..Settings::new(discovery) };
        let client = Client::connect(settings, edges()).unwrap();
        client.wait_ready(SOON).await.unwrap();
        Self { name, cluster, client, metadata, _directory: directory }
    }

    fn channel(&self) -> String {
        format!("{}-rootcoord-dml_0", self.name)
    }

    fn in_topology(&self) -> MilvusCluster {
        let uri = format!("http://{}", self.cluster.address());
        MilvusCluster {
            cluster_id: self.name.to_owned(),
            connection_param: Some(ConnectionParam { uri, token: String::new() }),
            pchannels: vec![self.channel()],
        }
    }

    fn message(&self, text: &str) -> Message {
        let header = InsertMessageHeader { collection_id: 1, ..InsertMessageHeader::default() };
        let message = MessageBuilder::new(&header).vchannel(vchannel_name(&self.channel(), 1, 0));
        message.payload(text.to_owned()).build().unwrap()
    }

    async fn append(&self, text: &str) {
        let producer = self.client.producer(&self.channel());
        producer.append(self.message(text)).await.unwrap().await.unwrap();
    }

    fn reader(&self) -> Consumer {
        self.client.consume(ConsumeOptions::new(self.channel(), DeliverPolicy::All)).unwrap()
    }

    async fn stop(self) {
        self.client.close().await;
        self.cluster.stop().await.unwrap();
    }
}

/// Two clusters, of which the second follows the first.
async fn start() -> (Site, Site) {
    let (west, east) = (Site::start("west").await, Site::start("east").await);
    let edge = CrossClusterTopology { source_cluster_id: "west".into(), target_cluster_id: "east".into() };
    let wanted = ReplicateConfiguration {
        clusters: vec![west.in_topology(), east.in_topology()],
        cross_cluster_topology: vec![edge],
    };
    for site in [&west, &east] {
        site.client.update_replicate_configuration(wanted.clone(), SOON).await.unwrap();
    }
    (west, east)
}

/// Ships until the tasks are stopped.
fn ship(west: &Site, settings: streaming_replicate::Settings) -> Tasks {
    let replicator = Replicator::new(west.client.clone(), "west", settings, edges(), BTreeMap::new()).unwrap();
    let tasks = Tasks::new();
    let running = tasks.clone();
    tasks.spawn(async move { replicator.run(&running).await });
    tasks
}

/// The first words of the next messages, a transaction's in one.
async fn next(reader: &mut Consumer) -> Vec<String> {
    let word = |payload: &[u8]| String::from_utf8_lossy(payload).split(' ').next().unwrap_or_default().to_owned();
    loop {
        match Clock::system().timeout(SOON, reader.next()).await.expect("it comes in time").unwrap() {
            Delivery::Message(message)
                if message.properties.message_type() == Ok(MessageType::AlterReplicateConfig) => {}
            Delivery::Message(message) => return vec![word(&message.payload)],
            Delivery::Txn(txn) => return txn.bodies.iter().map(|body| word(&body.payload)).collect(),
            Delivery::TimeTick { .. } => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shipping_goes_on_while_the_source_cannot_note_how_far_it_is() {
    let (west, east) = start().await;
    west.metadata.by.0.send_replace(true);
    let often = Duration::from_millis(20);
    let tasks = ship(&west, streaming_replicate::Settings { interval: often, ..Default::default() });
    let (clock, mut reader) = (Clock::system(), east.reader());
    let all = async {
        for n in 0..20 {
            west.append(&n.to_string()).await;
            assert_eq!(next(&mut reader).await, [n.to_string()]);
            clock.sleep(often).await;
        }
    };
    clock.timeout(SOON, all).await.expect("each report takes longer than this, and nobody waits for one");
    west.metadata.by.0.send_replace(false);
    tasks.drain(&clock, SOON).await;
    west.stop().await;
    east.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn smallest_window_ships_large_messages_and_transactions_too() {
    let (west, east) = start().await;
    let tasks =
        ship(&west, streaming_replicate::Settings { in_flight_messages: 1, in_flight_bytes: 1, ..Default::default() });
    let large = format!("large {}", "x".repeat(LARGE));
    west.append("first").await;
    west.append(&large).await;
    let together = ["a", "b", "c"].map(|text| west.message(text)).to_vec();
    let vchannel = vchannel_name(&west.channel(), 1, 0);
    west.client.producer(&west.channel()).append_together(&vchannel, together).await.unwrap();
    west.append("last").await;
    let mut reader = east.reader();
    for expected in [&["first"][..], &["large"], &["a", "b", "c"], &["last"]] {
        assert_eq!(next(&mut reader).await, expected);
    }
    tasks.drain(&Clock::system(), SOON).await;
    west.stop().await;
    east.stop().await;
}
