//! How fast a process serves again that was killed with much of its log after the checkpoint.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use woodpecker_base::{
    clock::Clock,
    disk::{Disk, RealDisk},
    net::tcp_connector,
};

use super::{SMALL, disk::forget, stream::fill};
use crate::{roles::Machine, verbs::page};

/// For a process to serve.
const LIMIT: Duration = Duration::from_secs(300);
/// No checkpoint is written by itself.
const NEVER: [&str; 2] = ["streaming.walRecovery.persistInterval=1d", "streaming.walRecovery.persistSize=1TiB"];

/// What a restart took, from the start of the process until it serves the channel.
pub(super) struct Restart {
    pub(super) took: Duration,
    /// Bytes of the log that it read behind the checkpoint, as it says itself.
    pub(super) replayed: u64,
}

/// Writes `bytes` as small messages to one channel of a process, kills it, and starts another one. With `cold`, the
/// system has forgotten the files.
///
/// # Errors
/// A process does not start, or the second one has less to replay than was written.
pub(super) async fn restart(data: &Path, bytes: u64, cold: bool, machine: &Machine) -> anyhow::Result<Restart> {
    let data = Data(data.join("restart"));
    let mut first = Process::start(&data.0, &machine.clock).await?;
    fill(&first.coordinator, usize::try_from(bytes)? / SMALL, machine).await?;
    first.kill().await?;
    if cold {
        let volumes = data.0.join("woodpecker").join("volumes");
        for volume in RealDisk.list(&volumes)? {
            forget(&RealDisk, &volumes.join(volume))?;
        }
    }
    let begun = machine.clock.now();
    let mut next = Process::start(&data.0, &machine.clock).await?;
    let took = begun.elapsed();
    let replayed = next.replayed().await?;
    next.kill().await?;
    ensure!(replayed >= bytes, "a restart that replayed {replayed} bytes of {bytes} measures something else");
    Ok(Restart { took, replayed })
}

/// A directory that goes away with the measurement.
struct Data(PathBuf);

impl Drop for Data {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `streaming standalone` with one channel; killed when it is dropped.
struct Process {
    child: Child,
    coordinator: String,
    admin: http::Uri,
}

impl Process {
    /// Starts it and waits until it serves.
    async fn start(data: &Path, clock: &Clock) -> anyhow::Result<Self> {
        let own = ["rootCoord.port=0", "streamingNode.port=0", "admin.port=0", "rootCoord.dmlChannelNum=1"];
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("standalone").arg("--data").arg(data).stdout(Stdio::piped()).kill_on_drop(true);
        command.args(["--set", "log.level=error"]);
        for setting in own.iter().chain(&NEVER) {
            command.args(["--set", *setting]);
        }
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let ready = async {
            let (mut coordinator, mut admin) = (None, None);
            while let Some(line) = lines.next_line().await? {
                match line.split_whitespace().collect::<Vec<_>>()[..] {
                    ["coordinator", address] => coordinator = Some(address.to_owned()),
                    ["admin", address] => admin = Some(address.parse::<http::Uri>()?),
                    ["ready"] => return coordinator.zip(admin).context("a process that does not say where it is"),
                    _ => {}
                }
            }
            bail!("the process ended before it was ready")
        };
        let (coordinator, admin) = clock.timeout(LIMIT, ready).await.context("not ready")??;
        Ok(Self { child, coordinator, admin })
    }

    async fn replayed(&self) -> anyhow::Result<u64> {
        let (_, metrics) = page(&tcp_connector(), &self.admin, "/metrics").await?;
        let found = metrics.lines().find_map(|line| line.strip_prefix("milvus_wal_recovery_replayed_bytes_total "));
        Ok(found.context("a process that has replayed nothing")?.trim().parse()?)
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        Ok(self.child.kill().await?)
    }
}
