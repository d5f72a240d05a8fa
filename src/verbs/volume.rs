//! `streaming volume`: files and objects as they lie on a medium.

use anyhow::{Context, bail};
use woodpecker_store::inspect::{Part, inspect};

use super::{list::table, print_json};
use crate::{
    cli::{VolumeArgs, VolumeVerb},
    print::say,
};

/// Runs one verb.
///
/// # Errors
/// The file cannot be read, is none of ours, or is damaged.
pub(crate) fn volume(arguments: VolumeArgs) -> anyhow::Result<()> {
    let VolumeVerb::Dump { file, json } = arguments.verb;
    let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let found = inspect(&bytes.into()).with_context(|| {
        format!("{} is no data file, marks or object of a volume, and no sealed run", file.display())
    })?;
    let damaged = found.parts.iter().filter(|part| part.problem.is_some()).count();
    if json {
        print_json(&found)?;
    } else {
        say!("{}: {}", file.display(), found.kind);
        for (key, value) in &found.about {
            say!("  {key}: {value}");
        }
        say!("");
        let mut table = table(["AT", "WHAT", "DETAIL", "PROBLEM"]);
        for Part { at, what, detail, problem } in found.parts {
            table.add_row([at.to_string(), what.into(), detail, problem.unwrap_or_else(|| "none".into())]);
        }
        say!("{table}");
    }
    if damaged > 0 {
        bail!("{}: {damaged} parts cannot be read", file.display());
    }
    Ok(())
}
