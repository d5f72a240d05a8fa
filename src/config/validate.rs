//! What no value may be.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, ensure};
use woodpecker_base::net::is_host_and_port;

use super::{Config, MetastoreType, SelectStrategy, rate_limit::AdaptiveRateLimit};

impl Config {
    /// Says which key is impossible, and why.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        self.validate_names()?;
        self.validate_addresses()?;
        self.validate_limits()?;
        self.validate_storage()?;
        self.validate_security()?;
        self.validate_telemetry()?;
        self.validate_replicate()?;
        self.validate_log_store()
    }

    fn validate_names(&self) -> anyhow::Result<()> {
        let prefix = &self.msg_channel.chan_name_prefix;
        for (key, value) in [
            ("msgChannel.chanNamePrefix.cluster", &prefix.cluster),
            ("msgChannel.chanNamePrefix.rootCoordDml", &prefix.root_coord_dml),
            ("etcd.rootPath", &self.etcd.root_path),
            ("etcd.metaSubPath", &self.etcd.meta_sub_path),
            ("woodpecker.meta.prefix", &self.woodpecker.meta.prefix),
        ] {
            ensure!(!value.is_empty(), "{key}: must not be empty");
            let clean = value.bytes().all(|b| b.is_ascii_graphic()) && !value.starts_with('/') && !value.ends_with('/');
            ensure!(
                clean,
                "{key}: {value:?} must be printable ASCII without spaces, and not begin or end with a slash"
            );
        }
        if self.common.pre_created_topic.enabled {
            let mut names = self.common.pre_created_topic.names.clone();
            ensure!(!names.is_empty(), "common.preCreatedTopic.names: must name at least one channel");
            ensure!(names.iter().all(|n| !n.is_empty()), "common.preCreatedTopic.names: a name is empty");
            names.sort();
            let count = names.len();
            names.dedup();
            ensure!(names.len() == count, "common.preCreatedTopic.names: a name appears twice");
        }
        Ok(())
    }

    fn validate_addresses(&self) -> anyhow::Result<()> {
        let address = |key: &str, ip: &str| {
            ip.parse::<IpAddr>().with_context(|| format!("{key}.ip: {ip:?} is not an IP address"))
        };
        address("admin", &self.admin.ip)?;
        let (coord, node, logstore) = (&self.root_coord, &self.streaming_node, &self.woodpecker.logstore);
        for (key, ip, advertise) in [
            ("rootCoord", &coord.ip, &coord.advertise),
            ("streamingNode", &node.ip, &node.advertise),
            ("woodpecker.logstore", &logstore.ip, &logstore.advertise),
        ] {
            let anywhere = address(key, ip)?.is_unspecified();
            let dialable = is_host_and_port(advertise);
            ensure!(advertise.is_empty() || dialable, "{key}.advertise: {advertise:?} is not host:port");
            ensure!(
                dialable || !anywhere,
                "{key}.advertise: must be set when {key}.ip is {ip}: it is what others dial"
            );
        }
        Ok(())
    }

    fn validate_limits(&self) -> anyhow::Result<()> {
        let objects = &self.woodpecker.client.object_storage;
        let positive = [
            ("rootCoord.dmlChannelNum", u64::from(self.root_coord.dml_channel_num)),
            ("streaming.maxMessageSize", self.streaming.max_message_size.as_u64()),
            ("streaming.walWriteAheadBuffer.capacity", self.streaming.wal_write_ahead_buffer.capacity.as_u64()),
            ("woodpecker.client.segmentRollingPolicy.maxSize", self.rolling().max_size.as_u64()),
            ("woodpecker.client.segmentAppend.maxInFlight", self.max_in_flight()),
            ("woodpecker.client.objectStorage.putsPerSecond", u64::from(objects.puts_per_second)),
            ("woodpecker.client.objectStorage.cacheSize", objects.cache_size.as_u64()),
            ("woodpecker.client.sealed.cacheSize", self.woodpecker.client.sealed.cache_size.as_u64()),
            ("woodpecker.maintenance.parallelism", self.woodpecker.maintenance.parallelism as u64),
            ("woodpecker.maintenance.memory", self.woodpecker.maintenance.memory.as_u64()),
        ];
        for (key, value) in positive {
            ensure!(value > 0, "{key}: must be more than zero");
        }
        let (channels, most) = (self.root_coord.dml_channel_num, streaming_coord::Settings::MAX_CHANNELS);
        ensure!(channels <= most, "rootCoord.dmlChannelNum: {channels} is more than {most}");
        ensure!(
            objects.max_queued >= self.streaming.max_entry_size,
            "woodpecker.client.objectStorage.maxQueued: {} has no room for an entry of streaming.maxEntrySize, {}",
            objects.max_queued,
            self.streaming.max_entry_size
        );
        ensure!(
            self.streaming.max_message_size.as_u64() <= 128 << 20,
            "streaming.maxMessageSize: {} is more than the 128 MiB that one gRPC message carries with room to spare",
            self.streaming.max_message_size
        );
        let balancer = &self.streaming.wal_balancer;
        let at_least = [
            ("common.session.ttl", self.common.session.ttl, Duration::from_secs(1)),
            ("common.reloadInterval", self.common.reload_interval, Duration::from_millis(10)),
            ("streaming.timeTickInterval", self.streaming.time_tick_interval, Duration::from_millis(1)),
            ("streaming.walBalancer.triggerInterval", balancer.trigger_interval, Duration::from_millis(100)),
            ("streaming.walBalancer.assignTimeout", balancer.assign_timeout, Duration::from_secs(1)),
            ("streaming.walBalancer.removeTimeout", balancer.remove_timeout, Duration::from_secs(1)),
            ("woodpecker.client.segmentRollingPolicy.maxInterval", self.rolling().max_interval, Duration::from_secs(1)),
            ("woodpecker.maintenance.interval", self.woodpecker.maintenance.interval, Duration::from_millis(100)),
        ];
        for (key, value, least) in at_least {
            ensure!(value >= least, "{key}: {value:?} is less than {least:?}");
        }
        let min_free = self.woodpecker.maintenance.min_free;
        ensure!((0.0..1.0).contains(&min_free), "woodpecker.maintenance.minFree: {min_free} is no share of a disk");
        self.validate_shares()
    }

    fn validate_shares(&self) -> anyhow::Result<()> {
        let (segment, limits) = (&self.data_coord.segment, &self.streaming.wal_rate_limit);
        let memory = &limits.node_memory;
        let ratio = |of: &AdaptiveRateLimit| of.slowdown.decrease_ratio;
        for (key, value) in [
            ("dataCoord.segment.sealProportion", segment.seal_proportion),
            ("dataCoord.segment.sealProportionJitter", segment.seal_proportion_jitter),
            ("streaming.walRateLimit.nodeMemory.recoverThreshold", memory.recover_threshold),
            ("streaming.walRateLimit.nodeMemory.slowdownThreshold", memory.slowdown_threshold),
            ("streaming.walRateLimit.nodeMemory.rejectThreshold", memory.reject_threshold),
            (
                "streaming.walRateLimit.nodeMemory.adaptiveRateLimit.slowdown.decreaseRatio",
                ratio(&memory.adaptive_rate_limit),
            ),
            (
                "streaming.walRateLimit.recoveryStorage.adaptiveRateLimit.slowdown.decreaseRatio",
                ratio(&limits.recovery_storage.adaptive_rate_limit),
            ),
            (
                "streaming.walRateLimit.consumerLag.adaptiveRateLimit.slowdown.decreaseRatio",
                ratio(&limits.consumer_lag.adaptive_rate_limit),
            ),
            (
                "streaming.walRateLimit.appendRate.adaptiveRateLimit.slowdown.decreaseRatio",
                ratio(&limits.append_rate.adaptive_rate_limit),
            ),
        ] {
            ensure!((0.0..=1.0).contains(&value), "{key}: {value} is no share: it must be between 0 and 1");
        }
        Ok(())
    }

    fn validate_storage(&self) -> anyhow::Result<()> {
        if self.metastore.kind == MetastoreType::Etcd {
            ensure!(!self.etcd.endpoints.is_empty(), "etcd.endpoints: must name at least one endpoint");
        }
        if self.etcd.auth.enabled {
            ensure!(!self.etcd.auth.user_name.is_empty(), "etcd.auth.userName: must be set when etcd.auth.enabled is");
        }
        let provider = self.minio.cloud_provider.as_str();
        ensure!(
            matches!(provider, "aws" | "gcp" | "azure" | "local"),
            "minio.cloudProvider: {provider:?} is none of aws, gcp, azure, local"
        );
        if self.uses_object_store() {
            ensure!(!self.minio.bucket_name.is_empty(), "minio.bucketName: must be set for object storage");
            let nameless = provider == "azure" && self.minio.access_key_id.is_empty();
            ensure!(!nameless, "minio.accessKeyID: must name the account when minio.cloudProvider is azure");
        }
        let quorum = &self.woodpecker.client.quorum.quorum_select_strategy;
        let key = "woodpecker.client.quorum.quorumSelectStrategy";
        ensure!(matches!(quorum.replicas, 3 | 5), "{key}.replicas: {} is neither 3 nor 5", quorum.replicas);
        let (placed, custom) = (quorum.custom_placement.len(), quorum.strategy == SelectStrategy::Custom);
        ensure!(
            placed == if custom { quorum.replicas } else { 0 },
            "{key}.customPlacement: must name {} replicas with the strategy custom, and none with another",
            quorum.replicas
        );
        ensure!(!self.woodpecker.storage.root_path.is_empty(), "woodpecker.storage.rootPath: must not be empty");
        Ok(())
    }

    fn rolling(&self) -> &super::storage::SegmentRollingPolicy {
        &self.woodpecker.client.segment_rolling_policy
    }

    fn max_in_flight(&self) -> u64 {
        self.woodpecker.client.segment_append.max_in_flight.as_u64()
    }
}
