//! Layers of configuration and how they meet: defaults < files < environment < command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use figment::{
    Figment, Metadata, Profile, Provider,
    providers::Serialized,
    value::{Dict, Map, Value},
};

use super::{
    Config, labels,
    schema::{Leaf, insert},
    units::duration,
};

/// Variables with this prefix set a key: `STREAMING_CONF_ETCD_ROOTPATH` is `etcd.rootPath`. Case and the separators
/// `_ . /` do not count.
const ENVIRONMENT_PREFIX: &str = "STREAMING_CONF_";
/// How much like one that exists a key must be to be taken for a slip of it.
const ALIKE: f64 = 0.9;

/// Where configuration comes from, besides the defaults.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// Later ones win.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
    /// `key=value`, as typed.
    pub(crate) assignments: Vec<String>,
}

/// Reads, merges and checks.
///
/// # Errors
/// A file cannot be read or parsed, a key is unknown, a value is impossible: always with the key and the source.
pub(crate) fn load(sources: &Sources) -> anyhow::Result<Config> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    for path in &sources.files {
        figment = figment.merge(Layer::from_file(path)?.with_units()?);
    }
    figment = figment.merge(Layer::from_environment(&sources.environment)?.with_units()?);
    figment = figment.merge(Layer::from_assignments(&sources.assignments)?.with_units()?);
    let config: Config = figment.extract().map_err(|error| anyhow::anyhow!("configuration: {error}"))?;
    check_durations(&config)?;
    config.validate()?;
    Ok(config)
}

/// Says which duration is longer than one may be.
fn check_durations(config: &Config) -> anyhow::Result<()> {
    let values = serde_json::to_value(config)?;
    for leaf in Leaf::all()?.iter().filter(|leaf| leaf.is_duration()) {
        let value = leaf.of(&values).and_then(serde_json::Value::as_str);
        if let Some(Err(error)) = value.map(duration) {
            bail!("configuration: {}: {error}", leaf.key);
        }
    }
    Ok(())
}

/// The keys whose values differ. Of a secret it is not seen.
///
/// # Errors
/// A configuration cannot be written.
pub(crate) fn changes(one: &Config, other: &Config) -> anyhow::Result<Vec<String>> {
    let (one, other) = (serde_json::to_value(one)?, serde_json::to_value(other)?);
    let differs = |leaf: &&Leaf| leaf.of(&one) != leaf.of(&other);
    Ok(Leaf::all()?.iter().filter(differs).map(|leaf| leaf.key.clone()).collect())
}

/// One source's values.
struct Layer {
    name: String,
    values: Dict,
}

impl Layer {
    fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        // The parser's own words repeat what is written there, and that may be a secret.
        let values: Option<Dict> = serde_saphyr::from_str(&text).map_err(|error| {
            let at = error.location().map(|at| format!(" at line {}, column {}", at.line(), at.column()));
            anyhow::anyhow!("{} is not valid YAML{}", path.display(), at.unwrap_or_default())
        })?;
        Ok(Self { name: path.display().to_string(), values: values.unwrap_or_default() })
    }

    fn from_environment(variables: &[(String, String)]) -> anyhow::Result<Self> {
        let mut values = Dict::new();
        let leaves = Leaf::all()?;
        for (name, value) in variables {
            let Some(wanted) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let wanted = folded(wanted);
            let Some(leaf) = leaves.iter().find(|leaf| folded(&leaf.key) == wanted) else {
                bail!("environment variable {name} names no configuration key; {}", meant(&wanted)?);
            };
            let value = leaf.parse(value).with_context(|| format!("environment variable {name}"))?;
            insert(&mut values, &leaf.key, value)?;
        }
        for (label, value) in labels::of_node(variables) {
            insert(&mut values, &format!("streamingNode.labels.{label}"), value.into())?;
        }
        Ok(Self { name: "environment".into(), values })
    }

    fn from_assignments(assignments: &[String]) -> anyhow::Result<Self> {
        let mut values = Dict::new();
        for assignment in assignments {
            let Some((key, value)) = assignment.split_once('=') else {
                bail!("--set {assignment}: expected KEY=VALUE");
            };
            let Some(leaf) = Leaf::named(key)? else { bail!("--set {key}: there is no such key; {}", meant(key)?) };
            insert(&mut values, key, leaf.parse(value)?)?;
        }
        Ok(Self { name: "command line".into(), values })
    }

    /// The same, if every size in it has a unit: `256` may have been meant as anything.
    fn with_units(self) -> anyhow::Result<Self> {
        let whole = Value::from(self.values.clone());
        for Leaf { key, .. } in Leaf::all()?.iter().filter(|leaf| leaf.is_size()) {
            let bare = match whole.find_ref(key) {
                Some(Value::Num(_, number)) => number.to_u128() != Some(0),
                Some(Value::String(_, text)) => text.trim().parse::<f64>().is_ok_and(|number| number != 0.0),
                _ => false,
            };
            ensure!(!bare, "configuration: {key}: expected a size with its unit, such as 16MiB, in {}", self.name);
        }
        Ok(self)
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        // Keys as one writes them: nobody here has profiles.
        Metadata::named(self.name.clone()).interpolater(|_, keys| keys.join("."))
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// What somebody may have meant who gave a key that does not exist.
fn meant(wanted: &str) -> anyhow::Result<String> {
    let (wanted, keys) = (folded(wanted), Leaf::all()?.iter().map(|leaf| &leaf.key));
    let alike = keys.map(|key| (strsim::jaro_winkler(&wanted, &folded(key)), key));
    let most = alike.max_by(|(one, _), (other, _)| one.total_cmp(other)).filter(|(alike, _)| *alike > ALIKE);
    let slip = most.map(|(_, key)| format!("did you mean {key}? ")).unwrap_or_default();
    Ok(format!("{slip}`streaming config reference` lists all"))
}

fn folded(key: &str) -> String {
    key.chars().filter(|c| !matches!(c, '_' | '.' | '/')).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_assignments(assignments: &[&str]) -> anyhow::Result<Config> {
        load(&Sources { assignments: assignments.iter().map(|s| (*s).into()).collect(), ..Sources::default() })
    }

    fn from_yaml(text: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("streaming.yaml");
        std::fs::write(&path, text)?;
        load(&Sources { files: vec![path], ..Sources::default() })
    }

    #[test]
    fn defaults_are_valid() {
        let config = load(&Sources::default()).unwrap();
        assert_eq!(config.channels().len(), 16);
        assert_eq!(config.channels()[3], "by-dev-rootcoord-dml_3");
        assert_eq!(config.meta_root(), "by-dev/meta");
    }

    #[test]
    fn later_layers_win() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["default.yaml", "user.yaml"].map(|name| dir.path().join(name));
        std::fs::write(&files[0], "etcd: {rootPath: first, metaSubPath: first}\nrootCoord: {port: 1, ip: '::1'}\n")
            .unwrap();
        std::fs::write(&files[1], "etcd: {rootPath: from-file, metaSubPath: file-meta}\n").unwrap();
        let config = load(&Sources {
            files: files.to_vec(),
            environment: vec![
                ("STREAMING_CONF_ETCD_ROOTPATH".into(), "from-env".into()),
                ("STREAMING_CONF_ROOTCOORD_PORT".into(), "2".into()),
                ("UNRELATED".into(), "x".into()),
                ("MILVUS_SERVER_LABEL_RESOURCE_GROUP".into(), "7".into()),
            ],
            assignments: vec!["rootCoord.port=3".into()],
        })
        .unwrap();
        assert_eq!(config.etcd.root_path, "from-env");
        assert_eq!(config.etcd.meta_sub_path, "file-meta");
        assert_eq!((config.root_coord.port, config.root_coord.ip.as_str()), (3, "::1"));
        assert_eq!(config.streaming_node.labels["RESOURCE_GROUP"], "7");
    }

    #[test]
    fn parts_of_one_are_read_from_the_command_line() {
        let config = from_assignments(&["woodpecker.logstore.disk.hardUsed=0.95"]).unwrap();
        assert_eq!(config.log_store().watermarks.hard.used, 0.95);
        assert!(from_assignments(&["woodpecker.logstore.disk.hardUsed=1.5"]).is_err());
    }

    #[test]
    fn sizes_durations_and_lists_are_read() {
        let config = from_yaml(
            "streaming: {walWriteAheadBuffer: {capacity: 8MiB, keepalive: 5s}, timeTickInterval: 50ms}\n\
             etcd: {endpoints: ['a:1', 'b:2']}\n",
        )
        .unwrap();
        assert_eq!(config.streaming.wal_write_ahead_buffer.capacity.as_u64(), 8 << 20);
        assert_eq!(config.streaming.time_tick_interval.as_millis(), 50);
        assert_eq!(config.etcd.endpoints, ["a:1", "b:2"]);
    }

    #[test]
    fn a_size_without_a_unit_is_refused() {
        let key = "streaming.maxMessageSize";
        for error in [
            from_yaml("streaming: {maxMessageSize: 16}").unwrap_err(),
            from_yaml("streaming: {maxMessageSize: '16'}").unwrap_err(),
            from_assignments(&["streaming.maxMessageSize=16"]).unwrap_err(),
        ] {
            assert!(error.to_string().contains(key) && error.to_string().contains("unit"), "{error}");
        }
        let none = from_yaml("woodpecker: {logstore: {quota: {bytesKept: 0}}}").unwrap();
        assert_eq!(none.woodpecker.logstore.quota.bytes_kept.as_u64(), 0);
    }

    #[test]
    fn a_duration_that_no_clock_reaches_the_end_of_is_refused() {
        for key in ["common.startTimeout", "woodpecker.maintenance.sweepInterval", "common.gracefulStopTimeout"] {
            let error = from_assignments(&[&format!("{key}=500000000000years")]).unwrap_err().to_string();
            assert_eq!(error, format!("configuration: {key}: longer than 1000 years"));
            assert!(from_assignments(&[&format!("{key}=999years")]).is_ok());
        }
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = from_yaml("etcd: {rootpath: x}\n").unwrap_err().to_string();
        assert!(error.contains("\"etcd.rootpath\""), "{error}");
        let error = from_assignments(&["nonsense.key=1"]).unwrap_err().to_string();
        assert!(error.contains("nonsense"), "{error}");
        let error =
            load(&Sources { environment: vec![("STREAMING_CONF_NO_SUCH".into(), "1".into())], ..Sources::default() })
                .unwrap_err()
                .to_string();
        assert!(error.contains("STREAMING_CONF_NO_SUCH"), "{error}");
    }

    #[test]
    fn a_slip_in_a_key_is_told_with_the_key_that_was_meant() {
        for (slip, meant) in [
            ("rootCord.port", "rootCoord.port"),
            ("etcd.rootpath", "etcd.rootPath"),
            ("minio.bucket", "minio.bucketName"),
            ("streaming.walRateLimit.nodeMemory.enable", "streaming.walRateLimit.nodeMemory.enabled"),
        ] {
            let typed = from_assignments(&[&format!("{slip}=1")]).unwrap_err().to_string();
            let variable = format!("STREAMING_CONF_{}", slip.replace('.', "_").to_uppercase());
            let said = format!("did you mean {meant}?");
            assert!(typed.contains(&said), "{typed}");
            // Of a variable, case does not count.
            if slip.to_lowercase() != meant.to_lowercase() {
                let environment = vec![(variable, "1".to_owned())];
                let error = load(&Sources { environment, ..Sources::default() }).unwrap_err().to_string();
                assert!(error.contains(&said), "{error}");
            }
        }
        let error = from_assignments(&["nonsense.key=1"]).unwrap_err().to_string();
        assert!(!error.contains("did you mean") && error.contains("config reference"), "{error}");
    }

    #[test]
    fn an_impossible_value_is_named() {
        for (assignment, key) in [
            ("rootCoord.dmlChannelNum=0", "rootCoord.dmlChannelNum"),
            ("rootCoord.dmlChannelNum=4294967295", "rootCoord.dmlChannelNum"),
            ("common.session.ttl=0s", "common.session.ttl"),
            ("streaming.maxMessageSize=0B", "streaming.maxMessageSize"),
            ("msgChannel.chanNamePrefix.cluster=", "msgChannel.chanNamePrefix.cluster"),
            ("rootCoord.ip=nonsense", "rootCoord.ip"),
            ("minio.cloudProvider=floppy", "minio.cloudProvider"),
            ("log.level=info,woodpecker=loud", "log.level"),
            ("log.level=info,woodpecker[", "log.level"),
            ("rootCoord.advertise=§ no", "rootCoord.advertise"),
            ("rootCoord.advertise=:19530", "rootCoord.advertise"),
            ("streamingNode.advertise=host", "streamingNode.advertise"),
            ("streamingNode.advertise=host:0", "streamingNode.advertise"),
            ("woodpecker.logstore.advertise=http://host:1", "woodpecker.logstore.advertise"),
            ("replicate.source=host/:1", "replicate.source"),
            ("rootCoord.ip=0.0.0.0", "rootCoord.advertise"),
            ("streamingNode.ip=::", "streamingNode.advertise"),
            ("woodpecker.logstore.ip=0.0.0.0", "woodpecker.logstore.advertise"),
            ("woodpecker.logstore.ip=nonsense", "woodpecker.logstore.ip"),
            ("woodpecker.logstore.disk.softUsed=0.99", "woodpecker.logstore.disk"),
            ("woodpecker.client.objectStorage.maxQueued=1KiB", "woodpecker.client.objectStorage.maxQueued"),
            ("woodpecker.client.objectStorage.putsPerSecond=0", "woodpecker.client.objectStorage.putsPerSecond"),
            ("woodpecker.client.sealed.cacheSize=0B", "woodpecker.client.sealed.cacheSize"),
            ("streaming.walBalancer.assignTimeout=0s", "streaming.walBalancer.assignTimeout"),
            ("dataCoord.segment.sealProportionJitter=-7.5", "dataCoord.segment.sealProportionJitter"),
            (
                "streaming.walRateLimit.nodeMemory.rejectThreshold=-7.5",
                "streaming.walRateLimit.nodeMemory.rejectThreshold",
            ),
            ("tls.enabled=true", "tls.cert"),
            ("tls.clientAuth=required", "tls.enabled"),
            ("auth.enabled=true", "auth.tokensFile"),
            ("limits.calls=0", "limits.calls"),
            ("trace.sampleFraction=2", "trace.sampleFraction"),
        ] {
            let error = from_assignments(&[assignment]).unwrap_err().to_string();
            assert!(error.contains(key), "{assignment}: {error}");
        }
        let error = from_assignments(&["rootCoord.port=70000"]).unwrap_err().to_string();
        assert!(error.contains("port"), "{error}");
    }

    /// The blocks of a page in that language.
    fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
        let blocks = page.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        blocks.filter(|(head, _)| head.split(' ').next() == Some(language)).map(|(_, text)| text).collect()
    }

    #[test]
    fn the_configurations_in_the_documentation_are_taken() {
        let page = |name| std::fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        let guide = page("operate/guide.md");
        let file = blocks(&guide, "yaml")[0];
        assert_eq!(from_yaml(file).unwrap().minio.bucket_name, "logs");
        for role in ["coord", "node"] {
            let command = blocks(&guide, "sh").into_iter().flat_map(str::lines);
            let mut command = command.filter(|line| line.starts_with(&format!("streaming {role} ")));
            let settings = command.next().unwrap().split(" --set ").skip(1).map(str::to_owned);
            load(&Sources { assignments: settings.collect(), ..Sources::default() }).unwrap();
        }
        for text in blocks(&page("operate/security.md"), "yaml") {
            from_yaml(text).unwrap();
        }
        for text in blocks(&page("replication.md"), "yaml") {
            // The other one is a topology.
            assert!(text.contains("edges:") || from_yaml(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_secret_of_digits_is_text_wherever_it_stands() {
        for key in ["STREAMING_CONF_MINIO_SECRETACCESSKEY", "STREAMING_CONF_minio.secretAccessKey"] {
            let environment = vec![(key.to_owned(), "00123".to_owned())];
            let config = load(&Sources { environment, ..Sources::default() }).unwrap();
            assert_eq!(config.minio.secret_access_key.expose(), "00123");
        }
        let config = from_assignments(&["etcd.auth.password=1e3", "minio.bucketName=7"]).unwrap();
        assert_eq!(config.etcd.auth.password.expose(), "1e3");
        assert_eq!(config.minio.bucket_name, "7");
        let config = from_yaml("minio: {secretAccessKey: '00123'}").unwrap();
        assert_eq!(config.minio.secret_access_key.expose(), "00123");
        // YAML has read a number here, and the zeros are gone: it cannot be used, and must not be shown.
        let error = format!("{:#}", from_yaml("minio: {secretAccessKey: 00123}").unwrap_err());
        assert!(error.contains("quotes") && !error.contains("123"), "{error}");
    }

    #[test]
    fn a_file_that_is_no_yaml_is_told_by_its_place_and_no_secret_of_it() {
        for wrong in ["@hunter2", "*hunter2", "'hunter2", "%hunter2", "hunter2: hunter2: 1", "{hunter2"] {
            let text = format!("etcd:\n  rootPath: hunter2\nminio:\n  secretAccessKey: {wrong}\n");
            let error = format!("{:?}", from_yaml(&text).unwrap_err());
            assert!(error.contains("line ") && error.contains("not valid YAML"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_dumped() {
        let config = from_assignments(&["minio.secretAccessKey=hunter2", "etcd.auth.password=hunter2"]).unwrap();
        assert_eq!(config.minio.secret_access_key.expose(), "hunter2");
        let dump = config.dump().unwrap();
        assert!(!dump.contains("hunter2") && dump.contains("***"), "{dump}");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
