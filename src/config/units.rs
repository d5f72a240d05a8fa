//! How values with a unit are described: the structs hold what the rest of the program computes with.

use std::{borrow::Cow, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// No wait is longer, for a clock must be able to tell when it ends.
const LONGEST: Duration = Duration::from_secs(1000 * 365 * 86_400);

/// A duration as one writes it.
///
/// # Errors
/// It is none, or longer than anything is waited for.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration > LONGEST { Err("longer than 1000 years".to_owned()) } else { Ok(duration) }
}

/// `200ms`, `1h 30m`.
pub(super) struct DurationText;

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "duration",
            "pattern": r"^([0-9]+ ?(ns|us|ms|s|sec|m|min|h|hr|d|day|days) ?)+$",
        })
    }
}

/// `64MiB`, `1.5 GiB`.
pub(super) struct SizeText;

impl JsonSchema for SizeText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": "size",
            "pattern": r"^[0-9]+(\.[0-9]+)? ?([KMGTP]i?)?B$",
        })
    }
}
