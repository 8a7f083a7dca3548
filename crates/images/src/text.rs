//! Digests and numbers as text.

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
