//! The settings of S3, which only make sense together.

use cloud_sandbox_storage::S3Options;

use super::{Secret, defaults};

/// Where S3 is and who asks; nothing is kept there without a bucket.
#[derive(Debug, Clone, Default)]
pub struct S3Settings {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub bucket: Option<String>,
    pub prefix: Option<String>,
    pub access_key_id: Option<Secret<String>>,
    pub secret_access_key: Option<Secret<String>>,
    pub force_path_style: Option<bool>,
}

impl S3Settings {
    /// What the store is opened with; `None` when checkpoints are not kept in S3.
    #[must_use]
    pub fn options(&self) -> Option<S3Options> {
        let secret = |secret: &Option<Secret<String>>| secret.as_ref().map(|secret| secret.reveal().clone());
        Some(S3Options {
            bucket: self.bucket.clone()?,
            endpoint: self.endpoint.clone(),
            region: self.region.clone().unwrap_or_else(|| defaults::S3_REGION.to_owned()),
            prefix: self.prefix.clone().unwrap_or_default(),
            access_key_id: secret(&self.access_key_id).unwrap_or_default(),
            secret_access_key: secret(&self.secret_access_key).unwrap_or_default(),
            // what is not Amazon's rarely has a name for each bucket
            force_path_style: self.force_path_style.unwrap_or(self.endpoint.is_some()),
        })
    }

    /// The name of a setting that has no effect without a bucket. Keys may be there for others.
    pub(super) fn without_bucket(&self) -> Option<&'static str> {
        let given = [
            ("s3_endpoint", self.endpoint.is_some()),
            ("s3_region", self.region.is_some()),
            ("s3_prefix", self.prefix.is_some()),
            ("s3_force_path_style", self.force_path_style.is_some()),
        ];
        given.into_iter().find(|(_, given)| *given && self.bucket.is_none()).map(|(name, _)| name)
    }
}
