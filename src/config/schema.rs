//! What can be set, told by the structs themselves: the JSON schema, the type of each key, the reference page.

use std::{fmt::Write as _, sync::OnceLock};

use anyhow::{bail, ensure};
use figment::value::{Dict, Value};
use schemars::{Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value as Json;

use super::{Config, is_live};

/// The JSON schema of a configuration file, complete in itself.
///
/// # Errors
/// A default cannot be written as JSON.
pub(crate) fn schema() -> anyhow::Result<&'static Json> {
    static SCHEMA: OnceLock<Json> = OnceLock::new();
    once(&SCHEMA, || {
        let mut settings = SchemaSettings::draft2020_12();
        settings.inline_subschemas = true;
        // A file says what it wants otherwise: nothing is required.
        settings.transforms.push(Box::new(RecursiveTransform(|schema: &mut Schema| {
            schema.remove("required");
        })));
        Ok(serde_json::to_value(settings.into_generator().into_root_schema_for::<Config>())?)
    })
}

/// What is made for the first who asks: a start asks for each layer and each key that is typed.
fn once<T>(made: &'static OnceLock<T>, make: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<&'static T> {
    if let Some(made) = made.get() {
        return Ok(made);
    }
    let new = make()?;
    Ok(made.get_or_init(|| new))
}

/// One key.
#[derive(Debug)]
pub(super) struct Leaf {
    /// `etcd.rootPath`.
    pub(super) key: String,
    schema: Json,
}

/// What a key takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flag,
    Integer,
    Number,
    List,
    Map,
    Text,
}

impl Leaf {
    /// Every key, section by section.
    pub(super) fn all() -> anyhow::Result<&'static [Self]> {
        static ALL: OnceLock<Vec<Leaf>> = OnceLock::new();
        fn walk(prefix: &str, schema: &Json, leaves: &mut Vec<Leaf>) {
            match properties(schema) {
                None => leaves.push(Leaf { key: prefix.to_owned(), schema: schema.clone() }),
                Some(properties) => {
                    for (name, inner) in properties {
                        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                        walk(&key, inner, leaves);
                    }
                }
            }
        }
        let all = once(&ALL, || {
            let mut leaves = Vec::new();
            walk("", schema()?, &mut leaves);
            Ok(leaves)
        })?;
        Ok(all)
    }

    /// The key of that name; of a map, that of one entry too.
    pub(super) fn named(key: &str) -> anyhow::Result<Option<Self>> {
        let mut schema = schema()?;
        for name in key.split('.') {
            let inner = properties(schema).and_then(|properties| properties.get(name));
            match inner.or_else(|| schema.get("additionalProperties").filter(|entry| entry.is_object())) {
                Some(inner) => schema = inner,
                None => return Ok(None),
            }
        }
        Ok(properties(schema).is_none().then(|| Self { key: key.to_owned(), schema: schema.clone() }))
    }

    /// A value that was typed, as the type that the key has: how it looks decides nothing.
    ///
    /// # Errors
    /// It is none of that type. What it was is not repeated: it may be a secret that went to the wrong key.
    pub(super) fn parse(&self, text: &str) -> anyhow::Result<Value> {
        let key = &self.key;
        Ok(match kind(&self.schema) {
            Kind::Text => Value::from(text),
            Kind::Flag => match text.parse::<bool>() {
                Ok(flag) => Value::from(flag),
                Err(_) => bail!("{key}: expected true or false"),
            },
            Kind::Integer => match text.parse::<i64>() {
                Ok(number) => Value::from(number),
                Err(_) => bail!("{key}: expected a whole number"),
            },
            Kind::Number => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Value::from(number),
                _ => bail!("{key}: expected a number"),
            },
            Kind::List if text.trim_start().starts_with('[') => yaml(key, text)?,
            Kind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Value::from(items.map(Value::from).collect::<Vec<_>>())
            }
            Kind::Map => Value::from(match yaml(key, text)? {
                Value::Dict(_, entries) => entries,
                _ => bail!("{key}: expected a map in YAML"),
            }),
        })
    }

    /// Its value in a whole configuration.
    pub(super) fn of<'a>(&self, whole: &'a Json) -> Option<&'a Json> {
        whole.pointer(&format!("/{}", self.key.replace('.', "/")))
    }

    /// Whether it takes a number of bytes.
    pub(super) fn is_size(&self) -> bool {
        self.format() == Some("size")
    }

    /// Whether it takes a time that something lasts.
    pub(super) fn is_duration(&self) -> bool {
        self.format() == Some("duration")
    }

    fn format(&self) -> Option<&str> {
        concrete(&self.schema).get("format").and_then(Json::as_str)
    }

    /// Of the whole, because parts that are there several times differ.
    fn default(&self, defaults: &Json) -> String {
        match self.of(defaults) {
            None | Some(Json::Null) => String::new(),
            Some(Json::String(text)) if text.is_empty() => String::new(),
            Some(Json::String(text)) => format!("`{text}`"),
            Some(other) => format!("`{other}`"),
        }
    }

    fn takes(&self) -> String {
        let choices = choices(&self.schema);
        if !choices.is_empty() {
            return choices.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        }
        match (kind(&self.schema), self.format()) {
            (Kind::Text, Some("duration")) => "duration",
            (Kind::Text, Some("size")) => "size",
            (Kind::Text, Some("secret")) => "secret",
            (Kind::Text, _) => "text",
            (Kind::Flag, _) => "true or false",
            (Kind::Integer, _) => "whole number",
            (Kind::Number, _) => "number",
            (Kind::List, _) => "list",
            (Kind::Map, _) => "map",
        }
        .to_owned()
    }

    fn description(&self) -> String {
        let mut text = described(&self.schema);
        for (name, why) in choices(&self.schema).into_iter().filter(|(_, why)| !why.is_empty()) {
            let why = why.trim_end_matches('.');
            let _ = write!(text, "<br>`{name}`: {why}.");
        }
        text
    }
}

fn yaml(key: &str, text: &str) -> anyhow::Result<Value> {
    match serde_saphyr::from_str::<Value>(text) {
        Ok(value) => Ok(value),
        Err(_) => bail!("{key}: is not valid YAML"),
    }
}

fn properties(schema: &Json) -> Option<&serde_json::Map<String, Json>> {
    schema.get("properties").and_then(Json::as_object)
}

/// Of a key that may be left without a value, what the value is.
fn concrete(schema: &Json) -> &Json {
    let is_value = |choice: &&Json| choice.get("type").is_none_or(|kind| kind != "null");
    schema.get("anyOf").and_then(Json::as_array).and_then(|all| all.iter().find(is_value)).unwrap_or(schema)
}

fn kind(schema: &Json) -> Kind {
    let schema = concrete(schema);
    let name = match schema.get("type") {
        Some(Json::Array(names)) => names.iter().filter_map(Json::as_str).find(|name| *name != "null"),
        Some(name) => name.as_str(),
        None => None,
    };
    match name {
        Some("boolean") => Kind::Flag,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("array") => Kind::List,
        Some("object") => Kind::Map,
        _ => Kind::Text,
    }
}

/// The words that a key takes, if they are few, and what each means.
fn choices(schema: &Json) -> Vec<(String, String)> {
    let schema = concrete(schema);
    let mut found = Vec::new();
    let words = |schema: &Json| {
        let many = schema.get("enum").and_then(Json::as_array).cloned().unwrap_or_default();
        many.into_iter()
            .chain(schema.get("const").cloned())
            .filter_map(|word| word.as_str().map(str::to_owned))
            .collect()
    };
    for each in schema.get("oneOf").and_then(Json::as_array).into_iter().flatten().chain([schema]) {
        let words: Vec<String> = words(each);
        let why = if words.len() == 1 { described(each) } else { String::new() };
        found.extend(words.into_iter().map(|word| (word, why.clone())));
    }
    found
}

fn described(schema: &Json) -> String {
    let text = schema.get("description").and_then(Json::as_str).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

/// Puts a value where its dotted key says.
///
/// # Errors
/// The key leads through something that is a value itself.
pub(super) fn insert(values: &mut Dict, key: &str, value: Value) -> anyhow::Result<()> {
    match key.split_once('.') {
        None => {
            values.insert(key.into(), value);
            Ok(())
        }
        Some((head, rest)) => {
            let entry = values.entry(head.into()).or_insert_with(|| Value::from(Dict::new()));
            match entry {
                Value::Dict(_, inner) => insert(inner, rest, value),
                _ => bail!("{key}: {head} is a value, not a section"),
            }
        }
    }
}

/// The reference page: everything that can be set, with what it is without.
///
/// # Errors
/// As [`schema`]'s; or a key is not described.
pub(crate) fn reference() -> anyhow::Result<String> {
    let whole = schema()?;
    let defaults = serde_json::to_value(Config::default())?;
    let mut page = String::from(PREFACE);
    for (section, schema) in properties(whole).into_iter().flatten() {
        let _ = write!(
            page,
            "\n## {section}\n\n{}\n\n| key | takes | default | meaning |\n|---|---|---|---|\n",
            described(schema)
        );
        for leaf in Leaf::all()?.iter().filter(|leaf| leaf.key.starts_with(&format!("{section}."))) {
            let mut meaning = leaf.description();
            ensure!(!meaning.is_empty(), "{}: has no description", leaf.key);
            if is_live(&leaf.key) {
                meaning.push_str(" *Live.*");
            }
            let _ = writeln!(page, "| `{}` | {} | {} | {meaning} |", leaf.key, leaf.takes(), leaf.default(&defaults));
        }
    }
    Ok(page)
}

const PREFACE: &str = "\
# Configuration reference

Made by `streaming config reference`; `streaming config schema` prints the same as a JSON schema, and
`streaming config dump` what a process would use, without secrets. Do not edit this page: its text stands beside the
fields in `src/config/`.

Values come, each winning over those before it, from the defaults, files (`--config FILE`, YAML, once or more), the environment
(`STREAMING_CONF_ETCD_ROOTPATH` sets `etcd.rootPath`: case and the separators `_`, `.` and `/` do not count) and
`--set KEY=VALUE`. A key decides how its value is read, not what the value looks like: a password of digits is text. Lists
are typed as `a,b` or as YAML. A key that does not exist, and a value that cannot be, stop the start and are named.
Durations and sizes carry their unit: `200ms`, `10s`, `1h 30m`; `512KiB`, `64MiB`, `1.5GiB`.

While a process runs it reads its files and those of `tls` and `auth` again when they change, and on SIGHUP. Certificates, tokens
and the keys that are marked *live* are used at once; what else changed is named in the log and needs a restart. A file that
cannot be used changes nothing, is told of in the log, and counted in `streaming_reload_failures_total`.
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_say_what_the_binary_takes() {
        let page = include_str!("../../docs/operate/configuration.md");
        assert!(reference().unwrap() == page, "run: streaming config reference >docs/operate/configuration.md");
        let file: Json =
            serde_json::from_str(include_str!("../../docs/operate/configuration.schema.json")).unwrap_or_default();
        assert!(*schema().unwrap() == file, "run: streaming config schema >docs/operate/configuration.schema.json");
    }

    #[test]
    fn the_keys_are_listed_once_however_many_layers_ask() {
        assert!(std::ptr::eq(Leaf::all().unwrap(), Leaf::all().unwrap()));
        assert!(std::ptr::eq(schema().unwrap(), schema().unwrap()));
    }

    #[test]
    fn the_type_of_a_key_decides_how_its_value_is_read() {
        let parse = |key: &str, text: &str| Leaf::named(key).unwrap().unwrap().parse(text);
        assert_eq!(parse("minio.secretAccessKey", "0123").unwrap().as_str(), Some("0123"));
        assert_eq!(parse("minio.secretAccessKey", "true").unwrap().as_str(), Some("true"));
        assert_eq!(parse("rootCoord.port", "7").unwrap().to_i128(), Some(7));
        assert_eq!(parse("tls.enabled", "true").unwrap().to_bool(), Some(true));
        assert_eq!(parse("woodpecker.maintenance.sealing", "false").unwrap().to_bool(), Some(false));
        assert_eq!(parse("etcd.endpoints", "a:1, b:2").unwrap().as_array().map(<[_]>::len), Some(2));
        assert_eq!(parse("etcd.endpoints", "['a:1']").unwrap().as_array().map(<[_]>::len), Some(1));
        assert_eq!(parse("woodpecker.logstore.quotas.team.logs", "3").unwrap().to_i128(), Some(3));
        for (key, text) in [("rootCoord.port", "s3cret"), ("tls.enabled", "s3cret"), ("trace.sampleFraction", "nan")] {
            let error = parse(key, text).unwrap_err().to_string();
            assert!(error.contains(key) && !error.contains("s3cret"), "{error}");
        }
        assert!(Leaf::named("etcd").unwrap().is_none(), "a section is no key");
        assert!(Leaf::named("etcd.nonsense").unwrap().is_none());
    }
}
