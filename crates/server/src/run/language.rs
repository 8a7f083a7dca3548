//! Which language a file is in.

use std::path::Path;

use anyhow::bail;

/// Languages, and the file names that tell them.
const LANGUAGES: [(&str, &[&str]); 9] = [
    ("python", &["py"]),
    ("javascript", &["js", "mjs", "cjs"]),
    ("go", &["go"]),
    ("bash", &["bash", "sh"]),
    ("sh", &[]),
    ("ruby", &["rb"]),
    ("perl", &["pl"]),
    ("php", &["php"]),
    ("lua", &["lua"]),
];

/// The language asked for, or the one that the file's name tells. Whether a sandbox has it is the server's to say.
pub(super) fn of(given: Option<&str>, file: &str) -> anyhow::Result<String> {
    if let Some(language) = given {
        return Ok(language.to_owned());
    }
    let extension = Path::new(file).extension().and_then(|extension| extension.to_str());
    let known = extension.and_then(|extension| LANGUAGES.iter().find(|(_, names)| names.contains(&extension)));
    if let Some((language, _)) = known {
        return Ok((*language).to_owned());
    }
    let all: Vec<_> = LANGUAGES.iter().map(|(language, _)| *language).collect();
    let name = if file == "-" { "standard input" } else { file };
    bail!("cannot tell the language of {name}; give --language, one of {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn language_is_the_one_given_or_the_one_of_the_name() {
        assert_eq!(of(Some("cobol"), "x.py").unwrap(), "cobol");
        assert_eq!(of(None, "a/b.c/x.mjs").unwrap(), "javascript");
        for file in ["-", "x", "x.", "x.txt", ".py"] {
            let text = of(None, file).unwrap_err().to_string();
            assert!(text.contains("python, javascript, go"), "{text}");
        }
    }
}
