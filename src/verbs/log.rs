//! `streaming log`: logs as the engine has them, without a cluster.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, bail, ensure};
use bytesize::ByteSize;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use woodpecker::{Client, EntryId, Log, LogDescription, LogError, LogSettings, VerifiedSegment};
use woodpecker_base::tasks::Tasks;

use super::{id_parts, list::table, print_json};
use crate::{
    cli::{ConfigurationArgs, LogArgs, LogVerb, WantedArgs},
    config::{MetastoreType, StorageType},
    print::say,
    roles::{Machine, open_logs},
};

/// The log engine, opened for one verb.
struct Engine {
    client: Client,
    machine: Machine,
    tasks: Tasks,
}

impl Engine {
    /// Of an engine that is not there, only what creates a log makes one: elsewhere it is a slip in the data directory.
    async fn open(configuration: &ConfigurationArgs, verb: &LogVerb) -> anyhow::Result<Self> {
        let (config, tasks) = (configuration.load()?, Tasks::new());
        let (embedded, metadata) = (config.metastore.kind == MetastoreType::Embedded, config.metadata_file());
        ensure!(
            !embedded || metadata.exists() || matches!(verb, LogVerb::Create { .. }),
            "there are no logs here: {} does not exist; --data names the data directory, --config a cluster's configuration",
            metadata.display()
        );
        let machine = Machine::real(&config)?;
        let client = open_logs(&config, &machine, &tasks).await?;
        Ok(Self { client, machine, tasks })
    }

    async fn close(self) {
        self.client.close().await;
        self.tasks.drain(&self.machine.clock, Duration::from_secs(5)).await;
    }
}

/// Runs one verb.
///
/// # Errors
/// A medium or the metadata cannot be opened, the log does not exist, or what the verb itself finds.
pub(crate) async fn log(arguments: LogArgs) -> anyhow::Result<()> {
    let engine = Engine::open(&arguments.configuration, &arguments.verb).await?;
    let outcome = run(&engine.client, arguments.verb, arguments.json).await;
    engine.close().await;
    outcome
}

async fn run(client: &Client, verb: LogVerb, json: bool) -> anyhow::Result<()> {
    match verb {
        LogVerb::Create { name, wanted } => {
            let log = client.create_log(&name).await?;
            log.alter(|settings| wanted.apply(settings)).await?;
            show(&log, json).await
        }
        LogVerb::List { prefix } => list(client, &prefix, json).await,
        LogVerb::Describe { name, at } => show_at(&client.open_log(&name).await?, at, json).await,
        LogVerb::Truncate { name, entry } => {
            let log = client.open_log(&name).await?;
            log.truncate(entry_id(&entry)?).await?;
            show(&log, json).await
        }
        LogVerb::Delete { name, yes } => {
            ensure!(yes || confirmed(&name)?, "log {name} was not deleted");
            client.delete_log(&name).await?;
            if json { print_json(&serde_json::json!({ "deleted": name })) } else { Ok(()) }
        }
        LogVerb::Alter { name, wanted } => {
            let log = client.open_log(&name).await?;
            log.alter(|settings| wanted.apply(settings)).await?;
            show(&log, json).await
        }
        LogVerb::Verify { name } => verify(&client.open_log(&name).await?, json).await,
    }
}

impl WantedArgs {
    fn apply(&self, settings: &mut LogSettings) {
        if let Some(backend) = self.backend {
            settings.backend = Option::<StorageType>::from(backend).map(|backend| backend.name().into());
        }
        if let Some(compression) = self.compression {
            settings.compression = compression.into();
        }
        if let Some(retention) = self.retention {
            let ms = |limit: Duration| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            settings.retention_ms = retention.0.map(ms);
        }
        if let Some(retention) = self.retention_bytes {
            settings.retention_bytes = retention.0.map(|limit| limit.as_u64());
        }
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    name: String,
    id: u64,
    segments: usize,
    /// Entries in closed segments.
    entries: u64,
    bytes: u64,
    backend: String,
    sealed: usize,
}

impl From<LogDescription> for Listed {
    fn from(log: LogDescription) -> Self {
        Self {
            segments: log.segments.len(),
            entries: log.segments.iter().filter_map(|segment| segment.entries).sum(),
            bytes: log.segments.iter().filter_map(|segment| segment.bytes.or(segment.sealed_bytes)).sum(),
            backend: log.segments.last().map_or_else(|| "-".into(), |segment| segment.backend.clone()),
            sealed: log.segments.iter().filter(|segment| segment.sealed_bytes.is_some()).count(),
            name: log.name,
            id: log.id,
        }
    }
}

/// `None` if the log was deleted, before it was opened or since.
async fn described(opened: Result<Log, LogError>) -> Result<Option<LogDescription>, LogError> {
    let described = match opened {
        Ok(log) => log.describe().await,
        Err(error) => Err(error),
    };
    match described {
        Err(LogError::NotFound(_)) => Ok(None),
        described => described.map(Some),
    }
}

async fn list(client: &Client, prefix: &str, json: bool) -> anyhow::Result<()> {
    let mut lines = Vec::new();
    for name in client.list_logs(prefix).await? {
        lines.extend(described(client.open_log(&name).await).await?.map(Listed::from));
    }
    if json {
        return print_json(&lines);
    }
    let mut table = table(["LOG", "ID", "SEGMENTS", "SEALED", "ENTRIES", "BYTES", "BACKEND"]);
    for Listed { name, id, segments, entries, bytes, backend, sealed } in lines {
        let bytes = ByteSize(bytes).to_string();
        table.add_row([
            name,
            id.to_string(),
            segments.to_string(),
            sealed.to_string(),
            entries.to_string(),
            bytes,
            backend,
        ]);
    }
    say!("{table}");
    Ok(())
}

/// A log as programs are told of it.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    log: &'a LogDescription,
    /// Where to start to meet all since the time that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<String>,
}

async fn show(log: &Log, json: bool) -> anyhow::Result<()> {
    show_at(log, None, json).await
}

async fn show_at(log: &Log, at: Option<SystemTime>, json: bool) -> anyhow::Result<()> {
    let described = log.describe().await?;
    let since = at.map(|at| at.duration_since(UNIX_EPOCH).unwrap_or_default());
    let position = match since {
        Some(since) => Some(log.position_at(u64::try_from(since.as_millis())?).await?.to_string()),
        None => None,
    };
    if json {
        return print_json(&Shown { log: &described, position });
    }
    let settings = &described.settings;
    let limit = |limit: Option<String>| limit.unwrap_or_else(|| "none".into());
    let mut about = table(["KEY", "VALUE"]);
    about.add_row(["log", &described.name]);
    about.add_row(["id", &described.id.to_string()]);
    about.add_row(["epoch", &described.epoch.to_string()]);
    about.add_row(["truncated", &described.truncated.map_or_else(|| "no".into(), |up_to| format!("up to {up_to}"))]);
    about.add_row(["backend", settings.backend.as_deref().unwrap_or("the writer's own")]);
    about.add_row(["compression", &format!("{:?}", settings.compression).to_lowercase()]);
    let age = settings.retention_ms.map(|ms| humantime::format_duration(Duration::from_millis(ms)).to_string());
    about.add_row(["retention", &limit(age)]);
    about.add_row(["retention bytes", &limit(settings.retention_bytes.map(|bytes| ByteSize(bytes).to_string()))]);
    if let Some(position) = &position {
        about.add_row(["since then, from", position]);
    }
    say!("{about}\n");
    let mut segments = table(["SEGMENT", "STATE", "BACKEND", "ENTRIES", "BYTES", "SEALED"]);
    let known = |number: Option<u64>| number.map_or_else(|| "-".into(), |number| number.to_string());
    for segment in &described.segments {
        let state = match (segment.entries, segment.sealed_bytes, segment.freed) {
            (None, ..) => "open",
            (Some(_), None, _) => "closed",
            (Some(_), Some(_), false) => "sealed, source not freed",
            (Some(_), Some(_), true) => "sealed",
        };
        segments.add_row([
            segment.segment.to_string(),
            state.into(),
            segment.backend.clone(),
            known(segment.entries),
            known(segment.bytes),
            known(segment.sealed_bytes),
        ]);
    }
    say!("{segments}");
    Ok(())
}

#[derive(Debug, Serialize)]
struct Verdict {
    log: String,
    entries: u64,
    bytes: u64,
    problems: usize,
    segments: Vec<VerifiedSegment>,
}

async fn verify(log: &Log, json: bool) -> anyhow::Result<()> {
    let total = log.describe().await?.segments.iter().filter_map(|segment| segment.entries).sum();
    let bar = progress_bar(total);
    let segments = log
        .verify(|so_far| {
            bar.set_position(so_far.entries);
            bar.set_message(ByteSize(so_far.bytes).to_string());
        })
        .await?;
    bar.finish_and_clear();
    let verdict = Verdict {
        log: log.name().to_owned(),
        entries: segments.iter().map(|segment| segment.entries).sum(),
        bytes: segments.iter().map(|segment| segment.bytes).sum(),
        problems: segments.iter().filter(|segment| segment.problem.is_some()).count(),
        segments,
    };
    if json {
        print_json(&verdict)?;
    } else {
        let mut table = table(["SEGMENT", "FROM", "ENTRIES", "BYTES", "PROBLEM"]);
        for VerifiedSegment { segment, from, entries, bytes, problem } in &verdict.segments {
            let problem = problem.clone().unwrap_or_else(|| "none".into());
            table.add_row([segment.to_string(), from.clone(), entries.to_string(), bytes.to_string(), problem]);
        }
        say!("{table}\n");
        say!("{} entries, {} in {} segments", verdict.entries, ByteSize(verdict.bytes), verdict.segments.len());
    }
    if verdict.problems > 0 {
        bail!("log {} is damaged: {} of its segments cannot be read whole", verdict.log, verdict.problems);
    }
    Ok(())
}

/// Shows on a terminal only.
fn progress_bar(entries: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} entries, {msg}, {eta} to go");
    ProgressBar::new(entries).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// `SEGMENT:ENTRY`.
fn entry_id(text: &str) -> anyhow::Result<EntryId> {
    let id = id_parts(text).filter(|(segment, _)| *segment > 0).map(|(segment, entry)| EntryId { segment, entry });
    id.with_context(|| format!("{text}: expected an entry as SEGMENT:ENTRY"))
}

/// Asks, if there is somebody to ask.
fn confirmed(name: &str) -> anyhow::Result<bool> {
    ensure!(std::io::stdin().is_terminal(), "log {name}: say --yes to delete it without being asked");
    eprint!("Delete log {name} and all it holds? Type its name: ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[tokio::test]
    async fn a_log_that_is_deleted_while_logs_are_listed_is_left_out() {
        let place = tempfile::tempdir().unwrap();
        let assignments = vec![format!("woodpecker.storage.rootPath={}", place.path().display())];
        let config = load(&Sources { assignments, ..Sources::default() }).unwrap();
        let tasks = Tasks::new();
        let client = open_logs(&config, &Machine::real(&config).unwrap(), &tasks).await.unwrap();
        let log = client.create_log("a").await.unwrap();
        assert!(described(client.open_log("a").await).await.unwrap().is_some());
        client.delete_log("a").await.unwrap();
        assert!(described(Ok(log)).await.unwrap().is_none());
        assert!(described(client.open_log("a").await).await.unwrap().is_none());
        client.close().await;
        tasks.stop();
    }

    #[test]
    fn entries_are_two_numbers_and_segments_start_at_one() {
        assert_eq!(entry_id("3:17").unwrap(), EntryId { segment: 3, entry: 17 });
        for wrong in ["", "3", "3:", ":4", "0:1", "-1:2", "3:4:5", "latest"] {
            assert!(entry_id(wrong).unwrap_err().to_string().contains("SEGMENT:ENTRY"), "{wrong}");
        }
    }
}
