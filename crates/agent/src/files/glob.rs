//! Patterns for names and paths.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use tonic::Status;

/// The longest pattern, in bytes.
const MAX_GLOB: usize = 1024;

/// A pattern; one without a slash is for names, one with a slash for paths.
pub(super) struct Glob {
    matcher: GlobMatcher,
    for_names: bool,
}

impl Glob {
    /// Takes a pattern from a request; none when it is empty.
    pub(super) fn parse(pattern: &str) -> Result<Option<Self>, Status> {
        if pattern.is_empty() {
            return Ok(None);
        }
        if pattern.len() > MAX_GLOB {
            return Err(Status::invalid_argument(format!("glob is longer than {MAX_GLOB} bytes")));
        }
        let for_names = !pattern.contains('/');
        let glob = GlobBuilder::new(pattern.trim_start_matches('/')).literal_separator(true).build();
        let refused =
            |error: globset::Error| Status::invalid_argument(format!("glob {pattern:.200}: {}", error.kind()));
        Ok(Some(Self { matcher: glob.map_err(refused)?.compile_matcher(), for_names }))
    }

    /// Whether it matches what lies at `path`, from the folder that was asked for.
    pub(super) fn matches(&self, path: &Path) -> bool {
        let subject = if self.for_names { path.file_name().map_or(path, Path::new) } else { path };
        self.matcher.is_match(subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(glob: &str, path: &str) -> bool {
        Glob::parse(glob).unwrap().is_some_and(|glob| glob.matches(Path::new(path)))
    }

    #[test]
    fn a_pattern_without_a_slash_is_for_names() {
        assert!(matches("*.rs", "src/deep/a.rs") && matches("[a-c]?", "x/b1") && matches("{a,b}.txt", "b.txt"));
        assert!(!matches("src*", "src/a") && !matches("*.rs", "a.rsx"));
    }

    #[test]
    fn a_pattern_with_a_slash_is_for_paths() {
        assert!(matches("src/*.rs", "src/a.rs") && matches("/src/*.rs", "src/a.rs"));
        assert!(matches("**/a.rs", "a.rs") && matches("src/**/a.rs", "src/x/y/a.rs") && matches("src/**", "src/x/y"));
        assert!(!matches("src/*.rs", "src/x/a.rs") && !matches("src/*.rs", "b/src/a.rs"));
    }

    #[test]
    fn a_malformed_pattern_is_refused_with_the_reason() {
        for glob in ["[a", "{a", "a\\", &"x".repeat(1025)] {
            assert_eq!(Glob::parse(glob).err().unwrap().code(), tonic::Code::InvalidArgument, "{glob:.10}");
        }
    }
}
