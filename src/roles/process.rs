//! What every role's process does: configuration, logs, signals, the admin port, and an end in time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, ensure};
use axum::Router;
use woodpecker_base::{health::HealthReporter, metadata::MetadataStore, tasks::Tasks};

use super::{
    live::Live,
    reload::{self, Watched},
    settings, storage,
    storage::Machine,
};
use crate::{
    admin::{self, Admin, Roles},
    cli::{ConfigurationArgs, ServerArgs},
    config::{Config, MetastoreType},
    print::say,
    shutdown,
    telemetry::{self, LogLevel, Spans},
};

/// How long a probe that is being answered may hold up the end.
const ADMIN_GRACE: Duration = Duration::from_secs(2);

/// Where the roles of a process say how they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reporters {
    pub(crate) coord: HealthReporter,
    pub(crate) node: HealthReporter,
    pub(crate) logstore: HealthReporter,
    pub(crate) replicate: HealthReporter,
}

impl Reporters {
    /// Those that a process of this role has, by the names that the protocol has for them.
    fn of(&self, role: &str) -> Roles {
        let (coord, node) = (("mixcoord", self.coord.clone()), ("streamingnode", self.node.clone()));
        match role {
            "coord" => vec![coord],
            "node" => vec![node],
            "logstore" => vec![("logstore", self.logstore.clone())],
            "replicate" => vec![("replicate", self.replicate.clone())],
            _ => vec![coord, node],
        }
    }
}

/// A role's process before the role runs.
pub(super) struct Process {
    pub(super) config: Config,
    pub(super) machine: Machine,
    pub(super) live: Live,
    /// Stopped by the first signal.
    pub(super) tasks: Tasks,
    pub(super) health: Reporters,
    /// The admin port's address and tasks. It outlives the role: probes see the drain.
    admin: Option<SocketAddr>,
    admin_tasks: Tasks,
    data: String,
    spans: Spans,
}

impl Process {
    /// Reads the configuration, sets up logs, metrics, signals and the admin port. `None` when only the configuration
    /// was asked for.
    ///
    /// # Errors
    /// The configuration is wrong, or a port is taken.
    pub(super) async fn start(arguments: &ServerArgs, role: &'static str) -> anyhow::Result<Option<Self>> {
        Self::start_with(arguments, role, Router::new()).await
    }

    /// As [`Process::start`], with more pages on the admin port.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub(super) async fn start_with(
        arguments: &ServerArgs,
        role: &'static str,
        pages: Router,
    ) -> anyhow::Result<Option<Self>> {
        let config = arguments.configuration.load()?;
        if matches!(role, "coord" | "standalone") {
            settings::coord(&config)?;
        }
        if matches!(role, "node" | "standalone") {
            settings::node(&config)?;
        }
        let alone = role == "standalone" || (role == "replicate" && !config.replicate.source.is_empty());
        ensure!(
            alone || config.metastore.kind == MetastoreType::Etcd,
            "metastore.type: a {role} shares its metadata with other processes, which the embedded store cannot do; \
             set metastore.type=etcd and etcd.endpoints, or run `streaming standalone`"
        );
        // What is shown would start.
        if arguments.dump_config {
            say!("{}", config.dump()?.trim_end());
            return Ok(None);
        }
        let (level, spans) = telemetry::init(&config, role)?;
        let metrics = telemetry::init_metrics()?;
        let tasks = Tasks::new();
        shutdown::on_signal(&tasks)?;
        let machine = Machine::real(&config)?;
        let (health, admin_tasks) = (Reporters::default(), Tasks::new());
        let live = Live::new(&config);
        let watched = watched(&arguments.configuration, &config, &machine, &level, &live);
        reload::watch(watched, config.common.reload_interval, machine.clock.clone(), &admin_tasks)?;
        let mut bound = None;
        if config.admin.enabled {
            let address = SocketAddr::new(config.admin.ip.parse().context("admin.ip")?, config.admin.port);
            let shown = Admin {
                roles: health.of(role),
                metrics,
                level,
                pages,
                gate: machine.security.admin.clone(),
                request_bytes: usize::try_from(config.limits.admin_request.as_u64())?,
                clock: machine.clock.clone(),
            };
            let serving = admin::serve(address, shown, &admin_tasks).await;
            bound = Some(serving.with_context(|| format!("admin.ip and admin.port: cannot listen on {address}"))?);
        }
        let data = config.woodpecker.storage.root_path.clone();
        Ok(Some(Self { config, machine, live, tasks, health, admin: bound, admin_tasks, data, spans }))
    }

    /// What is printed at the start: the role's addresses, then the process' own.
    pub(super) fn addresses(&self, of_role: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
        let role = of_role.iter().map(|(name, address)| (*name, (*address).to_owned()));
        let scheme = if self.machine.security.admin.tls.is_some() { "https" } else { "http" };
        let admin = self.admin.map(|address| ("admin", format!("{scheme}://{address}")));
        role.chain(admin).chain([("data", self.data.clone())]).collect()
    }

    /// Runs the role to its end; once a stop was asked for, no longer than the grace.
    ///
    /// # Errors
    /// The role's own, or that it did not stop in time.
    pub(super) async fn run<E>(&self, role: impl Future<Output = Result<(), E>>) -> anyhow::Result<()>
    where
        anyhow::Error: From<E>,
    {
        let grace = self.config.common.grace();
        let late = async {
            self.tasks.stopped().await;
            self.machine.clock.sleep(grace).await;
        };
        let outcome = tokio::select! {
            biased;
            ended = role => ended.map_err(Into::into),
            () = late => Err(anyhow::anyhow!("not stopped within common.gracefulStopTimeout ({grace:?})")),
        };
        self.admin_tasks.drain(&self.machine.clock, ADMIN_GRACE).await;
        self.spans.close();
        outcome
    }

    /// The metadata store, once it can be reached; the role says meanwhile what it waits for. `None` if the process is
    /// told to stop first.
    ///
    /// # Errors
    /// It cannot be reached in time, or not with these settings.
    pub(super) async fn metadata(&self, health: &HealthReporter) -> anyhow::Result<Option<Arc<dyn MetadataStore>>> {
        self.until_open(storage::metadata_in_time(&self.config, &self.machine, &[health])).await
    }

    /// What a role stands on, once it is open; `None` if the process is told to stop first.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) async fn until_open<T>(
        &self,
        opening: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<Option<T>> {
        let Some(opened) = self.tasks.token().run_until_cancelled(opening).await else {
            self.admin_tasks.drain(&self.machine.clock, ADMIN_GRACE).await;
            return Ok(None);
        };
        opened.map(Some)
    }
}

/// What may change while the process runs.
fn watched(
    arguments: &ConfigurationArgs,
    config: &Config,
    machine: &Machine,
    level: &LogLevel,
    live: &Live,
) -> Vec<Watched> {
    let (certificates, tokens) = machine.security.files();
    let (renewing, retoken) = (machine.security.clone(), machine.security.clone());
    let (arguments, level, live) = (arguments.clone(), level.clone(), live.clone());
    let (started, mut configured) = (config.clone(), config.log.level.clone());
    let files = arguments.config.clone();
    vec![
        Watched::new("certificates", certificates, move || renewing.renew_certificates()),
        Watched::new("tokens", tokens, move || retoken.renew_tokens()),
        Watched::until_restart("stores", config.files_of_stores()),
        Watched::new("configuration", files, move || {
            let wanted = arguments.load()?;
            live.apply(&started, &wanted)?;
            // What was set by hand stays until the configured level changes.
            if wanted.log.level != configured {
                level.set(&wanted.log.level)?;
                configured = wanted.log.level;
            }
            Ok(())
        }),
    ]
}
