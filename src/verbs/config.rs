//! `streaming config`: what can be set, and what would be used.

use super::print_json;
use crate::{
    cli::ConfigVerb,
    config::{reference, schema},
    print::say,
};

/// Prints what was asked for.
///
/// # Errors
/// The configuration is wrong.
pub(crate) fn config(verb: ConfigVerb) -> anyhow::Result<()> {
    match verb {
        ConfigVerb::Schema => print_json(schema()?),
        ConfigVerb::Reference => {
            say!("{}", reference()?.trim_end());
            Ok(())
        }
        ConfigVerb::Dump(arguments) => {
            say!("{}", arguments.load()?.dump()?.trim_end());
            Ok(())
        }
    }
}
