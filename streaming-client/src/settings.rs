//! What a client is told: where the coordinator is, how long to try, how much to hold.

use std::{fmt, sync::Arc, time::Duration};

use streaming_types::LocalNode;
use tokio::sync::Semaphore;
use woodpecker_base::{
    backoff::Backoff,
    clock::Clock,
    metadata::MetadataStore,
    net::{Connector, Token, is_host_and_port},
    random::Random,
};

/// Longer than anybody waits, and short enough for the end to be a time.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How the client finds the coordinator.
#[derive(Debug, Clone)]
pub enum Discovery {
    /// Through the session record `<meta_root>/session/mixcoord`; the client follows it to another coordinator.
    Metadata { store: Arc<dyn MetadataStore>, meta_root: String },
    /// At a fixed `host:port`; whoever answers there is the coordinator.
    Address(String),
}

/// The outside world, injected: tests and the simulation replace it.
#[derive(Debug, Clone)]
pub struct Edges {
    pub connector: Connector,
    pub clock: Clock,
    pub random: Random,
}

/// What a retry may do to the order of the appends of one channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// First copies lie in the log in call order, whatever was retried. An append that can no longer be retried without
    /// breaking that (a later one was already acknowledged) fails with [`AppendError::Overtaken`](crate::AppendError).
    /// While one append is retried, later ones wait.
    #[default]
    Strict,
    /// A failed append is retried on its own; later ones pass it.
    Relaxed,
}

/// TLS to coordinator and nodes. Everything is PEM text, so that a secret need not be a file. A process that lives longer
/// than its certificates gives [`Edges::connector`] a [`ClientTls`](woodpecker_base::net::ClientTls) instead, and replaces
/// what that holds.
#[derive(Clone)]
pub struct Tls {
    /// The authorities one of which has signed the servers' certificates.
    pub ca: String,
    /// The client's own certificate and its key, for servers that ask for one.
    pub client: Option<(String, String)>,
    /// The name in the servers' certificates, if it is not the host that is dialled.
    pub domain: Option<String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// Settings of a [`Client`](crate::Client). Start from [`Settings::new`] and change what differs.
#[derive(Debug, Clone)]
pub struct Settings {
    pub discovery: Discovery,
    /// Sent with every call; a server of another cluster refuses it.
    pub cluster: String,
    /// `None`: connections are not encrypted.
    pub tls: Option<Tls>,
    /// Shown with every call, to servers that let in nobody without; it can be replaced while the client is in use.
    pub token: Option<Token>,
    pub order: Order,
    /// Whether appends carry an idempotency key, so that one that is sent again is not stored twice.
    pub idempotent: bool,
    /// A node in this process: what is assigned to it is appended and read without gRPC.
    pub local: Option<Arc<dyn LocalNode>>,
    pub timeouts: Timeouts,
    pub limits: Limits,
}

impl Settings {
    /// The defaults: cluster `by-dev`, strict order, idempotent, no node in this process.
    #[must_use]
    pub fn new(discovery: Discovery) -> Self {
        Self {
            discovery,
            cluster: "by-dev".to_owned(),
            tls: None,
            token: None,
            order: Order::default(),
            idempotent: true,
            local: None,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        }
    }
}

/// How long the client tries and waits.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// To make one connection.
    pub connect: Duration,
    /// From opening a stream to the server's first answer on it.
    pub open: Duration,
    /// From the call of `append` to its acknowledgement, all retries included. Longer than the outages that shall not be
    /// noticed.
    pub append: Duration,
    /// How long a consumer may be without a working stream before `next` reports it.
    pub stall: Duration,
    /// A working server sends a time tick about every 200 ms; a consume stream that is silent for so long is opened anew.
    pub silence: Duration,
    /// For the server to answer what is in flight on a stream that is being left.
    pub drain: Duration,
    /// For `close` to finish what was accepted.
    pub close: Duration,
    /// Between HTTP/2 pings, sent also while idle. Servers of the protocol take less than 5 s for abuse.
    pub keepalive_interval: Duration,
    /// For a ping to be answered before the connection is given up.
    pub keepalive_timeout: Duration,
    /// Pause after the first failure in a row; it doubles with each, with jitter.
    pub backoff_min: Duration,
    /// The longest pause.
    pub backoff_max: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            open: Duration::from_secs(10),
            append: Duration::from_secs(300),
            stall: Duration::from_secs(300),
            silence: Duration::from_secs(60),
            drain: Duration::from_secs(3),
            close: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(5),
            keepalive_timeout: Duration::from_millis(2500),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl Timeouts {
    pub(crate) fn backoff(&self, clock: &Clock, random: &Random) -> Backoff {
        Backoff::new(clock.clone(), random, self.backoff_min, self.backoff_max)
    }
}

/// How much the client holds. Sizes are encoded bytes.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The largest message `append` takes.
    pub max_message: usize,
    /// Unacknowledged bytes of one channel; `append` waits for room. Per channel, so that one that is stuck does not hold
    /// up the others.
    pub in_flight_bytes: usize,
    /// Unacknowledged messages of one channel. 1 keeps strict order even on a server that appends the requests of a stream
    /// out of order.
    pub in_flight_messages: usize,
    /// The largest message taken from a server.
    pub max_receive: usize,
    /// The largest transaction a consumer puts together.
    pub max_txn: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: 16 << 20,
            in_flight_bytes: 32 << 20,
            in_flight_messages: 4096,
            max_receive: 256 << 20,
            max_txn: 256 << 20,
        }
    }
}

/// A setting with which no client can work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {name}: {reason}")]
pub struct InvalidSetting {
    pub name: &'static str,
    pub reason: String,
}

impl InvalidSetting {
    /// A stable code for documentation and programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        "CLIENT_INVALID_SETTING"
    }

    /// Whether the same call may succeed later: never.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        false
    }

    /// Whether the failed call may have taken effect: never.
    #[must_use]
    pub fn has_side_effects(&self) -> bool {
        false
    }
}

impl Settings {
    /// Names the first impossible value.
    pub(crate) fn validate(&self) -> Result<(), InvalidSetting> {
        let refuse = |name, reason: &str| Err(InvalidSetting { name, reason: reason.to_owned() });
        if self.cluster.is_empty() || !self.cluster.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse("cluster", "must be printable ASCII and not empty");
        }
        if let Discovery::Address(address) = &self.discovery
            && !is_host_and_port(address)
        {
            return refuse("discovery", "the coordinator's address is no host:port");
        }
        if self.tls.as_ref().is_some_and(|tls| !tls.ca.contains("-----BEGIN CERTIFICATE-----")) {
            return refuse("tls.ca", "holds no certificate in PEM");
        }
        let durations = [
            ("timeouts.connect", self.timeouts.connect),
            ("timeouts.open", self.timeouts.open),
            ("timeouts.append", self.timeouts.append),
            ("timeouts.stall", self.timeouts.stall),
            ("timeouts.silence", self.timeouts.silence),
            ("timeouts.drain", self.timeouts.drain),
            ("timeouts.close", self.timeouts.close),
            ("timeouts.keepalive_interval", self.timeouts.keepalive_interval),
            ("timeouts.keepalive_timeout", self.timeouts.keepalive_timeout),
            ("timeouts.backoff_min", self.timeouts.backoff_min),
        ];
        if let Some((name, _)) = durations.into_iter().find(|(_, duration)| duration.is_zero()) {
            return refuse(name, "must be longer than zero");
        }
        let longest = ("timeouts.backoff_max", self.timeouts.backoff_max);
        if let Some((name, _)) = durations.into_iter().chain([longest]).find(|(_, duration)| *duration > LONGEST) {
            return refuse(name, "must not be longer than a hundred years");
        }
        if self.timeouts.backoff_max < self.timeouts.backoff_min {
            return refuse("timeouts.backoff_max", "must not be shorter than timeouts.backoff_min");
        }
        if self.limits.max_message == 0 {
            return refuse("limits.max_message", "must be greater than zero");
        }
        if self.limits.in_flight_bytes < self.limits.max_message || u32::try_from(self.limits.in_flight_bytes).is_err()
        {
            return refuse("limits.in_flight_bytes", "must hold a message of limits.max_message and be below 4 GiB");
        }
        if !(1..=Semaphore::MAX_PERMITS).contains(&self.limits.in_flight_messages) {
            return refuse("limits.in_flight_messages", "must be greater than zero, and fit into a queue");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Settings)) -> &'static str {
        let mut settings = Settings::new(Discovery::Address("127.0.0.1:53100".into()));
        change(&mut settings);
        settings.validate().expect_err("an impossible value").name
    }

    #[test]
    fn defaults_are_possible() {
        Settings::new(Discovery::Address("coordinator:53100".into())).validate().expect("valid");
    }

    #[test]
    fn impossible_values_are_named() {
        assert_eq!(refused(|s| s.cluster.clear()), "cluster");
        assert_eq!(refused(|s| s.cluster = "two words".into()), "cluster");
        assert_eq!(refused(|s| s.discovery = Discovery::Address(String::new())), "discovery");
        assert_eq!(refused(|s| s.discovery = Discovery::Address("a b".into())), "discovery");
        assert_eq!(refused(|s| s.discovery = Discovery::Address("http://coordinator:53100".into())), "discovery");
        assert_eq!(refused(|s| s.tls = Some(Tls { ca: "x".into(), client: None, domain: None })), "tls.ca");
        assert_eq!(refused(|s| s.timeouts.append = Duration::ZERO), "timeouts.append");
        assert_eq!(refused(|s| s.timeouts.backoff_max = Duration::from_millis(1)), "timeouts.backoff_max");
        assert_eq!(refused(|s| s.limits.max_message = 0), "limits.max_message");
        assert_eq!(refused(|s| s.limits.in_flight_bytes = 1), "limits.in_flight_bytes");
        assert_eq!(refused(|s| s.limits.in_flight_bytes = usize::MAX), "limits.in_flight_bytes");
        assert_eq!(refused(|s| s.limits.in_flight_messages = 0), "limits.in_flight_messages");
        // What would end in the middle of a call.
        assert_eq!(refused(|s| s.timeouts.append = Duration::MAX), "timeouts.append");
        assert_eq!(refused(|s| s.timeouts.backoff_max = Duration::MAX), "timeouts.backoff_max");
        assert_eq!(refused(|s| s.limits.in_flight_messages = usize::MAX), "limits.in_flight_messages");
    }
}
