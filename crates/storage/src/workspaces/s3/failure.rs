//! What went wrong, from what the client says.
//!
//! Invariant: of an answer its status, code and message are kept alone. The rest may hold what the request was signed
//! with.

use std::error::Error as StdError;

use aws_sdk_s3::{
    config::http::HttpResponse,
    error::{ProvideErrorMetadata, SdkError},
};
use cloud_sandbox_model::error::chain;

use crate::error::StorageError;

pub(super) const STORE: &str = "s3";

/// What no retry changes: who asks, and what for. Source: the S3 API reference, "Error responses".
const REFUSALS: [&str; 13] = [
    "AccessDenied",
    "AccountProblem",
    "AllAccessDisabled",
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidBucketName",
    "InvalidToken",
    "NoSuchBucket",
    "NotSignedUp",
    "PermanentRedirect",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
];
/// A server without room: MinIO, Ceph, and those that speak of a quota.
const FULL: [&str; 4] = ["InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded"];
/// A server that cannot delete many at once, or not as we ask it to.
const TOO_MUCH: [&str; 5] =
    ["InvalidDigest", "InvalidRequest", "MissingContentMD5", "NotImplemented", "MethodNotAllowed"];

const INSUFFICIENT_STORAGE: u16 = 507;

pub(super) fn unavailable(error: impl Into<Box<dyn StdError + Send + Sync>>) -> StorageError {
    StorageError::Unavailable { store: STORE, source: error.into() }
}

fn status<E>(error: &SdkError<E, HttpResponse>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

pub(super) fn failed<E>(error: &SdkError<E, HttpResponse>, bucket: &str) -> StorageError
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let SdkError::ServiceError(answer) = error else {
        return unavailable(chain(error));
    };
    let (code, message) = (answer.err().code(), answer.err().message());
    match (code, status(error)) {
        (Some("NoSuchBucket"), _) | (None | Some("NotFound"), Some(404)) => {
            StorageError::Refused { store: STORE, what: format!("there is no bucket {bucket:?}") }
        }
        // without a word, as to a request for a head
        (None, Some(status @ (301 | 401 | 403))) => {
            StorageError::Refused { store: STORE, what: format!("status {status}") }
        }
        (None, Some(INSUFFICIENT_STORAGE)) => full("status 507".to_owned()),
        (None, Some(status)) => unavailable(format!("status {status}")),
        (code, _) => of_code(code, message),
    }
}

/// The failure that an answer's code stands for.
pub(super) fn of_code(code: Option<&str>, message: Option<&str>) -> StorageError {
    let code = code.unwrap_or("no code");
    let text = message.map_or_else(|| code.to_owned(), |message| format!("{code}: {message}"));
    if REFUSALS.contains(&code) {
        StorageError::Refused { store: STORE, what: text }
    } else if FULL.contains(&code) {
        full(text)
    } else {
        unavailable(text)
    }
}

fn full(text: String) -> StorageError {
    StorageError::Full { store: STORE, source: text.into() }
}

/// Whether the object is not there. A mere 404 to a download may be of something in between, and would pass for a
/// checkpoint that is lost.
pub(super) fn is_missing<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    matches!(code, Some("NoSuchKey")) || (matches!(code, Some("NotFound")) && status(error) == Some(404))
}

/// Whether the object ends before the range begins.
pub(super) fn is_out_of_range<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    code == Some("InvalidRange") || status(error) == Some(416)
}

/// Whether the server wants to be asked for one deletion at a time.
pub(super) fn asks_for_less<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let code = error.as_service_error().and_then(ProvideErrorMetadata::code);
    code.is_some_and(|code| TOO_MUCH.contains(&code)) || matches!(status(error), Some(405 | 501))
}
