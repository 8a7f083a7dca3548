//! The interpreters of code contexts: which program runs which of our scripts.

use std::{collections::HashMap, sync::LazyLock};

use bytes::Bytes;
use cloud_sandbox_model::error::{Error, Result};

use crate::languages::Language;

/// An interpreter of a language.
#[derive(Debug)]
pub(super) struct Kernel {
    /// the language of its contexts
    pub(super) language: &'static str,
    /// what must be there
    pub(super) program: &'static str,
    /// the name of the staged script
    file: &'static str,
    script: fn() -> &'static str,
    /// what saves and loads its variables, sent when it is wanted
    pub(super) values: &'static str,
    /// what it is told of code in this language; nothing when there is only one
    pub(super) told: Option<&'static str>,
}

/// How the Python program asks for its other part, which is put in the place of this line.
const PYTHON_IMPORT: &str = "from python_format import ";

static PYTHON: LazyLock<String> = LazyLock::new(|| {
    let (before, rest) = include_str!("python.py").split_once(PYTHON_IMPORT).expect("a test looks for the line");
    let after = rest.split_once('\n').map_or("", |(_, after)| after);
    [before, include_str!("python_format.py"), after].concat()
});

const JAVASCRIPT: Kernel = Kernel {
    language: "javascript",
    program: "node",
    file: "kernel.cjs",
    script: || include_str!("javascript.cjs"),
    values: include_str!("javascript_values.cjs"),
    told: Some("javascript"),
};

static KERNELS: [Kernel; 3] = [
    Kernel {
        language: "python",
        program: "python3",
        file: "kernel.py",
        script: || PYTHON.as_str(),
        values: include_str!("python_values.py"),
        told: None,
    },
    JAVASCRIPT,
    Kernel { language: "typescript", told: Some("typescript"), ..JAVASCRIPT },
];

impl Kernel {
    /// The kernel for a language by its name or another name for it; the default one for no name.
    pub(super) fn find(field: &str, name: &str) -> Result<&'static Self> {
        let language = Language::find(name).map(|language| language.name);
        let found = KERNELS.iter().find(|kernel| Some(kernel.language) == language);
        found.ok_or_else(|| {
            let known = KERNELS.each_ref().map(|kernel| kernel.language).join(", ");
            Error::invalid(field, format!("must be one of {known} for a code context"))
        })
    }

    /// Whether contexts of this language run code of the other too.
    pub(super) fn runs(&self, other: &Self) -> bool {
        self.program == other.program
    }

    /// Puts into `env` what the language needs.
    pub(super) fn prepare(&self, env: &mut HashMap<String, String>, cwd: &str) {
        if let Some(language) = Language::find(self.language) {
            language.prepare(env, cwd);
        }
    }

    /// The words that run the script in `folder`, where it is staged, and its content.
    pub(super) fn staged(&self, folder: &str) -> (Vec<String>, String, Bytes) {
        let path = format!("{folder}/{}", self.file);
        (vec![self.program.to_owned(), path.clone()], path, Bytes::from_static((self.script)().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_program_is_one_file_of_its_parts() {
        assert!(PYTHON.contains("class Formatter") && PYTHON.contains("class Kernel"));
        assert!(!PYTHON.contains("python_format"));
    }

    #[test]
    fn every_kernel_is_found_by_the_names_of_its_language() {
        for (name, language) in
            [("", "python"), ("py", "python"), ("js", "javascript"), ("node", "javascript"), ("ts", "typescript")]
        {
            assert_eq!(Kernel::find("language", name).unwrap().language, language);
        }
        for name in ["bash", "cobol"] {
            assert_eq!(Kernel::find("language", name).unwrap_err().violations()[0].field, "language");
        }
    }
}
