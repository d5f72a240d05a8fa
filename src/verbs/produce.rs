//! `streaming produce`: a file, or standard input, into a channel, line by line.

use std::{collections::VecDeque, io::IsTerminal, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use streaming_client::{Append, AppendResult, Producer};
use streaming_proto::messages::{InsertMessageHeader, PartitionSegmentAssignment};
use streaming_types::{Message, MessageBuilder, channel::vchannel_name};
use tokio::io::{AsyncBufRead, BufReader};

use super::{
    connect, pick_channel, print_json,
    read_back::{Outstanding, digest},
    records::Records,
};
use crate::{cli::ProduceArgs, print::say};

/// The collection whose messages carry lines: messages need one, lines do not.
const LINES_COLLECTION: i64 = 1;
/// How many appends may wait for their acks before the oldest is awaited.
const MAX_UNACKED: usize = 4096;

/// What was appended.
#[derive(Debug, Default, Serialize)]
struct Report {
    channel: String,
    messages: u64,
    bytes: u64,
    first: Option<String>,
    last: Option<String>,
    seconds: f64,
    /// How long it took to read it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_back_seconds: Option<f64>,
}

/// Appends everything and waits for every ack, and, if asked, for all of it to come back.
///
/// # Errors
/// The input cannot be read, an append failed for good, or what was acked does not come back as it was sent; the report of
/// what was acked goes to standard error.
pub(crate) async fn produce(arguments: ProduceArgs) -> anyhow::Result<()> {
    let cluster = connect(&arguments.connect).await?;
    let channel = pick_channel(&cluster, arguments.channel.as_deref(), &arguments.connect).await?;
    let channel = channel.pchannel.name().to_owned();
    let (input, size): (Box<dyn AsyncBufRead + Unpin>, u64) = match &arguments.file {
        None => (Box::new(BufReader::new(tokio::io::stdin())), 0),
        Some(path) => {
            let file = tokio::fs::File::open(path).await.with_context(|| format!("cannot read {}", path.display()))?;
            let size = file.metadata().await?.len();
            (Box::new(BufReader::with_capacity(1 << 20, file)), size)
        }
    };
    let limit = usize::try_from(arguments.max_record.as_u64())?;
    let started = cluster.clock.now();
    let mut lines = Lines {
        producer: cluster.client.producer(&channel),
        vchannel: vchannel_name(&channel, LINES_COLLECTION, 0),
        unacked: VecDeque::new(),
        outstanding: arguments.read_back.then(Outstanding::default),
        progress: progress_bar(size),
        report: Report { channel: channel.clone(), ..Report::default() },
    };
    let mut outcome = lines.append_all(Records::new(input, limit)).await;
    lines.progress.finish_and_clear();
    let mut report = Report { seconds: started.elapsed().as_secs_f64(), ..lines.report };
    if let (Ok(()), Some(mut outstanding)) = (&outcome, lines.outstanding) {
        let appended = cluster.clock.now();
        outcome = outstanding.read(&cluster, &channel, arguments.connect.timeout).await;
        report.read_back_seconds = Some(appended.elapsed().as_secs_f64());
    }
    cluster.client.close().await;
    if outcome.is_err() {
        eprintln!("acknowledged before the failure: {} messages, {} bytes", report.messages, report.bytes);
    }
    outcome?;
    if arguments.json { print_json(&report) } else { print_report(&report) }
}

struct Lines {
    producer: Producer,
    vchannel: String,
    /// Appends in order, with the bytes each carries and, if they have to come back, a digest of them.
    unacked: VecDeque<(Append, u64, u64)>,
    /// If what is acked has to come back.
    outstanding: Option<Outstanding>,
    progress: ProgressBar,
    report: Report,
}

impl Lines {
    async fn append_all(&mut self, mut records: Records<Box<dyn AsyncBufRead + Unpin>>) -> anyhow::Result<()> {
        while let Some(record) = records.next().await.context("cannot read the input")? {
            let bytes = record.len() as u64;
            let digest = self.outstanding.as_ref().map_or(0, |_| digest(&record));
            let append = self.producer.append(line_message(&self.vchannel, record.into())?).await?;
            self.unacked.push_back((append, bytes, digest));
            if self.unacked.len() >= MAX_UNACKED {
                self.await_oldest().await?;
            }
        }
        while !self.unacked.is_empty() {
            self.await_oldest().await?;
        }
        Ok(())
    }

    async fn await_oldest(&mut self) -> anyhow::Result<()> {
        let Some((append, bytes, digest)) = self.unacked.pop_front() else { return Ok(()) };
        let acked = append.await?;
        if let Some(outstanding) = &mut self.outstanding {
            outstanding.add(&acked, digest);
        }
        let AppendResult { id, .. } = acked;
        self.report.messages += 1;
        self.report.bytes += bytes;
        self.report.first.get_or_insert_with(|| id.to_string());
        self.report.last = Some(id.to_string());
        self.progress.inc(bytes);
        Ok(())
    }
}

/// One line as a message: the payload is the line, newline and all.
///
/// # Errors
/// Never for a line; what the builder refuses.
pub(crate) fn line_message(vchannel: &str, line: Bytes) -> anyhow::Result<Message> {
    let partition = PartitionSegmentAssignment {
        partition_id: 1,
        rows: 1,
        binary_size: line.len() as u64,
        ..PartitionSegmentAssignment::default()
    };
    let header = InsertMessageHeader { collection_id: LINES_COLLECTION, partitions: vec![partition] };
    Ok(MessageBuilder::new(&header).vchannel(vchannel).payload(line).build()?)
}

/// Shows on a terminal only.
fn progress_bar(size: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = if size > 0 {
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} acknowledged, {eta} to go"
    } else {
        "{spinner} {bytes} {bytes_per_sec} acknowledged"
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = if size > 0 { ProgressBar::new(size) } else { ProgressBar::new_spinner() };
    bar.enable_steady_tick(Duration::from_millis(200));
    bar.with_style(style)
}

fn print_report(report: &Report) -> anyhow::Result<()> {
    let Report { channel, messages, bytes, first, last, seconds, read_back_seconds } = report;
    let range = match (first, last) {
        (Some(first), Some(last)) => format!(", ids {first} to {last}"),
        _ => String::new(),
    };
    let read_back = read_back_seconds.map(|seconds| format!(", read back in {seconds:.2} s")).unwrap_or_default();
    say!("{messages} messages, {} in {seconds:.2} s to {channel}{range}{read_back}", bytesize::ByteSize(*bytes));
    Ok(())
}
