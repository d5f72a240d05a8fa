//! Keys whose change is used while a process runs.

/// One key, or all below one if it ends in a dot.
const LIVE: [&str; 12] = [
    "log.level",
    "streaming.primaryResourceGroup",
    "streaming.strictResourceGroupIsolation.enabled",
    "streaming.walBalancer.triggerInterval",
    "streaming.walBalancer.expectedInitialStreamingNodeNum",
    "streaming.walBalancer.balancePolicy.minRebalanceIntervalThreshold",
    "streaming.walBalancer.balancePolicy.allowRebalanceRecoveryLagThreshold",
    "streaming.walRateLimit.appendRate.",
    "streaming.walRateLimit.consumerLag.",
    "streaming.walRateLimit.nodeMemory.",
    "streaming.walRateLimit.recoveryStorage.",
    "streaming.walScanner.pauseConsumption",
];

/// Whether a change of this key needs no restart.
pub(crate) fn is_live(key: &str) -> bool {
    LIVE.iter().any(|live| key == *live || (live.ends_with('.') && key.starts_with(live)))
}
