//! Log stores as processes, each with a disk of its own that outlives it.

use std::path::{Path, PathBuf};

use test_peers::Etcd;

use crate::process::Role;

pub(crate) struct LogStore {
    pub(crate) role: Role,
    /// Where its logs of what happened go.
    directory: PathBuf,
    data: PathBuf,
    arguments: Vec<String>,
}

impl LogStore {
    pub(crate) fn start(number: usize, directory: &Path, etcd: &Etcd, session_ttl: &str) -> anyhow::Result<Self> {
        let data = directory.join("stores").join(number.to_string());
        let settings = [
            "metastore.type=etcd".to_owned(),
            format!("etcd.endpoints=[\"{}\"]", etcd.endpoint()),
            format!("common.session.ttl={session_ttl}"),
            format!("woodpecker.storage.rootPath={}", data.display()),
            // The machine that runs the tests may be almost full.
            "woodpecker.logstore.disk.softUsed=1.0".to_owned(),
            "woodpecker.logstore.disk.hardUsed=1.0".to_owned(),
            "woodpecker.logstore.disk.softFree=8MiB".to_owned(),
            "woodpecker.logstore.disk.hardFree=4MiB".to_owned(),
        ];
        let mut arguments: Vec<String> =
            settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect();
        let free = [arguments.as_slice(), &port("0")].concat();
        let role = Role::start("logstore", directory, &free)?;
        // Where it is found again.
        let taken = role.address("logstore").rsplit(':').next().unwrap_or_default().to_owned();
        arguments.extend(port(&taken));
        Ok(Self { role, directory: directory.to_owned(), data, arguments })
    }

    pub(crate) fn kill(&mut self) -> anyhow::Result<()> {
        self.role.kill()
    }

    /// Starts it again on its address and its disk.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.role = Role::start("logstore", &self.directory, &self.arguments)?;
        Ok(())
    }

    /// As [`Self::restart`], with more settings for this run.
    pub(crate) fn restart_with(&mut self, settings: &[String]) -> anyhow::Result<()> {
        let more = settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]);
        let arguments: Vec<String> = self.arguments.iter().cloned().chain(more).collect();
        self.role = Role::start("logstore", &self.directory, &arguments)?;
        Ok(())
    }

    /// As [`Self::restart`], and its writes can be made to fail.
    pub(crate) fn restart_limitable(&mut self) -> anyhow::Result<()> {
        self.role = Role::start_limitable("logstore", &self.directory, &self.arguments)?;
        Ok(())
    }

    /// As [`Self::restart`], and others find it at this address.
    pub(crate) fn restart_behind(&mut self, address: &str) -> anyhow::Result<()> {
        self.arguments.extend(["--set".to_owned(), format!("woodpecker.logstore.advertise={address}")]);
        self.restart()
    }

    /// Replaces its disk by an empty one. It must not run.
    pub(crate) fn lose_disk(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_dir_all(&self.data)?)
    }
}

fn port(port: &str) -> [String; 2] {
    ["--set".to_owned(), format!("woodpecker.logstore.port={port}")]
}
