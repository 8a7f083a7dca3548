//! How a registry is asked: the token that it wants is got first, so that what is amiss with that is told as that, and
//! looked at before it is used. Manifests are read here, with a bound; blobs by the client.

use std::{
    sync::Once,
    time::{Duration, Instant},
};

use oci_client::{
    Client, Reference, RegistryOperation,
    client::{ClientConfig, ClientProtocol},
    errors::{DigestError, OciDistributionError},
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    },
    secrets::RegistryAuth,
};
use reqwest::{StatusCode, header};
use sha2::{Digest, Sha256, Sha384, Sha512};
use tokio::sync::Mutex;

use crate::text::hex;

type Result<T> = std::result::Result<T, OciDistributionError>;

const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// How long a registry may send nothing.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// Tokens are good for at least a minute (specification of the distribution's tokens).
const FRESH: Duration = Duration::from_secs(45);
/// Manifests and configurations are some kilobytes; registries take up to 4 MiB (OCI distribution specification).
pub(crate) const TEXT_MOST: u64 = 4 << 20;
const USER_AGENT: &str = concat!("cloud-sandbox/", env!("CARGO_PKG_VERSION"));
const ACCEPTED: [&str; 4] =
    [OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE];

/// A registry, as somebody who wants one of its images.
pub(crate) struct Access {
    reference: Reference,
    credentials: RegistryAuth,
    plain_http: bool,
    texts: reqwest::Client,
    current: Mutex<Option<Current>>,
}

/// What the registry lets in at the moment.
#[derive(Clone)]
struct Current {
    blobs: Client,
    auth: RegistryAuth,
    since: Instant,
}

impl Access {
    pub(crate) fn new(reference: Reference, credentials: RegistryAuth, plain_http: bool) -> Result<Self> {
        static PROVIDER: Once = Once::new();
        // An error says that the process has one already.
        PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
        let texts = reqwest::Client::builder()
            .connect_timeout(CONNECT_WITHIN)
            .read_timeout(SILENT_FOR)
            .user_agent(USER_AGENT)
            .build()?;
        Ok(Self { reference, credentials, plain_http, texts, current: Mutex::default() })
    }

    /// A client that the registry lets in, and that asks for no token by itself.
    pub(crate) async fn blobs(&self) -> Result<Client> {
        Ok(self.current().await?.blobs)
    }

    async fn current(&self) -> Result<Current> {
        let mut current = self.current.lock().await;
        match &*current {
            Some(current) if current.since.elapsed() < FRESH => Ok(current.clone()),
            _ => Ok(current.insert(self.authorize().await?).clone()),
        }
    }

    async fn authorize(&self) -> Result<Current> {
        let since = Instant::now();
        let asking = self.client()?;
        let token = asking.auth(&self.reference, &self.credentials, RegistryOperation::Pull).await?;
        let (blobs, auth) = match (token, &self.credentials) {
            (Some(token), _) => {
                // the client panics over it
                if header::HeaderValue::from_str(&token).is_err() {
                    let why = "the token has characters that no header may have";
                    return Err(OciDistributionError::RegistryTokenDecodeError(why.to_owned()));
                }
                (self.client()?, RegistryAuth::Bearer(token))
            }
            (None, RegistryAuth::Anonymous) => {
                return Ok(Current { blobs: self.client()?, auth: RegistryAuth::Anonymous, since });
            }
            // it asks for name and password, if for anything
            (None, credentials) => (asking, credentials.clone()),
        };
        blobs.store_auth_if_needed(self.reference.resolve_registry(), &auth).await;
        Ok(Current { blobs, auth, since })
    }

    fn client(&self) -> Result<Client> {
        ClientConfig {
            protocol: if self.plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            connect_timeout: Some(CONNECT_WITHIN),
            read_timeout: Some(SILENT_FOR),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        }
        .try_into()
    }

    /// The text of a manifest, which is what the digests say that there are of it.
    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<Vec<u8>> {
        let scheme = if self.plain_http { "http" } else { "https" };
        let which = reference.digest().or(reference.tag()).unwrap_or("latest");
        let (registry, repository) = (reference.resolve_registry(), reference.repository());
        let url = format!("{scheme}://{registry}/v2/{repository}/manifests/{which}");
        let ask = || self.texts.get(&url).header(header::ACCEPT, ACCEPTED.join(", "));
        let mut answer = match &self.current().await?.auth {
            RegistryAuth::Bearer(token) => ask().bearer_auth(token).send().await?,
            RegistryAuth::Anonymous => ask().send().await?,
            RegistryAuth::Basic(user, password) => match ask().send().await? {
                answer if answer.status() != StatusCode::UNAUTHORIZED => answer,
                _ => ask().basic_auth(user, Some(password)).send().await?,
            },
        };
        let mut text = Vec::new();
        while let Some(piece) = answer.chunk().await? {
            if (text.len() + piece.len()) as u64 > TEXT_MOST {
                let why = format!("{url} answers with more than {TEXT_MOST} bytes");
                return Err(OciDistributionError::SpecViolationError(why));
            }
            text.extend_from_slice(&piece);
        }
        if answer.status() != StatusCode::OK {
            return Err(refusal(url, answer.status(), &text));
        }
        let told = answer.headers().get("Docker-Content-Digest").map(header::HeaderValue::to_str);
        let told = told.transpose().map_err(DigestError::from)?.filter(|digest| !digest.is_empty());
        for digest in told.into_iter().chain(reference.digest()) {
            check_digest(&text, digest)?;
        }
        Ok(text)
    }
}

/// What an answer means that is no manifest.
fn refusal(url: String, status: StatusCode, text: &[u8]) -> OciDistributionError {
    if status == StatusCode::UNAUTHORIZED {
        return OciDistributionError::UnauthorizedError { url };
    }
    match serde_json::from_slice(text) {
        Ok(envelope) if status.is_client_error() => OciDistributionError::RegistryError { envelope, url },
        _ => {
            let message = String::from_utf8_lossy(text).into_owned();
            OciDistributionError::ServerError { code: status.as_u16(), url, message }
        }
    }
}

fn check_digest(text: &[u8], expected: &str) -> std::result::Result<(), DigestError> {
    let (algorithm, _) = expected.split_once(':').ok_or(DigestError::MissingAlgorithm)?;
    let digits = match algorithm {
        "sha256" => hex(&Sha256::digest(text)),
        "sha384" => hex(&Sha384::digest(text)),
        "sha512" => hex(&Sha512::digest(text)),
        other => return Err(DigestError::UnsupportedAlgorithm(other.to_owned())),
    };
    let actual = format!("{algorithm}:{digits}");
    if actual == expected {
        return Ok(());
    }
    Err(DigestError::VerificationError { expected: expected.to_owned(), actual })
}
