//! Layers of configuration and how they meet: defaults < file < environment < command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use figment::{
    Figment, Metadata, Profile, Provider,
    providers::Serialized,
    value::{Dict, Map, Tag, Value},
};

use super::Config;

/// Variables with this prefix set a key: `STREAMING_CONF_ETCD_ROOTPATH` is `etcd.rootPath`. Case and the separators
/// `_ . /` do not count.
const ENVIRONMENT_PREFIX: &str = "STREAMING_CONF_";

/// Where configuration comes from, besides the defaults.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) file: Option<PathBuf>,
    pub(crate) environment: Vec<(String, String)>,
    /// `key=value`, as typed.
    pub(crate) assignments: Vec<String>,
}

/// Reads, merges and checks.
///
/// # Errors
/// The file cannot be read or parsed, a key is unknown, a value is impossible: always with the key and the source.
pub(crate) fn load(sources: &Sources) -> anyhow::Result<Config> {
    let mut figment = Figment::from(Serialized::defaults(Config::default()));
    if let Some(path) = &sources.file {
        figment = figment.merge(Layer::from_file(path)?);
    }
    figment = figment.merge(Layer::from_environment(&sources.environment)?);
    figment = figment.merge(Layer::from_assignments(&sources.assignments)?);
    let config: Config = figment.extract().map_err(|error| anyhow::anyhow!("configuration: {error}"))?;
    config.validate()?;
    Ok(config)
}

/// One source's values.
struct Layer {
    name: String,
    values: Dict,
}

impl Layer {
    fn from_file(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let values: Option<Dict> =
            serde_saphyr::from_str(&text).with_context(|| format!("{} is not valid YAML", path.display()))?;
        Ok(Self { name: path.display().to_string(), values: values.unwrap_or_default() })
    }

    fn from_environment(variables: &[(String, String)]) -> anyhow::Result<Self> {
        let mut values = Dict::new();
        let keys = known_keys()?;
        for (name, value) in variables {
            let Some(wanted) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            let wanted = folded(wanted);
            let Some(key) = keys.iter().find(|key| folded(key) == wanted) else {
                bail!("environment variable {name} names no configuration key");
            };
            insert(&mut values, key, parse_scalar(value));
        }
        Ok(Self { name: "environment".into(), values })
    }

    fn from_assignments(assignments: &[String]) -> anyhow::Result<Self> {
        let mut values = Dict::new();
        for assignment in assignments {
            let Some((key, value)) = assignment.split_once('=') else {
                bail!("--set {assignment}: expected KEY=VALUE");
            };
            insert(&mut values, key, parse_scalar(value));
        }
        Ok(Self { name: "command line".into(), values })
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

/// The dotted names of all leaves of the configuration.
fn known_keys() -> anyhow::Result<Vec<String>> {
    fn walk(prefix: &str, value: &serde_json::Value, keys: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    walk(&key, value, keys);
                }
            }
            _ => keys.push(prefix.into()),
        }
    }
    let mut keys = Vec::new();
    walk("", &serde_json::to_value(Config::default())?, &mut keys);
    Ok(keys)
}

fn folded(key: &str) -> String {
    key.chars().filter(|c| !matches!(c, '_' | '.' | '/')).flat_map(char::to_lowercase).collect()
}

fn insert(values: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => {
            values.insert(key.into(), value);
        }
        Some((head, rest)) => {
            let entry = values.entry(head.into()).or_insert_with(|| Value::Dict(Tag::Default, Dict::new()));
            if let Value::Dict(_, inner) = entry {
                insert(inner, rest, value);
            }
        }
    }
}

/// `true`, numbers, `[lists]` and `a,b` lists as such; everything else is text.
fn parse_scalar(text: &str) -> Value {
    if text.starts_with('[')
        && let Ok(value) = serde_saphyr::from_str::<Value>(text)
    {
        return value;
    }
    if let Ok(flag) = text.parse::<bool>() {
        return Value::from(flag);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Value::from(number);
    }
    // Digits around one dot; what else could be read as a number, such as `nan` or `1e3`, is text.
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
        && let Ok(number) = text.parse::<f64>()
    {
        return Value::from(number);
    }
    Value::from(text)
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
        load(&Sources { file: Some(path), ..Sources::default() })
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
        let file = dir.path().join("c.yaml");
        std::fs::write(&file, "etcd: {rootPath: from-file, metaSubPath: file-meta}\nrootCoord: {port: 1}\n").unwrap();
        let config = load(&Sources {
            file: Some(file),
            environment: vec![
                ("STREAMING_CONF_ETCD_ROOTPATH".into(), "from-env".into()),
                ("STREAMING_CONF_ROOTCOORD_PORT".into(), "2".into()),
                ("UNRELATED".into(), "x".into()),
            ],
            assignments: vec!["rootCoord.port=3".into()],
        })
        .unwrap();
        assert_eq!(config.etcd.root_path, "from-env");
        assert_eq!(config.etcd.meta_sub_path, "file-meta");
        assert_eq!(config.root_coord.port, 3);
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
    fn an_unknown_key_is_named() {
        let error = from_yaml("etcd: {rootpath: x}\n").unwrap_err().to_string();
        assert!(error.contains("rootpath") && error.contains("etcd"), "{error}");
        let error = from_assignments(&["nonsense.key=1"]).unwrap_err().to_string();
        assert!(error.contains("nonsense"), "{error}");
        let error =
            load(&Sources { environment: vec![("STREAMING_CONF_NO_SUCH".into(), "1".into())], ..Sources::default() })
                .unwrap_err()
                .to_string();
        assert!(error.contains("STREAMING_CONF_NO_SUCH"), "{error}");
    }

    #[test]
    fn an_impossible_value_is_named() {
        for (assignment, key) in [
            ("rootCoord.dmlChannelNum=0", "rootCoord.dmlChannelNum"),
            ("common.session.ttl=0s", "common.session.ttl"),
            ("streaming.maxMessageSize=0B", "streaming.maxMessageSize"),
            ("msgChannel.chanNamePrefix.cluster=", "msgChannel.chanNamePrefix.cluster"),
            ("rootCoord.ip=nonsense", "rootCoord.ip"),
            ("minio.cloudProvider=floppy", "minio.cloudProvider"),
            ("log.level=info,woodpecker=loud", "log.level"),
        ] {
            let error = from_assignments(&[assignment]).unwrap_err().to_string();
            assert!(error.contains(key), "{assignment}: {error}");
        }
        let error = from_assignments(&["rootCoord.port=70000"]).unwrap_err().to_string();
        assert!(error.contains("port"), "{error}");
    }

    #[test]
    fn secrets_are_not_dumped() {
        let config = from_assignments(&["minio.secretAccessKey=hunter2"]).unwrap();
        assert_eq!(config.minio.secret_access_key.expose(), "hunter2");
        let dump = config.dump().unwrap();
        assert!(!dump.contains("hunter2") && dump.contains("***"), "{dump}");
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
