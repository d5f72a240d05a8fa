//! The metadata store on an etcd cluster, 3.4 or newer.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Client, Compare as EtcdCompare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, Identity,
    PutOptions, TlsOptions, Txn as EtcdTxn, TxnOp,
};

use self::{
    error::{is_stale_auth, lease_error, metadata_error},
    watch::Watching,
};
use super::{
    Compare, KeyValue, LeaseId, MetadataError, MetadataStore, Revision, Snapshot, Txn, TxnOutcome, Watch, Write,
    whole_seconds,
};
use crate::{clock::Clock, random::Random};

mod error;
#[cfg(test)]
mod tests;
mod watch;

/// Keys asked for in one page of a list.
const PAGE: i64 = 512;
/// Largest answer taken from the server: a page of large values is far above the usual 4 MiB.
const MAX_ANSWER: usize = 64 << 20;
/// How often a list starts over because compaction overtook it.
const LIST_ATTEMPTS: usize = 5;
/// Above etcd's least interval between pings (5 s), which it enforces.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the cluster is and how to talk to it.
#[derive(Debug, Clone)]
pub struct EtcdSettings {
    /// `host:port` or a URL each.
    pub endpoints: Vec<String>,
    /// Speak TLS.
    pub tls: Option<EtcdTls>,
    pub user: Option<EtcdUser>,
    /// Limit for making a connection.
    pub connect_timeout: Duration,
    /// Limit for one call, waiting for a connection included.
    pub request_timeout: Duration,
}

impl EtcdSettings {
    /// Plain text, no user, and a time out of 5 seconds for everything.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            tls: None,
            user: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(5),
        }
    }
}

/// PEM files, read once when the store is opened.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// The authority that signed the servers' certificates.
    pub ca_file: PathBuf,
    /// Certificate and key to show, for servers that ask for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// Who the client says it is.
#[derive(Clone)]
pub struct EtcdUser {
    pub name: String,
    pub password: String,
}

impl std::fmt::Debug for EtcdUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A client of an etcd cluster; clones share its connections.
#[derive(Clone)]
pub struct EtcdStore {
    client: Client,
    clock: Clock,
    random: Random,
    request_timeout: Duration,
}

impl std::fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EtcdStore").field("request_timeout", &self.request_timeout).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Connects and reads one key, so that a wrong address, certificate or password shows here.
    ///
    /// # Errors
    /// Unavailable if no server answers in time, invalid if the settings are.
    pub async fn connect(settings: EtcdSettings, clock: Clock, random: Random) -> Result<Self, MetadataError> {
        let request_timeout = settings.request_timeout;
        let options = connect_options(&settings).await?;
        let connecting = Client::connect(&settings.endpoints, Some(options));
        let client = answered(clock.timeout(request_timeout, connecting).await, request_timeout)?;
        let store = Self { client, clock, random, request_timeout };
        match store.get("health").await {
            // A user without the right to read this key has reached the server all the same.
            Err(error) if error.is_retryable() => Err(error),
            Err(_) | Ok(_) => Ok(store),
        }
    }

    /// One call within the time limit. A token that no longer counts (the client renews an expired one by itself) is
    /// renewed once: such a request was refused before it did anything.
    async fn call<T, F>(&self, operation: &'static str, call: impl Fn(Client) -> F) -> Result<T, etcd_client::Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let calling = async {
            match call(self.client.clone()).await {
                Err(error) if is_stale_auth(&error) => {
                    self.client.refresh_token().await?;
                    call(self.client.clone()).await
                }
                result => result,
            }
        };
        let began = self.clock.now();
        let answer = self.clock.timeout(self.request_timeout, calling).await;
        let outcome = match &answer {
            Ok(Ok(_)) => "ok",
            Ok(Err(_)) => "error",
            Err(_) => "timeout",
        };
        metrics::histogram!("woodpecker_etcd_request_duration_seconds", "operation" => operation, "outcome" => outcome)
            .record(self.clock.now().duration_since(began));
        answer.unwrap_or_else(|_| Err(error::timed_out(self.request_timeout)))
    }

    /// One attempt at a list; `None` if history was compacted under it.
    async fn list_once(&self, prefix: &str) -> Result<Option<Snapshot>, MetadataError> {
        let (mut start, end) = (first_key(prefix), range_end(prefix));
        let mut snapshot = Snapshot { revision: 0, items: Vec::new() };
        let mut page = PAGE;
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(page).with_revision(snapshot.revision);
            let get = |client: Client| {
                let mut kv = client.kv_client().max_decoding_message_size(MAX_ANSWER);
                let (start, options) = (start.clone(), options.clone());
                async move { kv.get(start, Some(options)).await }
            };
            let mut answer = match self.call("list", get).await {
                Ok(answer) => answer,
                Err(error) if error::is_compacted(&error) => return Ok(None),
                Err(error) if error::is_too_large(&error) && page > 1 => {
                    page /= 2;
                    continue;
                }
                Err(error) => return Err(metadata_error(&error)),
            };
            if snapshot.revision == 0 {
                snapshot.revision = header_revision(answer.header())?;
            }
            let (items, more) = (answer.take_kvs(), answer.more());
            if let Some(last) = items.last() {
                start = [last.key(), b"\0"].concat();
            }
            snapshot.items.extend(items.into_iter().filter_map(key_value));
            if !more {
                return Ok(Some(snapshot));
            }
        }
    }
}

#[async_trait]
impl MetadataStore for EtcdStore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, MetadataError> {
        let get = |client: Client| async move { client.kv_client().get(key, None).await };
        let mut answer = self.call("get", get).await.map_err(|error| metadata_error(&error))?;
        Ok(answer.take_kvs().into_iter().next().and_then(key_value))
    }

    async fn list(&self, prefix: &str) -> Result<Snapshot, MetadataError> {
        for _ in 0..LIST_ATTEMPTS {
            if let Some(snapshot) = self.list_once(prefix).await? {
                return Ok(snapshot);
            }
        }
        Err(MetadataError::Unavailable(format!("compaction overtook the listing of {prefix:?} {LIST_ATTEMPTS} times")))
    }

    async fn commit(&self, txn: Txn) -> Result<TxnOutcome, MetadataError> {
        txn.validate()?;
        if txn.compares.iter().any(never_holds) {
            return Ok(TxnOutcome::Conflict);
        }
        let lease = txn.writes.iter().find_map(|write| match write {
            Write::Put { lease, .. } => *lease,
            Write::Delete { .. } | Write::DeletePrefix { .. } => None,
        });
        let request = etcd_txn(txn);
        let commit = |client: Client| {
            let request = request.clone();
            async move { client.kv_client().txn(request).await }
        };
        let answer = self.call("commit", commit).await.map_err(|error| lease_error(&error, lease))?;
        if !answer.succeeded() {
            return Ok(TxnOutcome::Conflict);
        }
        Ok(TxnOutcome::Committed(header_revision(answer.header())?))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, MetadataError> {
        Ok(Watching::start(self.clone(), prefix, from))
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, MetadataError> {
        let seconds = i64::try_from(whole_seconds(ttl).as_secs()).unwrap_or(i64::MAX);
        let grant = |client: Client| async move { client.lease_client().grant(seconds, None).await };
        let answer = self.call("grant", grant).await.map_err(|error| metadata_error(&error))?;
        Ok(LeaseId(answer.id()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, MetadataError> {
        let keep = |client: Client| async move {
            // Opening the stream keeps the lease alive once, but hides the time to live; a second message tells it.
            let (mut keeper, mut answers) = client.lease_client().keep_alive(lease.0).await?;
            keeper.keep_alive().await?;
            answers.message().await
        };
        let answer = self.call("keep_alive", keep).await.map_err(|error| lease_error(&error, Some(lease)))?;
        match answer.map(|answer| u64::try_from(answer.ttl()).unwrap_or(0)) {
            None => Err(MetadataError::Unavailable("the server ended a keep-alive".to_owned())),
            Some(0) => Err(MetadataError::LeaseGone(lease)),
            Some(seconds) => Ok(Duration::from_secs(seconds)),
        }
    }

    async fn revoke_lease(&self, lease: LeaseId) -> Result<(), MetadataError> {
        let revoke = |client: Client| async move { client.lease_client().revoke(lease.0).await };
        match self.call("revoke", revoke).await.map_err(|error| lease_error(&error, Some(lease))) {
            Ok(_) | Err(MetadataError::LeaseGone(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

async fn connect_options(settings: &EtcdSettings) -> Result<ConnectOptions, MetadataError> {
    let mut options = ConnectOptions::new()
        .with_connect_timeout(settings.connect_timeout)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // A member that lost its leader refuses, rather than letting a watch stand still.
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    if let Some(user) = &settings.user {
        options = options.with_user(&user.name, &user.password);
    }
    if let Some(tls) = &settings.tls {
        let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(read_pem(&tls.ca_file).await?));
        if let Some((certificate, key)) = &tls.client {
            config = config.identity(Identity::from_pem(read_pem(certificate).await?, read_pem(key).await?));
        }
        options = options.with_tls(config);
    }
    Ok(options)
}

async fn read_pem(path: &PathBuf) -> Result<Vec<u8>, MetadataError> {
    let read = tokio::fs::read(path).await;
    read.map_err(|error| MetadataError::Invalid(format!("cannot read {}: {error}", path.display())))
}

fn answered<T>(
    result: Result<Result<T, etcd_client::Error>, crate::clock::Elapsed>,
    limit: Duration,
) -> Result<T, MetadataError> {
    result.unwrap_or_else(|_| Err(error::timed_out(limit))).map_err(|error| metadata_error(&error))
}

/// A compare with a revision that no key has: etcd would take 0 for "absent".
fn never_holds(compare: &Compare) -> bool {
    matches!(compare, Compare::ModRevision(_, revision) | Compare::CreateRevision(_, revision) if *revision <= 0)
}

fn etcd_txn(txn: Txn) -> EtcdTxn {
    let probe = match txn.compares.first() {
        Some(
            Compare::Absent(key)
            | Compare::Present(key)
            | Compare::ModRevision(key, _)
            | Compare::CreateRevision(key, _)
            | Compare::Value(key, _),
        ) => key.clone(),
        None => "health".to_owned(),
    };
    let compares: Vec<_> = txn.compares.into_iter().map(etcd_compare).collect();
    let mut writes: Vec<_> = txn.writes.into_iter().map(etcd_write).collect();
    if writes.is_empty() {
        // Without any operation etcd would compare with what this member has seen so far, which may be old.
        writes.push(TxnOp::get(probe, Some(GetOptions::new().with_keys_only())));
    }
    EtcdTxn::new().when(compares).and_then(writes)
}

fn etcd_compare(compare: Compare) -> EtcdCompare {
    match compare {
        Compare::Absent(key) => EtcdCompare::create_revision(key, CompareOp::Equal, 0),
        Compare::Present(key) => EtcdCompare::create_revision(key, CompareOp::Greater, 0),
        Compare::ModRevision(key, revision) => EtcdCompare::mod_revision(key, CompareOp::Equal, revision),
        Compare::CreateRevision(key, revision) => EtcdCompare::create_revision(key, CompareOp::Equal, revision),
        Compare::Value(key, value) => EtcdCompare::value(key, CompareOp::Equal, value),
    }
}

fn etcd_write(write: Write) -> TxnOp {
    match write {
        Write::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease.0));
            TxnOp::put(key, value, options)
        }
        Write::Delete { key } => TxnOp::delete(key, None),
        Write::DeletePrefix { prefix } => {
            TxnOp::delete(first_key(&prefix), Some(DeleteOptions::new().with_range(range_end(&prefix))))
        }
    }
}

/// The first key of a prefix's range; etcd has no empty key, and spells "from the very first" as a zero byte.
fn first_key(prefix: &str) -> Vec<u8> {
    if prefix.is_empty() { vec![0] } else { prefix.as_bytes().to_vec() }
}

/// The first key after a prefix's range; a zero byte stands for "to the very end". UTF-8 never ends in 0xFF.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last = last.saturating_add(1),
        None => end.push(0),
    }
    end
}

/// A key that is not UTF-8 is none of ours.
fn key_value(item: etcd_client::KeyValue) -> Option<KeyValue> {
    let (create_revision, mod_revision) = (item.create_revision(), item.mod_revision());
    let lease = (item.lease() != 0).then(|| LeaseId(item.lease()));
    let (key, value) = item.into_key_value();
    match String::from_utf8(key) {
        Ok(key) => Some(KeyValue { key, value: Bytes::from(value), create_revision, mod_revision, lease }),
        Err(error) => {
            tracing::warn!(key = ?error.as_bytes(), "skipped a key that is not UTF-8");
            None
        }
    }
}

fn header_revision(header: Option<&etcd_client::ResponseHeader>) -> Result<Revision, MetadataError> {
    let header = header.ok_or_else(|| MetadataError::Unavailable("an answer of etcd without a header".to_owned()))?;
    Ok(header.revision())
}
