//! Path templates of `google.api.http`: `/v1/{name=shelves/*/**}/books/{id}:verb`.
//! Source: google/api/http.proto, "Path template syntax".

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Literal(String),
    /// `*`: one segment that is not empty
    One,
    /// `**`: all that is left
    Rest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Variable {
    field: String,
    start: usize,
    end: usize,
}

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    text: String,
    segments: Vec<Segment>,
    variables: Vec<Variable>,
    verb: Option<String>,
}

impl Template {
    /// Reads a template; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix('/').ok_or("a path begins with '/'")?;
        let (rest, verb) = match rest.rfind(':') {
            Some(at) if !rest[at..].contains(['/', '}']) => (&rest[..at], Some(rest[at + 1..].to_owned())),
            _ => (rest, None),
        };
        let mut template = Self { text: text.to_owned(), segments: Vec::new(), variables: Vec::new(), verb };
        for piece in split_outside_braces(rest) {
            let Some(variable) = piece.strip_prefix('{') else {
                template.segments.push(segment(piece)?);
                continue;
            };
            let variable = variable.strip_suffix('}').ok_or("a variable ends with '}'")?;
            let (field, pattern) = variable.split_once('=').unwrap_or((variable, "*"));
            let start = template.segments.len();
            for part in pattern.split('/') {
                template.segments.push(segment(part)?);
            }
            template.variables.push(Variable { field: field.to_owned(), start, end: template.segments.len() });
        }
        let rest_before_end = template.segments.iter().rev().skip(1).any(|segment| *segment == Segment::Rest);
        if rest_before_end { Err("'**' can only come last".to_owned()) } else { Ok(template) }
    }

    /// The template as written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The template with plain variables, as OpenAPI writes paths: `/v1/{name}/books/{id}:verb`.
    pub fn plain(&self) -> String {
        let mut path = String::new();
        let mut at = 0;
        while at < self.segments.len() {
            path.push('/');
            if let Some(variable) = self.variables.iter().find(|variable| variable.start == at) {
                path.push_str(&format!("{{{}}}", variable.field));
                at = variable.end;
                continue;
            }
            path.push_str(match &self.segments[at] {
                Segment::Literal(text) => text,
                Segment::One => "*",
                Segment::Rest => "**",
            });
            at += 1;
        }
        if let Some(verb) = &self.verb {
            path.push(':');
            path.push_str(verb);
        }
        path
    }

    /// The fields that the path sets.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.variables.iter().map(|variable| variable.field.as_str())
    }

    /// Orders templates so that the first that matches is the most specific.
    pub fn specificity(&self) -> (bool, Vec<u8>) {
        let rank = |segment: &Segment| match segment {
            Segment::Literal(_) => 0,
            Segment::One => 1,
            Segment::Rest => 2,
        };
        (self.verb.is_none(), self.segments.iter().map(rank).collect())
    }

    /// The values of the variables, when `path` (decoded segments) matches.
    pub fn matches(&self, path: &[Cow<'_, str>]) -> Option<Vec<(&str, String)>> {
        let verbless = match &self.verb {
            Some(verb) => Some(path.last()?.strip_suffix(verb.as_str())?.strip_suffix(':')?),
            None => None,
        };
        let part = |at: usize| match verbless {
            Some(last) if at + 1 == path.len() => last,
            _ => path[at].as_ref(),
        };
        let open_ended = self.segments.last() == Some(&Segment::Rest);
        let fixed = self.segments.len() - usize::from(open_ended);
        if path.len() < fixed || (!open_ended && path.len() > fixed) {
            return None;
        }
        let fits = |(at, segment): (usize, &Segment)| match segment {
            Segment::Literal(text) => part(at) == text,
            Segment::One => !part(at).is_empty(),
            Segment::Rest => true,
        };
        if !self.segments[..fixed].iter().enumerate().all(fits) {
            return None;
        }
        let values = self.variables.iter().map(|variable| {
            let end = if open_ended && variable.end == self.segments.len() { path.len() } else { variable.end };
            let parts: Vec<_> = (variable.start..end).map(part).collect();
            (variable.field.as_str(), parts.join("/"))
        });
        Some(values.collect())
    }
}

/// A request path as decoded segments; `None` when it is not UTF-8.
pub fn segments(path: &str) -> Option<Vec<Cow<'_, str>>> {
    let path = path.strip_prefix('/')?;
    path.split('/').map(|segment| percent_decode_str(segment).decode_utf8().ok()).collect()
}

fn segment(text: &str) -> Result<Segment, String> {
    match text {
        "*" => Ok(Segment::One),
        "**" => Ok(Segment::Rest),
        "" => Err("a segment is empty".to_owned()),
        literal if literal.contains(['{', '}', '*', '=']) => Err(format!("segment '{literal}' is malformed")),
        literal => Ok(Segment::Literal(literal.to_owned())),
    }
}

fn split_outside_braces(text: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            '{' => inside = true,
            '}' => inside = false,
            '/' if !inside => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matched(template: &str, path: &str) -> Option<Vec<(String, String)>> {
        let template = Template::parse(template).unwrap();
        let found = template.matches(&segments(path).unwrap())?;
        Some(found.into_iter().map(|(field, value)| (field.to_owned(), value)).collect())
    }

    fn pairs(pairs: &[(&str, &str)]) -> Option<Vec<(String, String)>> {
        Some(pairs.iter().map(|(field, value)| ((*field).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn variables_take_their_segments() {
        assert_eq!(matched("/v1/a", "/v1/a"), pairs(&[]));
        assert_eq!(matched("/v1/{id}/pause", "/v1/7/pause"), pairs(&[("id", "7")]));
        assert_eq!(matched("/v1/{n=x/*/**}", "/v1/x/y/z/w"), pairs(&[("n", "x/y/z/w")]));
        assert_eq!(matched("/v1/{n=x/**}", "/v1/x"), pairs(&[("n", "x")]));
        assert_eq!(matched("/v1/{id}:stop", "/v1/a:b:stop"), pairs(&[("id", "a:b")]));
        assert_eq!(matched("/v1/{a.b}", "/v1/%C3%A9%2F"), pairs(&[("a.b", "é/")]));
    }

    #[test]
    fn other_paths_do_not_match() {
        for (template, path) in [
            ("/v1/a", "/v1/a/"),
            ("/v1/a", "/v1"),
            ("/v1/{id}", "/v1/"),
            ("/v1/{id}", "/v1/a/b"),
            ("/v1/{id}:stop", "/v1/a"),
            ("/v1/{n=x/*}", "/v1/y/z"),
        ] {
            assert_eq!(matched(template, path), None, "{template} {path}");
        }
        assert_eq!(segments("/%ff"), None);
    }

    #[test]
    fn malformed_templates_are_refused() {
        for text in ["a", "/a//b", "/{a", "/**/a", "/a{b}", "/{a=}"] {
            assert!(Template::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn openapi_path_has_plain_variables() {
        assert_eq!(Template::parse("/v1/{n=x/*/**}").unwrap().plain(), "/v1/{n}");
        assert_eq!(Template::parse("/v1/{id}/a:go").unwrap().plain(), "/v1/{id}/a:go");
    }
}
