//! A cluster of processes: etcd, a coordinator, nodes, and the medium they share.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde_json::Value;
use streaming_client::{Client, Discovery, Edges, Settings};
use tempfile::TempDir;
use test_peers::{Etcd, S3, s3::Faults};
use woodpecker_base::{
    clock::Clock,
    metadata::{EtcdSettings, EtcdStore},
    net::tcp_connector,
    random::Random,
};

use crate::{
    load::LIMIT,
    process::{Role, printed, run},
    stores::LogStore,
};

/// Short, so that the death of a process is noticed in a test's time.
const SESSION_TTL: &str = "3s";

/// Where the logs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    Local,
    Object,
    /// Three log stores, with a bucket for what is sealed.
    Quorum,
}

/// What holds the logs of a cluster, and what its processes have to know of it.
pub(crate) struct Medium {
    s3: Option<S3>,
    pub(crate) stores: Vec<LogStore>,
    settings: Vec<String>,
}

impl Medium {
    /// Log stores are found through `etcd`.
    pub(crate) async fn start(
        backend: Backend,
        directory: &Path,
        etcd: Option<&Etcd>,
        session_ttl: &str,
    ) -> anyhow::Result<Self> {
        let mut settings = vec![format!("woodpecker.storage.rootPath={}", directory.join("data").display())];
        if let Some(etcd) = etcd {
            settings.extend([
                "metastore.type=etcd".to_owned(),
                format!("etcd.endpoints=[\"{}\"]", etcd.endpoint()),
                format!("common.session.ttl={session_ttl}"),
            ]);
        }
        let mut stores = Vec::new();
        if backend == Backend::Quorum {
            let etcd = etcd.context("log stores need etcd")?;
            for number in 0..3 {
                stores.push(LogStore::start(number, directory, etcd, session_ttl)?);
            }
        }
        let mut s3 = None;
        if backend != Backend::Local {
            let bucket = S3::start("logs").await?;
            settings.extend([
                format!("minio.address={}", bucket.endpoint()),
                "minio.bucketName=logs".to_owned(),
                format!("minio.accessKeyID={}", S3::ACCESS_KEY),
                format!("minio.secretAccessKey={}", S3::SECRET_KEY),
            ]);
            s3 = Some(bucket);
        }
        match backend {
            Backend::Local => {}
            Backend::Object => settings.push("woodpecker.storage.type=object".to_owned()),
            Backend::Quorum => settings.extend([
                "woodpecker.storage.type=quorum".to_owned(),
                "woodpecker.storage.also=[object,local]".to_owned(),
            ]),
        }
        Ok(Self { s3, stores, settings })
    }

    /// What a process that uses it is started with.
    pub(crate) fn arguments(&self) -> Vec<String> {
        self.settings.iter().flat_map(|setting| ["--set".to_owned(), setting.clone()]).collect()
    }
}

pub(crate) struct Cluster {
    pub(crate) etcd: Etcd,
    s3: Option<S3>,
    pub(crate) stores: Vec<LogStore>,
    arguments: Vec<String>,
    pub(crate) coord: Role,
    pub(crate) nodes: Vec<Role>,
    pub(crate) directory: TempDir,
}

impl Cluster {
    pub(crate) async fn start(backend: Backend, nodes: usize) -> anyhow::Result<Self> {
        Self::start_with(backend, nodes, SESSION_TTL).await
    }

    pub(crate) async fn start_with(backend: Backend, nodes: usize, session_ttl: &str) -> anyhow::Result<Self> {
        Self::start_set(backend, nodes, session_ttl, &[]).await
    }

    /// With more settings of the coordinator and the nodes.
    pub(crate) async fn start_set(
        backend: Backend,
        nodes: usize,
        session_ttl: &str,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        Self::start_in(tempfile::tempdir()?, backend, nodes, session_ttl, more).await
    }

    /// As [`Self::start_set`], in a directory that was made for it.
    pub(crate) async fn start_in(
        directory: TempDir,
        backend: Backend,
        nodes: usize,
        session_ttl: &str,
        more: &[&str],
    ) -> anyhow::Result<Self> {
        let etcd = Etcd::start().await;
        let medium = Medium::start(backend, directory.path(), Some(&etcd), session_ttl).await?;
        let own = format!("streaming.walBalancer.expectedInitialStreamingNodeNum={nodes}");
        let more = [own.as_str()].into_iter().chain(more.iter().copied());
        let mut arguments = medium.arguments();
        arguments.extend(more.flat_map(|setting| ["--set".to_owned(), setting.to_owned()]));
        let Medium { s3, stores, .. } = medium;
        let coord = Role::start("coord", directory.path(), &arguments)?;
        let nodes = (0..nodes).map(|_| Role::start("node", directory.path(), &arguments)).collect::<Result<_, _>>()?;
        Ok(Self { etcd, s3, stores, arguments, coord, nodes, directory })
    }

    /// Starts another coordinator beside the one there is.
    pub(crate) fn another_coord(&self) -> anyhow::Result<Role> {
        Role::start("coord", self.directory.path(), &self.arguments)
    }

    /// Starts a coordinator on the media of this cluster whose metadata are in another etcd.
    pub(crate) fn coord_with(&self, etcd: &Etcd) -> anyhow::Result<Role> {
        let other = ["--set".to_owned(), format!("etcd.endpoints=[\"{}\"]", etcd.endpoint())];
        Role::start("coord", self.directory.path(), &[self.arguments.as_slice(), &other].concat())
    }

    /// Starts another coordinator in place of one that was ended.
    pub(crate) fn restart_coord(&mut self) -> anyhow::Result<()> {
        self.coord = self.another_coord()?;
        Ok(())
    }

    pub(crate) fn start_node(&mut self) -> anyhow::Result<()> {
        self.nodes.push(Role::start("node", self.directory.path(), &self.arguments)?);
        Ok(())
    }

    /// A client in the test's own process, which finds the coordinator through etcd.
    pub(crate) async fn client(&self) -> anyhow::Result<Client> {
        let (clock, random) = (Clock::system(), Random::system());
        let settings = EtcdSettings::new([self.etcd.endpoint()]);
        let store = EtcdStore::connect(settings, clock.clone(), random.clone()).await?;
        let discovery = Discovery::Metadata { store: std::sync::Arc::new(store), meta_root: "by-dev/meta".into() };
        let client = Client::connect(Settings::new(discovery), Edges { connector: tcp_connector(), clock, random })?;
        client.wait_ready(Duration::from_secs(60)).await?;
        Ok(client)
    }

    /// What a verb prints as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let endpoint = self.etcd.endpoint();
        let all = arguments.iter().copied().chain(["--json", "--etcd", &endpoint]);
        Ok(serde_json::from_slice(&printed(all)?)?)
    }

    /// What a verb about a log prints as JSON. It opens the media itself.
    pub(crate) fn log(&self, verb: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&printed(self.log_arguments(verb))?)?)
    }

    /// Every segment of a log is whole, read as `streaming log verify` does.
    pub(crate) fn verify(&self, log: &str) -> anyhow::Result<()> {
        let verified = self.log_in_any_state(&["verify", log])?;
        ensure!(verified["problems"] == 0 && verified["entries"].as_u64() > Some(0), "{verified}");
        Ok(())
    }

    /// Where its object store is.
    pub(crate) fn objects_address(&self) -> anyhow::Result<String> {
        let endpoint = self.s3.as_ref().context("its logs are in no object store")?.endpoint();
        Ok(endpoint.trim_start_matches("http://").to_owned())
    }

    /// Processes that start from now on find the object store at this address.
    pub(crate) fn objects_behind(&mut self, address: &str) {
        self.arguments.extend(["--set".to_owned(), format!("minio.address=http://{address}")]);
    }

    /// What goes wrong with its object store.
    pub(crate) fn objects(&self) -> anyhow::Result<&Faults> {
        Ok(self.s3.as_ref().context("its logs are in no object store")?.faults())
    }

    /// As [`Self::log`], and the verb may find that something is wrong.
    pub(crate) fn log_in_any_state(&self, verb: &[&str]) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&run(self.log_arguments(verb))?.stdout)?)
    }

    fn log_arguments<'a>(&'a self, verb: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let settings = self.arguments.iter().map(String::as_str);
        ["log"].into_iter().chain(settings).chain(verb.iter().copied()).chain(["--json"])
    }

    /// Kills the node that serves a channel, and waits until another one does. Says when it was killed.
    pub(crate) async fn kill_owner(&mut self, client: &Client, channel: &str) -> anyhow::Result<Instant> {
        let owner = self.owner_of(channel)?;
        let dead = self.nodes[owner].address("node").to_owned();
        self.nodes[owner].kill()?;
        let killed = Instant::now();
        while client.describe(channel).is_none_or(|channel| channel.owner.address == dead) {
            ensure!(killed.elapsed() < LIMIT, "{channel} is not taken over");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(killed)
    }

    /// Which of the nodes serves a channel.
    pub(crate) fn owner_of(&self, channel: &str) -> anyhow::Result<usize> {
        let address = self.json(&["describe", channel])?["address"].as_str().unwrap_or_default().to_owned();
        let found = self.nodes.iter().position(|node| node.address("node") == address);
        found.ok_or_else(|| anyhow::anyhow!("{channel} is served by {address}, which is none of ours"))
    }
}
