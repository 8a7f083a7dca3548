//! Structured logs on standard error, one event a line; standard output belongs to what a command answers.

use std::{fmt, io, io::IsTerminal, str::FromStr};

use tracing_subscriber::{EnvFilter, filter::ParseError, fmt as subscriber, util::SubscriberInitExt};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// for people, coloured on a terminal
    #[default]
    Text,
    /// one JSON object a line, for collectors
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("must be text or json, not {text:?}")),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why logging could not begin.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not `level` or `target=level,…`.
    #[error("the log level is not a filter")]
    Filter(#[from] ParseError),
    /// Logging has begun before.
    #[error("logging has begun before")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Whether `filter` can be given to [`init`]: a level, or `target=level` pairs as in `RUST_LOG`.
pub fn check_filter(filter: &str) -> Result<(), LogError> {
    EnvFilter::try_new(filter)?;
    Ok(())
}

/// Begins logging. Called once, before anything is logged.
pub fn init(filter: &str, format: LogFormat) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(filter)?;
    let builder = subscriber().with_env_filter(filter).with_writer(io::stderr);
    let begun = match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).finish().try_init(),
    };
    begun.map_err(|error| LogError::Twice(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_filters_and_nonsense_is_not() {
        for good in ["info", "warn,cloud_sandbox_node=debug", "off"] {
            assert!(check_filter(good).is_ok(), "{good}");
        }
        assert!(check_filter("cloud_sandbox=loud").is_err());
    }

    #[test]
    fn formats_are_read_as_they_are_written() {
        for format in [LogFormat::Text, LogFormat::Json] {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
