//! Page tokens: the id that a page ends with, in a form that callers do not take apart.

use std::{fmt::Display, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use cloud_sandbox_model::{Error, Result};

/// The token of the page after `last`.
#[must_use]
pub fn token_after(last: impl Display) -> String {
    URL_SAFE_NO_PAD.encode(last.to_string())
}

/// The id that the page of `token` begins after; `None` for the first page.
pub fn after<T: FromStr>(token: &str) -> Result<Option<T>> {
    if token.is_empty() {
        return Ok(None);
    }
    let id = URL_SAFE_NO_PAD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok()?.parse().ok());
    id.map(Some).ok_or_else(|| Error::invalid("page_token", "must be the next_page_token of an earlier answer"))
}

/// Cuts `found`, which was looked for with one more than `size`, to a page, and gives the token of the next.
pub fn cut<T, I: Display>(found: &mut Vec<T>, size: usize, id: impl Fn(&T) -> I) -> String {
    if found.len() <= size {
        return String::new();
    }
    found.truncate(size);
    found.last().map(|last| token_after(id(last))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_model::{SandboxId, SessionId};

    use super::*;

    #[test]
    fn token_leads_to_where_the_page_ended() {
        let ids: Vec<_> = std::iter::repeat_with(SandboxId::generate).take(3).collect();
        let mut page = ids.clone();
        let token = cut(&mut page, 2, |id| *id);
        assert_eq!((page.len(), after(&token).unwrap()), (2, Some(ids[1])));
        assert_eq!(cut(&mut page, 2, |id| *id), "");
        assert_eq!(after::<SandboxId>("").unwrap(), None);
    }

    #[test]
    fn foreign_token_is_refused() {
        for token in ["x", "!!", "aGVsbG8", &token_after(SessionId::generate())] {
            assert_eq!(after::<SandboxId>(token).unwrap_err().violations()[0].field, "page_token", "{token}");
        }
    }
}
