//! The TOML file: flat, one key for each setting. A key that is no setting is refused, so that a misspelt one is not
//! silently ignored.

use std::{collections::HashMap, fs, path::Path};

use super::{Fault, Source, TABLE, table};

/// The texts of the settings in the file at `path`; what is wrong with it goes to `faults`.
pub(super) fn read(path: &Path, faults: &mut Vec<Fault>) -> HashMap<&'static str, (String, Source)> {
    let source = Source::File(path.to_owned());
    let mut values = HashMap::new();
    let mut fault = |setting: &str, rule: String| {
        faults.push(Fault { setting: setting.to_owned(), source: source.clone(), rule });
    };
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            fault("config", format!("cannot be read: {error}"));
            return values;
        }
    };
    let parsed: toml::Table = match text.parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            // the parser's own words would quote the line, which may hold a secret
            fault("config", format!("is not TOML: {}{}", error.message(), place(&text, error.span())));
            return values;
        }
    };
    for (key, value) in parsed {
        let Some(row) = table::row(&key) else {
            fault(&key, format!("is not a setting{}", suggestion(&key)));
            continue;
        };
        match as_text(&value) {
            Some(text) => _ = values.insert(row.name, (text, source.clone())),
            None => fault(row.name, "must be a string, a whole number, true or false".to_owned()),
        }
    }
    values
}

fn place(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let before = span.and_then(|span| text.get(..span.start));
    before.map_or_else(String::new, |before| format!(" in line {}", before.matches('\n').count() + 1))
}

fn as_text(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(value) => Some(value.to_string()),
        _ => None,
    }
}

/// The setting that a key was probably meant to be: another spelling of its name, or an ending of it.
fn suggestion(key: &str) -> String {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_', '.'], "");
    let meant = plain(key);
    let found = TABLE.iter().find(|row| plain(row.name) == meant);
    found.map_or_else(String::new, |row| format!("; did you mean {}?", row.name))
}
