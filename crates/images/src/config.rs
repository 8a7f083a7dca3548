//! What an image says about itself, and whether it is made for this machine.

use std::collections::BTreeMap;

use cloud_sandbox_model::error::said;
use serde::Deserialize;

use crate::ImageError;

/// What of an image's configuration means something to a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) env: BTreeMap<String, String>,
}

impl Config {
    /// From what both the daemon and the OCI image specification have; empty is the same as missing.
    pub(crate) fn new(env: Option<Vec<String>>) -> Self {
        let pair = |variable: String| {
            let (name, value) = variable.split_once('=')?;
            (!name.is_empty()).then(|| (name.to_owned(), value.to_owned()))
        };
        Self { env: env.into_iter().flatten().filter_map(pair).collect() }
    }
}

/// The configuration file of an image, of the OCI image specification.
#[derive(Deserialize)]
pub(crate) struct ConfigFile {
    architecture: Option<String>,
    os: Option<String>,
    config: Option<Inner>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inner {
    env: Option<Vec<String>>,
}

impl ConfigFile {
    /// Reads it; an error for what is no image of this machine.
    pub(crate) fn read(image: &str, text: &[u8]) -> Result<Config, ImageError> {
        let not = |reason: String| ImageError::NotAnImage { image: image.to_owned(), reason: said(&reason) };
        let file: Self =
            serde_json::from_slice(text).map_err(|error| not(format!("its configuration cannot be read: {error}")))?;
        let (Some(os), Some(architecture)) = (file.os, file.architecture) else {
            return Err(not("its configuration names no operating system and architecture".to_owned()));
        };
        check(image, &os, &architecture)?;
        Ok(Config::new(file.config.and_then(|inner| inner.env)))
    }
}

/// The system that images must be made for.
pub(crate) const OS: &str = "linux";

/// This machine's architecture, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An error for an image of another kind of machine.
pub(crate) fn check(image: &str, os: &str, architecture: &str) -> Result<(), ImageError> {
    if (os, architecture) == (OS, self::architecture()) {
        return Ok(());
    }
    Err(platform(image, &format!("{os}/{architecture}")))
}

/// The error for an image of which there is what is `found`.
pub(crate) fn platform(image: &str, found: &str) -> ImageError {
    ImageError::Platform { image: image.to_owned(), wanted: format!("{OS}/{}", architecture()), found: said(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(inner: &str) -> Result<Config, ImageError> {
        let architecture = architecture();
        ConfigFile::read("x", format!(r#"{{"os":"linux","architecture":"{architecture}"{inner}}}"#).as_bytes())
    }

    #[test]
    fn an_image_says_what_it_wants() {
        let config =
            read(r#","config":{"Env":["PATH=/bin","EMPTY=","A=b=c","odd","=x"],"WorkingDir":"/app"}"#).unwrap();
        let env: Vec<_> = config.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(env, [("A", "b=c"), ("EMPTY", ""), ("PATH", "/bin")]);
        assert_eq!(read("").unwrap(), Config::default());
        assert_eq!(read(r#","config":{"Env":null}"#).unwrap(), Config::default());
    }

    #[test]
    fn what_is_no_image_of_this_machine_is_refused() {
        let foreign = ConfigFile::read("x", br#"{"os":"linux","architecture":"s390x"}"#).unwrap_err();
        assert!(foreign.to_string().ends_with("there is linux/s390x"), "{foreign}");
        for text in ["", "{}", "[]", r#"{"os":"linux"}"#] {
            assert!(matches!(ConfigFile::read("x", text.as_bytes()), Err(ImageError::NotAnImage { .. })), "{text}");
        }
    }
}
