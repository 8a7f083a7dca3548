//! How S3 is called: where it is, by whom, and how long is waited.

use std::{fmt, time::Duration};

use aws_sdk_s3::{
    Client,
    config::{
        BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
        StalledStreamProtectionConfig, retry::RetryConfig, timeout::TimeoutConfig,
    },
};
use aws_smithy_http_client::{
    Builder as HttpBuilder,
    tls::{Provider, rustls_provider::CryptoMode},
};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How long one attempt may take until it is answered, besides the time for what it sends.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// What a slow line still carries in a second.
const BYTES_PER_SECOND: usize = 1 << 20;
/// A body that stands still for so long has broken.
const STALLED_AFTER: Duration = Duration::from_secs(20);
/// They last for some seconds: a server that is being replaced is back by then.
const ATTEMPTS: u32 = 5;
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Sooner than whoever asks for a check gives up, so that it hears why.
const CHECK_WITHIN: Duration = Duration::from_millis(1500);

/// Where and as whom to keep checkpoints in S3.
#[derive(Clone, Default)]
pub struct S3Options {
    /// the server's URL; `None` for Amazon's own
    pub endpoint: Option<String>,
    /// the region that requests are signed for
    pub region: String,
    /// the bucket, which must be there
    pub bucket: String,
    /// what all names in it begin with, as a folder; empty for none
    pub prefix: String,
    /// the key's id
    pub access_key_id: String,
    /// the key
    pub secret_access_key: String,
    /// whether the bucket stands in the path, rather than in the host's name
    pub force_path_style: bool,
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, region, bucket, prefix, force_path_style, .. } = self;
        let mut options = f.debug_struct("S3Options");
        options.field("endpoint", endpoint).field("region", region).field("bucket", bucket);
        options.field("prefix", prefix).field("force_path_style", force_path_style).finish_non_exhaustive()
    }
}

pub(super) fn make(options: &S3Options) -> Client {
    let S3Options { access_key_id, secret_access_key, .. } = options;
    let credentials = Credentials::new(access_key_id, secret_access_key, None, None, "settings of cloud-sandbox");
    let http = HttpBuilder::new();
    let http = match &options.endpoint {
        // without the certificates, which a machine may not have
        Some(endpoint) if endpoint.starts_with("http://") => http.build_http(),
        _ => http.tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https(),
    };
    let stalled = StalledStreamProtectionConfig::enabled().grace_period(STALLED_AFTER).build();
    let retries = RetryConfig::standard().with_max_attempts(ATTEMPTS);
    let retries = retries.with_initial_backoff(PAUSE_MIN).with_max_backoff(PAUSE_MAX);
    let mut config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(options.region.clone()))
        .credentials_provider(credentials)
        .http_client(http)
        .force_path_style(options.force_path_style)
        .retry_config(retries)
        .timeout_config(answered_within(ANSWER_WITHIN))
        .stalled_stream_protection(stalled)
        // servers that are older than these sums refuse what has one; the signature covers the content anyway
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    config.set_endpoint_url(options.endpoint.clone());
    Client::from_conf(config.build())
}

fn answered_within(time: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().connect_timeout(CONNECT_WITHIN).operation_attempt_timeout(time).build()
}

/// For a call that sends `length` bytes: a slow line is no failure.
pub(super) fn with_time_for(length: usize) -> Builder {
    let sending = Duration::from_secs((length / BYTES_PER_SECOND) as u64);
    aws_sdk_s3::Config::builder().timeout_config(answered_within(ANSWER_WITHIN + sending))
}

/// For a call whose failure is news, and so is neither waited for nor tried again.
pub(super) fn at_once() -> Builder {
    let config = aws_sdk_s3::Config::builder().timeout_config(answered_within(CHECK_WITHIN));
    config.retry_config(RetryConfig::disabled())
}
