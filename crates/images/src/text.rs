//! Digests as text, and what others have to say.

use cloud_sandbox_model::error::said;

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The name of a layer's folder; none unless it is a digest of a known kind, which is safe as a name.
pub(crate) fn layer_name(digest: &str) -> Option<String> {
    let (kind, digits) = digest.split_once(':')?;
    let length = match kind {
        "sha256" => 64,
        "sha512" => 128,
        _ => return None,
    };
    let good = digits.len() == length && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| format!("{kind}-{digits}"))
}

/// What an error and its causes say, as [`said`].
pub(crate) fn said_by(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let text = causes.reduce(|text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") });
    said(&text.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digests_become_names() {
        let digits = hex(&[0xab; 32]);
        assert_eq!(layer_name(&format!("sha256:{digits}")), Some(format!("sha256-{digits}")));
        for bad in ["", "sha256:", "sha256:../x", "md5:00", &format!("sha256:{}", digits.to_uppercase()), &digits] {
            assert_eq!(layer_name(bad), None, "{bad}");
        }
    }
}
