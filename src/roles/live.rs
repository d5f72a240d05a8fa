//! What roles are told of the configuration while they run.

use streaming_coord::Balance;
use streaming_node::Flow;
use tokio::sync::watch;

use super::settings;
use crate::config::{Config, changes, is_live};

/// The parts of the settings that follow the configuration. Clones are one.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    balance: watch::Sender<Balance>,
    flow: watch::Sender<Flow>,
    paused: watch::Sender<bool>,
}

impl Live {
    /// As the configuration is now.
    pub(crate) fn new(config: &Config) -> Self {
        let (balance, flow, paused) = parts(config);
        Self {
            balance: watch::Sender::new(balance),
            flow: watch::Sender::new(flow),
            paused: watch::Sender::new(paused),
        }
    }

    /// A coordinator's.
    pub(crate) fn balance(&self) -> watch::Receiver<Balance> {
        self.balance.subscribe()
    }

    /// A node's.
    pub(crate) fn flow(&self) -> watch::Receiver<Flow> {
        self.flow.subscribe()
    }

    /// A node's: whether its consumers stand still.
    pub(crate) fn paused(&self) -> watch::Receiver<bool> {
        self.paused.subscribe()
    }

    /// Uses what can be used of a new configuration, and names in the log what needs a restart, compared with the one
    /// that the process was started with.
    ///
    /// # Errors
    /// A value is impossible; then none is used.
    pub(super) fn apply(&self, started: &Config, wanted: &Config) -> anyhow::Result<()> {
        settings::node(wanted)?;
        let (balance, flow, paused) = parts(wanted);
        replace(&self.balance, balance);
        replace(&self.flow, flow);
        replace(&self.paused, paused);
        let waiting: Vec<_> = changes(started, wanted)?.into_iter().filter(|key| !is_live(key)).collect();
        if !waiting.is_empty() {
            let keys = waiting.join(", ");
            tracing::warn!(keys, "changed in the configuration; a restart is needed to use it");
        }
        Ok(())
    }
}

fn parts(config: &Config) -> (Balance, Flow, bool) {
    let streaming = &config.streaming;
    (settings::balance(config), streaming.wal_rate_limit.flow(), streaming.wal_scanner.pause_consumption)
}

fn replace<T: PartialEq>(current: &watch::Sender<T>, wanted: T) {
    current.send_if_modified(|current| {
        let differs = *current != wanted;
        *current = wanted;
        differs
    });
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::config::{Sources, load};

    /// The live keys, with a value that none of them has.
    fn changed(value: &Value, key: &str, into: &mut Vec<String>) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                changed(value, &if key.is_empty() { name.clone() } else { format!("{key}.{name}") }, into);
            }),
            _ if !is_live(key) => {}
            Value::Bool(flag) => into.push(format!("{key}={}", !flag)),
            Value::Number(number) if number.is_f64() => into.push(format!("{key}=0.77")),
            Value::Number(_) => into.push(format!("{key}=77")),
            Value::String(text) if text.ends_with('B') => into.push(format!("{key}=77KiB")),
            Value::String(text) if text.starts_with(|c: char| c.is_ascii_digit()) => into.push(format!("{key}=77s")),
            _ => into.push(format!("{key}=debug")),
        }
    }

    #[test]
    fn every_key_that_is_called_live_changes_what_roles_are_told() {
        let default = Config::default();
        let mut assignments = Vec::new();
        changed(&serde_json::to_value(&default).unwrap(), "", &mut assignments);
        assert!(assignments.len() > 50, "{assignments:?}");
        for assignment in assignments {
            let config = load(&Sources { assignments: vec![assignment.clone()], ..Sources::default() }).unwrap();
            let differs = parts(&config) != parts(&default) || config.log.level != default.log.level;
            assert!(differs, "{assignment} changes nothing");
        }
    }
}
