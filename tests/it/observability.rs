//! What a process tells of itself is what the page for operators promises.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, HeaderValue},
};
use opentelemetry::trace::TracerProvider;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, SpanData, SpanExporter},
};
use streaming_client::{Client, ConsumeOptions, Consumer, Delivery, Discovery, Edges, Settings};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{DeliverPolicy, ImmutableMessage, Message, MessageBuilder, channel::vchannel_name};
use test_peers::Authority;
use tokio::sync::mpsc;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{Layer, filter::Targets, layer::SubscriberExt};
use woodpecker_base::{clock::Clock, net::tcp_connector, random::Random};

use crate::{
    admin::get,
    process::{Role, printed},
};

const PAGE: &str = include_str!("../../docs/operate/observability.md");

/// The metrics in the table of a section, without those that are there only when something happens.
fn promised(section: &str) -> impl Iterator<Item = &'static str> {
    let table =
        PAGE.split_once(&format!("### {section}\n")).map_or("", |(_, rest)| rest).trim_start_matches(|c| c != '|');
    let rows = table.lines().take_while(|line| line.starts_with('|')).filter(|row| !row.contains("(when it happens)"));
    rows.filter_map(|row| row.strip_prefix("| `")?.split_once('`').map(|(name, _)| name))
}

fn standalone(directory: &tempfile::TempDir, more: &[String]) -> anyhow::Result<Role> {
    let data = directory.path().join("data").display().to_string();
    let mut arguments =
        ["--data".to_owned(), data, "--set".to_owned(), "rootCoord.dmlChannelNum=1".to_owned()].to_vec();
    arguments.extend(more.iter().flat_map(|value| ["--set".to_owned(), value.clone()]));
    Role::start("standalone", directory.path(), &arguments)
}

#[test]
fn every_metric_that_is_promised_is_there_once_work_was_done() -> anyhow::Result<()> {
    shows(&["Every process", "Coordinator", "Node", "Disks, of nodes and log stores"], &[])?;
    let objects = tempfile::tempdir()?;
    let on_objects = [
        "woodpecker.storage.type=object".to_owned(),
        "minio.cloudProvider=local".to_owned(),
        format!("minio.rootPath={}", objects.path().display()),
    ];
    shows(&["Object storage, of nodes and of the coordinator, which seals"], &on_objects)
}

/// Whether a process shows every metric of these sections, and appends below a millisecond.
fn shows(sections: &[&str], settings: &[String]) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let role = standalone(&directory, settings)?;
    let lines = directory.path().join("lines");
    std::fs::write(&lines, "one\n")?;
    let coordinator = role.address("coordinator");
    printed(["produce", "--coordinator", coordinator, "--file", &lines.display().to_string()])?;
    printed(["consume", "--coordinator", coordinator, "--count", "1"])?;
    for section in sections {
        assert!(promised(section).count() > 1, "the page has another form: {section}");
    }
    let promised: BTreeSet<_> = sections.iter().flat_map(|section| promised(section)).collect();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let (_, shown) = get(&role, "/metrics", "")?;
        let there: BTreeSet<_> =
            shown.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        let missing: Vec<_> = promised.difference(&there).collect();
        if missing.is_empty() {
            // Below a millisecond, where appends are.
            assert!(shown.contains("status=\"ok\",le=\"0.0001\"}"), "{shown}");
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < deadline, "promised and not there: {missing:?}\n{shown}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A collector of traces that hands on what it is sent, with TLS as this identity if there is one.
async fn collector(identity: Option<(String, String)>) -> anyhow::Result<(String, mpsc::Receiver<Bytes>)> {
    let (sent, received) = mpsc::channel(16);
    let router = Router::new().fallback(async move |body: Bytes| {
        let _ = sent.send(body).await;
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        headers
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let scheme = if identity.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://{}", listener.local_addr()?);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let mut server = Server::builder();
    if let Some((certificate, key)) = identity {
        server = server.tls_config(ServerTlsConfig::new().identity(Identity::from_pem(certificate, key)))?;
    }
    let server = server.add_routes(tonic::service::Routes::from(router));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok((address, received))
}

/// Spans of this process, which is the client's.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(batch);
        Ok(())
    }
}

// On one thread, so that the library's tasks have this test's subscriber as well.
#[tokio::test]
async fn one_trace_goes_from_the_producer_through_the_log_to_the_consumer() -> anyhow::Result<()> {
    let kept = Kept::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone()).build();
    let wanted = Targets::new().with_target("streaming::trace", LevelFilter::TRACE);
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(wanted);
    let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));

    let (endpoint, mut received) = collector(None).await?;
    let directory = tempfile::tempdir()?;
    let tracing = ["trace.exporter=otlp".to_owned(), format!("trace.otlp.endpoint={endpoint}")];
    let (path, mut role) = (directory.path().to_owned(), standalone(&directory, &tracing)?);
    let edges = Edges { connector: tcp_connector(), clock: Clock::system(), random: Random::system() };
    let client = Client::connect(Settings::new(Discovery::Address(role.address("coordinator").into())), edges)?;
    client.wait_ready(Duration::from_secs(20)).await?;
    let channel = client.channels().remove(0).pchannel.name().to_owned();
    let mut consumer = client.consume(ConsumeOptions::new(channel.clone(), DeliverPolicy::All))?;
    through(&client, &channel, &mut consumer).await?;
    // If a test on another thread, which has no subscriber, was the first to come by these spans, then nobody wants them until asked anew.
    tracing::callsite::rebuild_interest_cache();
    let arrived = through(&client, &channel, &mut consumer).await?;
    client.close().await;
    role.signal("TERM")?;
    let ended = tokio::task::spawn_blocking(move || role.wait(Duration::from_secs(30)));
    assert!(ended.await??.success(), "{}", path.display());

    let spans = kept.0.lock().unwrap().clone();
    let last = |name: &str| spans.iter().rfind(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"));
    let (produced, consumed) = (last("produce"), last("consume"));
    let (trace, place) = (produced.span_context.trace_id(), produced.span_context.span_id());
    assert_eq!(arrived.properties.get("traceparent"), Some(format!("00-{trace}-{place}-01").as_str()));
    assert_eq!((consumed.span_context.trace_id(), consumed.parent_span_id), (trace, place));
    // The node's span, as it came over the wire: of the same trace, and below the producer's.
    let exported = std::iter::from_fn(|| received.try_recv().ok()).collect::<Vec<_>>().concat();
    let holds = |wanted: &[u8]| exported.windows(wanted.len()).any(|window| window == wanted);
    assert!(holds(b"wal.append") && holds(&trace.to_bytes()) && holds(&place.to_bytes()), "{exported:?}");
    Ok(())
}

/// Appends a message and waits for it.
async fn through(client: &Client, channel: &str, consumer: &mut Consumer) -> anyhow::Result<ImmutableMessage> {
    client.producer(channel).append(insert(channel)?).await?.await?;
    loop {
        if let Delivery::Message(message) = consumer.next().await? {
            return Ok(message);
        }
    }
}

fn insert(channel: &str) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment { partition_id: 1, rows: 1, ..PartitionSegmentAssignment::default() };
    let header = InsertMessageHeader { collection_id: 1, partitions: vec![partition] };
    Ok(MessageBuilder::new(&header).vchannel(vchannel_name(channel, 1, 0)).payload("traced").build()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_belongs_to_a_trace_is_a_span_of_it_at_a_collector_with_tls() -> anyhow::Result<()> {
    let (directory, authority) = (tempfile::tempdir()?, Authority::new()?);
    let (endpoint, mut received) = collector(Some(authority.sign(&["127.0.0.1"], |_| {})?)).await?;
    let trusted = directory.path().join("ca");
    std::fs::write(&trusted, authority.pem())?;
    let tracing = [
        "trace.exporter=otlp".to_owned(),
        format!("trace.otlp.endpoint={endpoint}"),
        format!("trace.otlp.tlsCACert={}", trusted.display()),
    ];
    let mut role = standalone(&directory, &tracing)?;
    let edges = Edges { connector: tcp_connector(), clock: Clock::system(), random: Random::system() };
    let client = Client::connect(Settings::new(Discovery::Address(role.address("coordinator").into())), edges)?;
    client.wait_ready(Duration::from_secs(20)).await?;
    let channel = client.channels().remove(0).pchannel.name().to_owned();
    let mut message = insert(&channel)?;
    let trace = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128;
    message.properties.set("traceparent", format!("00-{trace:032x}-00f067aa0ba902b7-01"));
    client.producer(&channel).append(message).await?.await?;
    client.close().await;
    role.signal("TERM")?;
    assert!(role.wait(Duration::from_secs(30))?.success(), "{}", role.log());
    let spans = received.try_recv()?;
    let holds = |wanted: &[u8]| spans.windows(wanted.len()).any(|window| window == wanted);
    assert!(holds(&trace.to_be_bytes()), "another trace: {spans:?}");
    assert!(holds(b"wal.append") && holds(b"streaming-standalone") && holds(channel.as_bytes()), "{spans:?}");
    Ok(())
}
