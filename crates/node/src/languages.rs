//! The languages that `code` may be in: which program runs a file of it, and with what environment.

use std::collections::HashMap;

/// Stands for the staged file in a language's words.
const FILE: &str = "{file}";
/// Stands for the folder to run in.
const CWD: &str = "{cwd}";

/// Runs a file as `node FILE` would, but as if it lay in the current folder: `require`, `import()`, `__dirname` start
/// there. Modules (`import`, top-level `await`) cannot be run as a script; for them the code is loaded again as what it
/// is. Types of TypeScript are stripped first. The warnings that are kept back are about our own use of `vm` and `module`.
const NODE_BOOT: &str = r"{
const fs = require('fs'), vm = require('vm'), path = require('path'), file = process.argv[1];
const text = fs.readFileSync(file, 'utf8'), strip = file.endsWith('.ts') && require('module').stripTypeScriptTypes;
const warn = process.emitWarning;
process.emitWarning = function (warning, ...rest) {
  if (!/^(vm.USE_MAIN_CONTEXT|stripTypeScriptTypes)/.test(String(warning))) warn.call(process, warning, ...rest);
};
const code = strip ? strip(text) : text;
const importModuleDynamically = vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER;
let script;
try {
  script = new vm.Script(code, { filename: file, importModuleDynamically });
} catch (error) {
  if (!(error instanceof SyntaxError) || !/\b(import|export|await)\b/.test(error.message)) throw error;
}
if (script) {
  require.main = module;
  globalThis.__dirname = process.cwd();
  globalThis.__filename = path.join(__dirname, path.basename(file));
  script.runInThisContext();
} else {
  const module = file.replace(/\.[jt]s$/, '.mjs');
  fs.writeFileSync(module, code);
  try { fs.symlinkSync(path.resolve('node_modules'), path.join(path.dirname(file), 'node_modules')); } catch {}
  import(require('url').pathToFileURL(module).href);
}
}";

/// Whether this Node strips types, as its exit code.
const NODE_STRIPS_TYPES: &str = "process.exit(require('module').stripTypeScriptTypes ? 0 : 1)";

/// `go run` would turn every exit code into 1.
const GO_BUILD_AND_RUN: &str = r#"go build -o "$1.bin" "$1" && exec "$1.bin""#;

/// A language.
#[derive(Debug)]
pub(crate) struct Language {
    pub(crate) name: &'static str,
    aliases: &'static [&'static str],
    /// what must be there
    pub(crate) program: &'static str,
    /// the name of the staged file
    pub(crate) file: &'static str,
    argv: &'static [&'static str],
    /// what it is called, where that says too little
    needs: &'static str,
    /// run first to see whether `program` is there, where `argv` begins with another one
    pub(crate) probe: Option<&'static [&'static str]>,
    /// `probe` also has to succeed
    pub(crate) probe_decides: bool,
    /// variables that are set unless the caller sets them
    env: &'static [(&'static str, &'static str)],
    /// variables that the folder to run in is put in front of
    search: &'static [&'static str],
}

const PLAIN: Language = Language {
    name: "",
    aliases: &[],
    program: "",
    file: "",
    argv: &[],
    needs: "",
    probe: None,
    probe_decides: false,
    env: &[],
    search: &[],
};

static LANGUAGES: &[Language] = &[
    Language {
        name: "python",
        aliases: &["py", "python3"],
        program: "python3",
        file: "main.py",
        argv: &["python3", FILE],
        search: &["PYTHONPATH"],
        ..PLAIN
    },
    Language {
        name: "javascript",
        aliases: &["js", "node", "nodejs"],
        program: "node",
        file: "main.js",
        argv: &["node", "-e", NODE_BOOT, FILE],
        ..PLAIN
    },
    Language {
        name: "typescript",
        aliases: &["ts"],
        program: "node",
        file: "main.ts",
        argv: &["node", "-e", NODE_BOOT, FILE],
        needs: "node that strips types (22.13 and later)",
        probe: Some(&["node", "-e", NODE_STRIPS_TYPES]),
        probe_decides: true,
        ..PLAIN
    },
    Language {
        name: "go",
        aliases: &["golang"],
        program: "go",
        file: "main.go",
        argv: &["sh", "-c", GO_BUILD_AND_RUN, "go", FILE],
        probe: Some(&["go", "version"]),
        env: &[("GOTOOLCHAIN", "local"), ("GOTELEMETRY", "off")],
        ..PLAIN
    },
    Language { name: "bash", aliases: &["shell"], program: "bash", file: "main.sh", argv: &["bash", FILE], ..PLAIN },
    Language { name: "sh", program: "sh", file: "main.sh", argv: &["sh", FILE], ..PLAIN },
    Language {
        name: "ruby",
        aliases: &["rb"],
        program: "ruby",
        file: "main.rb",
        argv: &["ruby", "-I", CWD, FILE],
        ..PLAIN
    },
    Language {
        name: "perl",
        aliases: &["pl"],
        program: "perl",
        file: "main.pl",
        argv: &["perl", "-I", CWD, FILE],
        ..PLAIN
    },
    Language { name: "php", program: "php", file: "main.php", argv: &["php", FILE], ..PLAIN },
    Language { name: "lua", program: "lua", file: "main.lua", argv: &["lua", FILE], ..PLAIN },
];

impl Language {
    /// The language of a name or another name for it; the default one of no name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        let wanted = if name.is_empty() { "python" } else { name };
        LANGUAGES.iter().find(|language| language.name == wanted || language.aliases.contains(&wanted))
    }

    /// What must be there, for a message.
    pub(crate) fn needs(&self) -> &'static str {
        if self.needs.is_empty() { self.program } else { self.needs }
    }

    /// What `find` knows, for a message.
    pub(crate) fn known() -> String {
        let names: Vec<_> = LANGUAGES.iter().map(|language| language.name).collect();
        names.join(", ")
    }

    /// The words that run `file` in `cwd`.
    pub(crate) fn argv(&self, file: &str, cwd: &str) -> Vec<String> {
        let fill = |word: &&str| match *word {
            FILE => file.to_owned(),
            CWD => cwd.to_owned(),
            word => word.to_owned(),
        };
        self.argv.iter().map(fill).collect()
    }

    /// Puts into `env` what the language needs.
    pub(crate) fn prepare(&self, env: &mut HashMap<String, String>, cwd: &str) {
        for (name, value) in self.env {
            env.entry((*name).to_owned()).or_insert_with(|| (*value).to_owned());
        }
        for name in self.search {
            let given = env.get(*name).filter(|given| !given.is_empty());
            let path = given.map_or_else(|| cwd.to_owned(), |given| format!("{cwd}:{given}"));
            env.insert((*name).to_owned(), path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_name_and_alias_means_one_language() {
        let mut seen = HashSet::new();
        for language in LANGUAGES {
            for name in language.aliases.iter().chain([&language.name]) {
                assert!(seen.insert(*name), "{name}");
                assert_eq!(Language::find(name).unwrap().name, language.name);
            }
            assert!(language.argv.contains(&FILE), "{}", language.name);
            assert_eq!(language.probe.unwrap_or(language.argv)[0], language.program);
        }
        assert_eq!(Language::find("").unwrap().name, "python");
        assert!(Language::find("cobol").is_none() && Language::find("Python").is_none());
    }

    #[test]
    fn templates_may_list_each_language_and_no_other() {
        let names: Vec<_> = LANGUAGES.iter().map(|language| language.name).collect();
        assert_eq!(names, cloud_sandbox_model::template::LANGUAGES);
    }

    #[test]
    fn current_folder_is_searched_before_what_the_caller_gave() {
        let python = Language::find("python").unwrap();
        let mut env = HashMap::new();
        python.prepare(&mut env, "/workspace");
        assert_eq!(env["PYTHONPATH"], "/workspace");
        env.insert("PYTHONPATH".into(), "/libs".into());
        python.prepare(&mut env, "/workspace");
        assert_eq!(env["PYTHONPATH"], "/workspace:/libs");
        assert_eq!(Language::find("rb").unwrap().argv("/tmp/m.rb", "/w"), ["ruby", "-I", "/w", "/tmp/m.rb"]);
    }

    #[test]
    fn caller_may_set_what_a_language_sets() {
        let mut env = HashMap::from([("GOTOOLCHAIN".to_owned(), "auto".to_owned())]);
        Language::find("golang").unwrap().prepare(&mut env, "/workspace");
        assert_eq!(env["GOTOOLCHAIN"], "auto");
        assert_eq!(env["GOTELEMETRY"], "off");
    }
}
