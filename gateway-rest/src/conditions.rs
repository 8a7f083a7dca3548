//! Conditional requests (RFC 9110, section 13): whether a file is sent, by what the caller knows of it, and on what
//! condition a file is written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cloud_sandbox_model::error::Error;
use http::{
    HeaderMap, HeaderName,
    header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE},
};
use prost_reflect::{DynamicMessage, ReflectMessage, Value};

/// The request field that holds a condition on a write.
const IF_ETAG: &str = "if_etag";
/// The condition that nothing is there yet.
const NONE: &str = "*none";

/// What a file is known by.
#[derive(Debug, Clone, Copy)]
pub struct Validators<'a> {
    /// without quotes; empty where there is none
    pub etag: &'a str,
    pub modified: Option<SystemTime>,
}

/// What a read's conditions come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Send,
    NotModified,
    Failed,
}

impl Validators<'_> {
    /// Whether the file is sent, in the order of section 13.2.2.
    pub fn judge(self, headers: &HeaderMap) -> Verdict {
        let unchanged_since = |date: SystemTime| self.modified.is_none_or(|modified| whole_second(modified) <= date);
        let matched = match list(headers, &IF_MATCH) {
            Some(tags) => Some(tags.iter().any(|tag| self.is_strongly(tag))),
            None => date(headers, &IF_UNMODIFIED_SINCE).map(unchanged_since),
        };
        if matched == Some(false) {
            return Verdict::Failed;
        }
        let known = match list(headers, &IF_NONE_MATCH) {
            Some(tags) => tags.iter().any(|tag| self.is_strongly(tag.strip_prefix("W/").unwrap_or(tag))),
            None => self.modified.is_some() && date(headers, &IF_MODIFIED_SINCE).is_some_and(unchanged_since),
        };
        if known { Verdict::NotModified } else { Verdict::Send }
    }

    /// Whether a range is of the file that the caller has a part of. A date is too coarse to tell.
    pub fn allow_range(self, headers: &HeaderMap) -> bool {
        let Some(validator) = headers.get(IF_RANGE) else { return true };
        validator.to_str().is_ok_and(|tag| tag != "*" && self.is_strongly(tag.trim()))
    }

    fn is_strongly(self, tag: &str) -> bool {
        match tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')) {
            Some(tag) => !self.etag.is_empty() && tag == self.etag,
            None => tag == "*",
        }
    }
}

/// Puts the condition of `If-Match` or `If-None-Match` into a request to write, where it takes one. Says whether there
/// was one.
pub fn demand(message: &mut DynamicMessage, headers: &HeaderMap) -> Result<bool, Error> {
    let Some(field) = message.descriptor().get_field_by_name(IF_ETAG) else { return Ok(false) };
    let wanted = match (list(headers, &IF_MATCH), list(headers, &IF_NONE_MATCH)) {
        (None, None) => return Ok(false),
        (Some(tags), None) => match tags[..] {
            [tag] => tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).filter(|tag| !tag.is_empty()),
            _ => None,
        },
        (None, Some(tags)) => (tags == ["*"]).then_some(NONE),
        _ => None,
    };
    let Some(wanted) = wanted else {
        return Err(Error::invalid(IF_ETAG, "must come as If-Match with one strong etag, or as If-None-Match: *"));
    };
    if message.has_field(&field) {
        return Err(Error::invalid(IF_ETAG, "is set by a header"));
    }
    message.set_field(&field, Value::String(wanted.to_owned()));
    Ok(true)
}

/// A header's elements. Etags with commas do not exist here.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Vec<&'a str>> {
    if !headers.contains_key(name) {
        return None;
    }
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    Some(values.flat_map(|value| value.split(',')).map(str::trim).filter(|tag| !tag.is_empty()).collect())
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
}

/// Dates in headers have no fractions of a second.
fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const BEFORE: &str = "Tue, 14 Nov 2023 22:13:19 GMT";
    const SAME: &str = "Tue, 14 Nov 2023 22:13:20 GMT";

    fn validators() -> Validators<'static> {
        let modified = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        Validators { etag: "a-1", modified: Some(modified) }
    }

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn reads_are_judged_by_etag_before_date() {
        for (pairs, verdict) in [
            (&[][..], Verdict::Send),
            (&[(IF_MATCH, "\"a-1\"")], Verdict::Send),
            (&[(IF_MATCH, "\"x\", \"a-1\"")], Verdict::Send),
            (&[(IF_MATCH, "*")], Verdict::Send),
            (&[(IF_MATCH, "\"x\"")], Verdict::Failed),
            (&[(IF_MATCH, "W/\"a-1\"")], Verdict::Failed),
            (&[(IF_MATCH, "\"a-1\""), (IF_UNMODIFIED_SINCE, BEFORE)], Verdict::Send),
            (&[(IF_UNMODIFIED_SINCE, BEFORE)], Verdict::Failed),
            (&[(IF_UNMODIFIED_SINCE, SAME)], Verdict::Send),
            (&[(IF_NONE_MATCH, "\"a-1\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "W/\"a-1\"")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "*")], Verdict::NotModified),
            (&[(IF_NONE_MATCH, "\"x\"")], Verdict::Send),
            (&[(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, SAME)], Verdict::Send),
            (&[(IF_MODIFIED_SINCE, SAME)], Verdict::NotModified),
            (&[(IF_MODIFIED_SINCE, BEFORE)], Verdict::Send),
            (&[(IF_MODIFIED_SINCE, "yesterday")], Verdict::Send),
            (&[(IF_MATCH, "\"x\""), (IF_NONE_MATCH, "\"a-1\"")], Verdict::Failed),
        ] {
            assert_eq!(validators().judge(&headers(pairs)), verdict, "{pairs:?}");
        }
    }

    #[test]
    fn range_stands_only_with_the_etag_of_the_file() {
        for (value, stands) in [("\"a-1\"", true), ("W/\"a-1\"", false), ("\"x\"", false), (SAME, false), ("*", false)]
        {
            assert_eq!(validators().allow_range(&headers(&[(IF_RANGE, value)])), stands, "{value}");
        }
        assert!(validators().allow_range(&headers(&[])));
    }
}
