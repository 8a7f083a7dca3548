//! `--print-config`: the effective settings as a file that could be given to `--config`, secrets masked.

use std::fmt::Write as _;

use super::{Host, Kind, Mode, Resolved, Row, Settings, TABLE};

/// The effective settings in TOML, each with what it does and where it came from.
#[must_use]
pub fn print(resolved: &Resolved) -> String {
    let mut text = format!("# settings of `cloud-sandbox {}`\n", resolved.mode.name());
    for row in TABLE.iter().filter(|row| row.is_for(resolved.mode)) {
        let source = resolved.source(row.name);
        let line = match (row.get)(&resolved.settings) {
            Some(value) => format!("{} = {}", row.name, literal(row, &value)),
            None => format!("# {} is not set", row.name),
        };
        // writing to a String does not fail
        _ = write!(text, "\n# {} ({source})\n{line}\n", row.doc);
    }
    text
}

/// The default of a setting, for `--help`.
#[must_use]
pub fn write_default(row: &Row, mode: Mode, host: &Host) -> Option<String> {
    (row.get)(&Settings::defaults(mode, host))
}

fn literal(row: &Row, value: &str) -> String {
    match row.kind {
        Kind::Bool | Kind::Bytes | Kind::Number => value.to_owned(),
        _ => toml::Value::String(value.to_owned()).to_string(),
    }
}
