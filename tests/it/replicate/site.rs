//! Clusters of one process each, those that ship between them, and their topologies.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::ensure;
use streaming_client::{Client, Discovery, Edges, Settings, Tls};
use streaming_proto::common::{ConnectionParam, MilvusCluster};
use streaming_types::MessageId;
use tempfile::TempDir;
use test_peers::{Etcd, Port};
use woodpecker_base::{
    clock::Clock,
    net::{Token, tcp_connector},
    random::Random,
};

use crate::{
    cluster::{Backend, Medium},
    process::{Role, printed},
    security::Secrets,
};

const CHANNELS: usize = 2;
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// A cluster of one process, and those that ship from it.
pub(super) struct Site {
    pub(super) name: &'static str,
    directory: PathBuf,
    pub(super) port: Port,
    pub(super) process: Role,
    pub(super) replicators: Vec<Role>,
    pub(super) client: Client,
    medium: Medium,
    pub(super) secrets: Option<Secrets>,
    _etcd: Option<Etcd>,
}

/// Short, so that the death of a process is noticed in a test's time.
const SESSION_TTL: &str = "3s";

pub(super) fn set(values: &[String]) -> Vec<String> {
    values.iter().flat_map(|value| ["--set".to_owned(), value.clone()]).collect()
}

/// A client of the cluster, which shows this one of its tokens.
pub(super) async fn connect(name: &str, port: &Port, secrets: Option<&Secrets>, token: &str) -> anyhow::Result<Client> {
    let discovery = Discovery::Address(port.address().to_string());
    let mut settings = Settings { cluster: name.to_owned(), ..Settings::new(discovery) };
    if let Some(secrets) = secrets {
        let ca = std::fs::read_to_string(secrets.path("ca"))?;
        settings.tls = Some(Tls { ca, client: None, domain: None });
        settings.token = Some(Token::new(&std::fs::read_to_string(secrets.path(token))?)?);
    }
    let edges = Edges { connector: tcp_connector(), clock: Clock::system(), random: Random::system() };
    let client = Client::connect(settings, edges)?;
    client.wait_ready(LIMIT).await?;
    Ok(client)
}

impl Site {
    pub(super) async fn start(
        name: &'static str,
        directory: &Path,
        backend: Backend,
        secrets: Option<Secrets>,
    ) -> anyhow::Result<Self> {
        let directory = directory.join(name);
        std::fs::create_dir(&directory)?;
        let etcd = if backend == Backend::Quorum { Some(Etcd::start().await) } else { None };
        let medium = Medium::start(backend, &directory, etcd.as_ref(), SESSION_TTL).await?;
        // The topology names it, so it stays over a restart.
        let port = Port::hold()?;
        let process = Self::process(name, &directory, &port, &medium, secrets.as_ref())?;
        let client = connect(name, &port, secrets.as_ref(), "write").await?;
        Ok(Self { name, directory, port, process, replicators: Vec::new(), client, medium, secrets, _etcd: etcd })
    }

    fn process(
        name: &str,
        directory: &Path,
        port: &Port,
        medium: &Medium,
        secrets: Option<&Secrets>,
    ) -> anyhow::Result<Role> {
        let mut arguments = set(&[
            format!("msgChannel.chanNamePrefix.cluster={name}"),
            format!("rootCoord.dmlChannelNum={CHANNELS}"),
            format!("rootCoord.port={}", port.number()),
        ]);
        arguments.extend(medium.arguments());
        arguments.extend(secrets.iter().flat_map(|secrets| secrets.settings()));
        Role::start("standalone", directory, &arguments)
    }

    pub(super) fn channel(&self, index: usize) -> String {
        format!("{}-rootcoord-dml_{index}", self.name)
    }

    /// Starts one more process that ships to `target`.
    pub(super) fn start_replicator(&mut self, target: &Self) -> anyhow::Result<()> {
        let theirs = target.secrets.as_ref();
        let token =
            theirs.map(|theirs| format!("replicate.targets.{}.tokenFile={}", target.name, theirs.shown("write")));
        self.start_replicator_with(target, token)
    }

    /// One that knows no more of a secured target than its authority and these settings.
    pub(super) fn start_replicator_with(&mut self, target: &Self, more: Option<String>) -> anyhow::Result<()> {
        let theirs = target.secrets.as_ref();
        let ca = theirs.map(|theirs| format!("replicate.targets.{}.ca={}", target.name, theirs.shown("ca")));
        let own = [
            format!("msgChannel.chanNamePrefix.cluster={}", self.name),
            format!("replicate.source={}", self.port.address()),
        ];
        let mut arguments = set(&own.into_iter().chain(ca).chain(more).collect::<Vec<_>>());
        arguments.extend(self.secrets.iter().flat_map(Secrets::settings));
        self.replicators.push(Role::start("replicate", &self.directory, &arguments)?);
        Ok(())
    }

    /// The cluster as a topology names it, let in by this token.
    pub(super) fn in_topology(&self, token: &str) -> MilvusCluster {
        let connection = ConnectionParam { uri: format!("http://{}", self.port.address()), token: token.to_owned() };
        MilvusCluster {
            cluster_id: self.name.to_owned(),
            connection_param: Some(connection),
            pchannels: (0..CHANNELS).map(|index| self.channel(index)).collect(),
        }
    }

    /// `kill -9` of the cluster, and the same one started anew.
    pub(super) fn restart(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.start_again()
    }

    /// Stops the cluster as one should, gives up everything in a channel up to a message, and starts it anew.
    pub(super) fn truncate(&mut self, index: usize, up_to: MessageId) -> anyhow::Result<()> {
        self.process.signal("TERM")?;
        ensure!(self.process.wait(LIMIT)?.success(), "{}", self.process.log());
        let mut arguments = vec!["log".to_owned()];
        arguments.extend(self.medium.arguments());
        let entry = format!("{}:{}", up_to.segment, up_to.entry);
        arguments.extend(["truncate".to_owned(), self.channel(index), entry]);
        printed(arguments)?;
        self.start_again()
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        let Self { name, directory, port, medium, secrets, .. } = self;
        self.process = Self::process(name, directory, port, medium, secrets.as_ref())?;
        Ok(())
    }

    pub(super) fn topology(&self, verb: &[&str], file: Option<&Path>) -> anyhow::Result<String> {
        let mut arguments = vec!["topology".to_owned()];
        arguments.extend(verb.iter().map(|word| (*word).to_owned()));
        arguments.extend(file.map(|file| file.display().to_string()));
        arguments.extend(["--cluster".into(), self.name.into()]);
        arguments.extend(["--coordinator".into(), self.port.address().to_string()]);
        arguments.extend(self.secrets.iter().flat_map(|secrets| secrets.credentials("admin", "ca")));
        Ok(String::from_utf8(printed(arguments)?)?)
    }
}

/// Writes the topology in which the first site is the source of the second, and makes it that of both, in either order.
pub(super) async fn follow(source: &Site, target: &Site, directory: &Path) -> anyhow::Result<()> {
    let mut sites = [source, target];
    sites.sort_by_key(|site| site.name);
    let mut text = "clusters:\n".to_owned();
    for site in sites {
        text += &format!("- id: {}\n  uri: http://{}\n  channels:\n", site.name, site.port.address());
        (0..CHANNELS).for_each(|index| text += &format!("  - {}\n", site.channel(index)));
    }
    text += &format!("edges:\n- from: {}\n  to: {}\n", source.name, target.name);
    let file = directory.join(format!("from-{}.yaml", source.name));
    std::fs::write(&file, text)?;
    std::thread::scope(|scope| {
        let applied = sites.map(|site| scope.spawn(|| site.topology(&["apply"], Some(&file))));
        for applied in applied {
            let said = applied.join().map_err(|_| anyhow::anyhow!("panicked"))??;
            ensure!(said.starts_with("in force"), "{said}");
        }
        anyhow::Ok(())
    })
}

/// Makes a follower one that follows nobody, though its source does not say so.
pub(super) fn promote(site: &Site, directory: &Path) -> anyhow::Result<()> {
    let file = directory.join("alone.yaml");
    let (name, channels) = (site.name, [site.channel(0), site.channel(1)]);
    let text = format!("clusters:\n- id: {name}\n  uri: http://{}\n  channels: {channels:?}\n", site.port.address());
    std::fs::write(&file, text)?;
    let said = site.topology(&["apply", "--force-promote"], Some(&file))?;
    ensure!(said.starts_with("in force"), "{said}");
    Ok(())
}

/// Where the logs of two clusters are, and whether each is secured by an authority and tokens of its own.
pub(super) async fn start(backends: [Backend; 2], secured: bool) -> anyhow::Result<(TempDir, Site, Site)> {
    let directory = tempfile::tempdir()?;
    let secrets = |name| if secured { Secrets::of(name).map(Some) } else { Ok(None) };
    let west = Site::start("west", directory.path(), backends[0], secrets("west")?).await?;
    let east = Site::start("east", directory.path(), backends[1], secrets("east")?).await?;
    Ok((directory, west, east))
}
