//! Namespaces: the instances that share a store. Each has a number that stands for it on the disk, a quota, a share of
//! what may be in flight, and figures of its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Semaphore;
use woodpecker_base::clock::{Clock, Instant};

use crate::{
    ledger::{Ledger, NamespaceRecord},
    lock,
    metrics::NamespaceMetrics,
    quota::{Quota, TokenBucket},
    refusal::Refusal,
    settings::Settings,
};

/// Longest name: it is part of a key.
const NAME_BYTES: usize = 512;
/// Namespaces that have a label of their own in metrics; the others share one.
const LABELLED: u32 = 64;
/// Numbers are 24 bits: see [`ReplicaKey`](crate::replica::ReplicaKey).
const NUMBERS: u32 = 1 << 24;
/// How long to wait for space in a namespace to come back.
const KEPT_PAUSE: Duration = Duration::from_secs(5);
/// The longest that an append is held back for the rate.
const PATIENCE: Duration = Duration::from_millis(100);

/// One namespace.
#[derive(Debug)]
pub struct Namespace {
    pub name: Arc<str>,
    pub number: u32,
    pub metrics: NamespaceMetrics,
    /// Kibibytes that may be on their way to the disk.
    pub in_flight: Arc<Semaphore>,
    quota: Quota,
    rate: Mutex<TokenBucket>,
    bytes: AtomicU64,
    /// How many replicas each log has here.
    logs: Mutex<BTreeMap<u64, u64>>,
    deleted: AtomicBool,
}

impl Namespace {
    /// Refuses what the quota does not allow, but for its rate; `begins` if the append begins a log here.
    pub fn admit(&self, bytes: u64, log: u64, begins: bool) -> Result<(), Refusal> {
        let Quota { bytes_kept, logs, .. } = self.quota;
        let over = |what, retry_after| Err(Refusal::Quota { what, retry_after });
        if bytes_kept > 0 && self.bytes.load(Ordering::Relaxed) + bytes > bytes_kept {
            return over("bytes kept", KEPT_PAUSE);
        }
        if begins && logs > 0 {
            let known = lock(&self.logs);
            if !known.contains_key(&log) && known.len() as u64 >= logs {
                return over("logs", KEPT_PAUSE);
            }
        }
        Ok(())
    }

    /// Waits until what was appended is within the quota's rate, for a short time. Who is told to try again sends all that
    /// is on its way anew; who waits holds its stream back, and sends nothing twice.
    pub async fn keep_pace(&self, clock: &Clock) -> Result<(), Refusal> {
        let patience = clock.now() + PATIENCE;
        loop {
            let now = clock.now();
            let wait = lock(&self.rate).debt(now);
            if wait.is_zero() {
                return Ok(());
            }
            if now + wait > patience {
                return Err(Refusal::Rate { retry_after: wait });
            }
            clock.sleep(wait).await;
        }
    }

    /// So many bytes were appended, and count against the quota's rate.
    pub fn spend(&self, bytes: u64, now: Instant) {
        lock(&self.rate).spend(bytes, now);
    }

    /// A replica of a log holds entries from now on.
    pub fn began(&self, log: u64) {
        *lock(&self.logs).entry(log).or_default() += 1;
    }

    pub fn grew(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.metrics.grew(bytes);
    }

    pub fn shrank(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.metrics.shrank(bytes);
    }

    /// A replica of a log, that held entries, is gone.
    pub fn lost(&self, log: u64, bytes: u64) {
        self.shrank(bytes);
        let mut logs = lock(&self.logs);
        if let Some(replicas) = logs.get_mut(&log) {
            *replicas -= 1;
            if *replicas == 0 {
                logs.remove(&log);
            }
        }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn logs(&self) -> usize {
        lock(&self.logs).len()
    }

    pub fn quota(&self) -> Quota {
        self.quota
    }

    /// Whether it was deleted, for ever.
    pub fn is_deleted(&self) -> bool {
        self.deleted.load(Ordering::Relaxed)
    }
}

/// All namespaces of the store, by name.
#[derive(Debug)]
pub struct Namespaces {
    known: Mutex<BTreeMap<Arc<str>, Arc<Namespace>>>,
    /// The last number that was given away, also to one that may not have become durable.
    making: tokio::sync::Mutex<u32>,
    settings: Arc<Settings>,
    clock: Clock,
}

impl Namespaces {
    pub fn new(records: BTreeMap<String, NamespaceRecord>, settings: Arc<Settings>, clock: Clock) -> Self {
        let namespaces = Self { known: Mutex::default(), making: tokio::sync::Mutex::default(), settings, clock };
        for (name, record) in records {
            let namespace = namespaces.make(&name, record.number);
            namespace.deleted.store(record.deleted, Ordering::Relaxed);
            lock(&namespaces.known).insert(namespace.name.clone(), namespace);
        }
        namespaces
    }

    fn make(&self, name: &str, number: u32) -> Arc<Namespace> {
        let quota = self.settings.quota(name);
        let label = if number <= LABELLED { name } else { "other" };
        Arc::new(Namespace {
            name: name.into(),
            number,
            metrics: NamespaceMetrics::new(label),
            in_flight: Arc::new(Semaphore::new(self.settings.in_flight.units()[1])),
            quota,
            rate: Mutex::new(TokenBucket::new(quota.bytes_per_second, self.clock.now())),
            bytes: AtomicU64::new(0),
            logs: Mutex::default(),
            deleted: AtomicBool::new(false),
        })
    }

    /// A namespace that was used before; `None` if it never was.
    ///
    /// # Errors
    /// [`Refusal::Released`] when it was deleted.
    pub fn find(&self, name: &str) -> Result<Option<Arc<Namespace>>, Refusal> {
        match lock(&self.known).get(name) {
            Some(known) if known.is_deleted() => Err(Refusal::Released),
            known => Ok(known.cloned()),
        }
    }

    /// The namespace; a new one is durable before it is used, since its number stands for it on the disk.
    ///
    /// # Errors
    /// [`Refusal::Released`] when it was deleted; [`Refusal::Invalid`] for an impossible name.
    pub async fn get(&self, name: &str, ledger: &Ledger) -> Result<Arc<Namespace>, Refusal> {
        if let Some(known) = self.find(name)? {
            return Ok(known);
        }
        let printable = name.bytes().all(|byte| byte.is_ascii_graphic());
        if name.is_empty() || name.len() > NAME_BYTES || !printable {
            return Err(Refusal::Invalid("a namespace is 1 to 512 printable ASCII characters"));
        }
        let mut last = self.making.lock().await;
        if let Some(known) = self.find(name)? {
            return Ok(known);
        }
        let number = self.all().iter().map(|namespace| namespace.number).max().unwrap_or(0).max(*last) + 1;
        if number >= NUMBERS {
            return Err(Refusal::Quota { what: "namespaces of the store", retry_after: Duration::ZERO });
        }
        *last = number;
        ledger.settled(ledger.put_namespace(name, &NamespaceRecord { number, deleted: false })).await?;
        let namespace = self.make(name, number);
        lock(&self.known).insert(namespace.name.clone(), namespace.clone());
        Ok(namespace)
    }

    /// Marks a namespace as deleted, durably: its name is refused from now on.
    ///
    /// # Errors
    /// The ledger's.
    pub async fn delete(&self, namespace: &Namespace, ledger: &Ledger) -> Result<(), Refusal> {
        namespace.deleted.store(true, Ordering::Relaxed);
        let record = NamespaceRecord { number: namespace.number, deleted: true };
        ledger.settled(ledger.put_namespace(&namespace.name, &record)).await
    }

    /// Every namespace, the deleted ones too, by name.
    pub fn all(&self) -> Vec<Arc<Namespace>> {
        lock(&self.known).values().cloned().collect()
    }
}
