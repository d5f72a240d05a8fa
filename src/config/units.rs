//! How values with a unit are described: the structs hold what the rest of the program computes with.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

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
