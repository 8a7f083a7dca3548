//! Rules for what comes from outside. A caller gets all broken rules at once, each with its field.

use crate::error::{Error, Result, Violation};

/// The longest `request_id`, in characters.
pub const REQUEST_ID_MAX: usize = 64;
/// The longest user and tenant name, in characters.
pub const NAME_MAX: usize = 128;
/// The longest template name, in bytes: what an image reference takes, with room. Whether there is one of that name is a node's to say.
pub const TEMPLATE_MAX: usize = 512;
/// The most entries of an environment.
pub const ENV_ENTRIES_MAX: usize = 256;
/// The most bytes of an environment, names and values.
pub const ENV_BYTES_MAX: usize = 64 * 1024;
/// The most labels.
pub const METADATA_ENTRIES_MAX: usize = 64;
/// The longest label key, in bytes.
pub const METADATA_KEY_MAX: usize = 64;
/// The longest label value, in bytes.
pub const METADATA_VALUE_MAX: usize = 256;
/// The longest path, in bytes (PATH_MAX less the NUL).
pub const PATH_MAX: usize = 4095;
/// The longest name in a path, in bytes (NAME_MAX of Linux file systems).
pub const PATH_NAME_MAX: usize = 255;

/// Collects broken rules.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// Notes that `field` broke `rule` unless `holds`.
    pub fn check(&mut self, holds: bool, field: &str, rule: impl Into<String>) {
        if !holds {
            self.0.push(Violation { field: field.to_owned(), rule: rule.into() });
        }
    }

    /// Notes what `result` says and gives its value otherwise.
    pub fn take<T>(&mut self, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.extend_from_slice(error.violations())).ok()
    }

    /// Notes unless `value` is within `min..=max`.
    pub fn range<T: PartialOrd + std::fmt::Display>(&mut self, field: &str, value: &T, min: &T, max: &T) {
        self.check(value >= min && value <= max, field, format!("must be from {min} to {max}"));
    }

    /// A user's or tenant's name.
    pub fn name(&mut self, field: &str, text: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || "._@-".contains(c);
        let holds = (1..=NAME_MAX).contains(&text.len()) && text.chars().all(good);
        self.check(holds, field, format!("must be 1 to {NAME_MAX} characters of [A-Za-z0-9._@-]"));
    }

    /// A template's name; empty is the default's.
    pub fn template(&mut self, field: &str, text: &str) {
        self.check(text.len() <= TEMPLATE_MAX, field, format!("must be at most {TEMPLATE_MAX} bytes long"));
    }

    /// A request id; empty is none.
    pub fn request_id(&mut self, field: &str, text: &str) {
        let good = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let holds = text.len() <= REQUEST_ID_MAX && text.chars().all(good);
        self.check(holds, field, format!("must be up to {REQUEST_ID_MAX} characters of [A-Za-z0-9_-]"));
    }

    /// Environment variables.
    pub fn env<'a>(&mut self, field: &str, entries: impl IntoIterator<Item = (&'a String, &'a String)>) {
        let (mut count, mut bytes) = (0, 0);
        for (name, value) in entries {
            count += 1;
            bytes += name.len() + value.len();
            let mut chars = name.chars();
            let first = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
            let named = first && chars.all(|c| c.is_ascii_alphanumeric() || c == '_');
            self.check(named, field, format!("must have names like [A-Za-z_][A-Za-z0-9_]*, not {name:?}"));
            self.check(!value.contains('\0'), field, format!("must not have NUL in the value of {name:?}"));
        }
        self.check(count <= ENV_ENTRIES_MAX, field, format!("must have at most {ENV_ENTRIES_MAX} entries"));
        self.check(bytes <= ENV_BYTES_MAX, field, format!("must have at most {ENV_BYTES_MAX} bytes in all"));
    }

    /// Labels.
    pub fn metadata<'a>(&mut self, field: &str, entries: impl IntoIterator<Item = (&'a String, &'a String)>) {
        let mut count = 0;
        for (key, value) in entries {
            count += 1;
            let keyed = (1..=METADATA_KEY_MAX).contains(&key.len()) && !key.contains('=');
            self.check(keyed, field, format!("must have keys of 1 to {METADATA_KEY_MAX} bytes without '='"));
            let valued = value.len() <= METADATA_VALUE_MAX;
            self.check(valued, field, format!("must have values of up to {METADATA_VALUE_MAX} bytes"));
        }
        self.check(count <= METADATA_ENTRIES_MAX, field, format!("must have at most {METADATA_ENTRIES_MAX} entries"));
    }

    /// An absolute path inside a sandbox.
    pub fn path(&mut self, field: &str, path: &str) {
        self.check(path.starts_with('/'), field, "must be an absolute path");
        self.check(path.len() <= PATH_MAX, field, format!("must be at most {PATH_MAX} bytes long"));
        self.check(!path.contains('\0'), field, "must not contain NUL");
        self.check(!path.split('/').any(|part| part == ".."), field, "must not contain '..'");
        let short = path.split('/').all(|part| part.len() <= PATH_NAME_MAX);
        self.check(short, field, format!("must have names of at most {PATH_NAME_MAX} bytes"));
    }

    /// The error that names every broken rule, if any was.
    pub fn finish(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::invalid_all(self.0)) }
    }
}

/// Labels written `key=value`, as list calls take them.
pub fn parse_labels(field: &str, labels: &[String]) -> Result<Vec<(String, String)>> {
    let parse = |label: &String| {
        let (key, value) = label.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    let parsed: Option<Vec<_>> = labels.iter().map(parse).collect();
    parsed.ok_or_else(|| Error::invalid(field, "must be written key=value"))
}

/// The size of a page: `requested`, or the default when it is 0.
pub fn page_size(requested: u32, default: u32, max: u32) -> Result<usize> {
    match requested {
        0 => Ok(default as usize),
        size if size <= max => Ok(size as usize),
        _ => Err(Error::invalid("page_size", format!("must be from 1 to {max}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_is_good(path: &str) -> bool {
        let mut violations = Violations::default();
        violations.path("path", path);
        violations.finish().is_ok()
    }

    #[test]
    fn paths_that_climb_or_do_not_fit_are_refused() {
        assert!(path_is_good("/workspace/a b/..c/d.txt"));
        assert!(path_is_good("/"));
        for path in ["", "a", "./a", "/a/../b", "/..", "/a\0b", &format!("/{}", "n".repeat(256)), &"/n".repeat(2048)] {
            assert!(!path_is_good(path), "{path:?}");
        }
    }

    #[test]
    fn every_broken_rule_is_named_once_with_its_field() {
        let mut violations = Violations::default();
        violations.name("user_id", "a b");
        violations.request_id("request_id", "ü");
        violations.env("env", [(&"1A".to_owned(), &"x".to_owned())]);
        let error = violations.finish().unwrap_err();
        let fields: Vec<_> = error.violations().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["user_id", "request_id", "env"]);
    }

    #[test]
    fn page_size_has_a_default_and_a_bound() {
        assert_eq!(page_size(0, 100, 1000).unwrap(), 100);
        assert_eq!(page_size(7, 100, 1000).unwrap(), 7);
        assert!(page_size(1001, 100, 1000).is_err());
    }
}
