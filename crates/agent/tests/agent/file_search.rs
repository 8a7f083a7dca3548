//! Searches.

use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt, os::unix::fs::symlink};

use cloud_sandbox_proto::v1::{SearchFilesRequest, SearchFilesResponse};
use tonic::{Code, Response, Status};

use crate::files::{Files, code, fifo};

impl Files {
    async fn search(&self, request: SearchFilesRequest) -> Result<SearchFilesResponse, Status> {
        let request = SearchFilesRequest { path: self.path("d"), ..request };
        self.client.clone().search_files(request).await.map(Response::into_inner)
    }

    /// Where the pattern was found: path, line and text.
    async fn found(&self, glob: &str, pattern: &str, ignore_case: bool) -> Vec<(String, u64, String)> {
        let (glob, pattern) = (glob.to_owned(), pattern.to_owned());
        let request = SearchFilesRequest { glob, pattern, ignore_case, ..Default::default() };
        let root = format!("{}/", self.path("d"));
        let found = self.search(request).await.unwrap().matches;
        found.into_iter().map(|it| (it.path.strip_prefix(&root).unwrap().to_owned(), it.line_number, it.line)).collect()
    }
}

async fn with(files: &[(&str, &[u8])]) -> Files {
    let agent = Files::start().await;
    for (name, content) in files {
        let path = agent.folder().join("d").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    agent
}

fn line(path: &str, number: u64, line: &str) -> (String, u64, String) {
    (path.to_owned(), number, line.to_owned())
}

#[tokio::test]
async fn names_and_lines_are_found_in_order() {
    let agent = with(&[("b.rs", b"fn main() {}\n"), ("a/x.rs", b"one\r\nfn two\nlast fn"), ("c.txt", b"fn\n")]).await;
    assert_eq!(agent.found("*.rs", "", false).await, [line("a/x.rs", 0, ""), line("b.rs", 0, "")]);
    let found = agent.found("**/*.rs", r"\bfn\b", false).await;
    assert_eq!(found, [line("a/x.rs", 2, "fn two"), line("a/x.rs", 3, "last fn"), line("b.rs", 1, "fn main() {}")]);
    assert_eq!(agent.found("", "^ONE$", true).await, [line("a/x.rs", 1, "one")]);
    assert_eq!(agent.found("", "^ONE$", false).await, []);
}

#[tokio::test]
async fn binary_files_links_and_pipes_are_passed_by() {
    let agent = with(&[("binary", b"needle\0"), ("text", b"needle"), ("latin", b"\xff needle \xfe")]).await;
    symlink("text", agent.folder().join("d/link")).unwrap();
    symlink("/", agent.folder().join("d/root")).unwrap();
    fifo(&agent, "d/fifo");
    let found = agent.found("", "needle", false).await;
    assert_eq!(found, [line("latin", 1, "\u{fffd} needle \u{fffd}"), line("text", 1, "needle")]);
}

#[tokio::test]
async fn a_match_tells_raw_names_and_offsets() {
    let agent = with(&[]).await;
    fs::create_dir(agent.folder().join("d")).unwrap();
    fs::write(agent.folder().join("d").join(OsStr::from_bytes(b"\xff")), "a\nbc\n").unwrap();
    let request = SearchFilesRequest { pattern: "c".into(), ..Default::default() };
    let found = &agent.search(request).await.unwrap().matches[0];
    assert!(found.raw_path.ends_with(b"/\xff"));
    assert_eq!((found.line_number, found.offset), (2, 2));
}

#[tokio::test]
async fn no_more_than_asked_for_is_found_and_more_is_said() {
    let agent = with(&[("a", "x\n".repeat(2000).as_bytes())]).await;
    for (max_matches, count, more) in [(0, 100, true), (1000, 1000, true)] {
        let request = SearchFilesRequest { pattern: "x".into(), max_matches, ..Default::default() };
        let found = agent.search(request).await.unwrap();
        assert_eq!((found.matches.len(), found.more), (count, more));
    }
    fs::write(agent.folder().join("d/a"), "x\n".repeat(1000)).unwrap();
    let request = SearchFilesRequest { pattern: "x".into(), max_matches: 1000, ..Default::default() };
    assert!(!agent.search(request).await.unwrap().more);
}

#[tokio::test]
async fn a_bad_search_is_refused_with_the_reason() {
    let agent = with(&[("a", b"")]).await;
    for (pattern, glob, max_matches) in [
        ("(", "", 0),
        ("(?=a)", "", 0),
        (r"\w{1000}{1000}", "", 0),
        (&"(".repeat(1024), "", 0),
        (&"x".repeat(1025), "", 0),
        ("", "[", 0),
        ("", "", 1001),
    ] {
        let request =
            SearchFilesRequest { pattern: pattern.into(), glob: glob.into(), max_matches, ..Default::default() };
        let error = agent.search(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(!error.message().contains('\n'), "{error}");
    }
    let request = SearchFilesRequest { path: agent.path("none"), ..Default::default() };
    assert_eq!(code(agent.client.clone().search_files(request).await), Code::NotFound);
}

#[tokio::test]
async fn a_file_itself_is_searched() {
    let agent = with(&[("a", b"needle")]).await;
    let request = SearchFilesRequest { path: agent.path("d/a"), pattern: "needle".into(), ..Default::default() };
    let found = agent.client.clone().search_files(request).await.unwrap().into_inner();
    assert_eq!(found.matches[0].path, agent.path("d/a"));
}

#[tokio::test]
async fn a_line_of_a_quarter_gibibyte_takes_no_memory() {
    let agent = with(&[]).await;
    fs::create_dir(agent.folder().join("d")).unwrap();
    let path = agent.folder().join("d/line");
    let mut file = fs::File::create(&path).unwrap();
    let piece = vec![b'x'; 16 << 20];
    for _ in 0..16 {
        std::io::Write::write_all(&mut file, &piece).unwrap();
    }
    std::io::Write::write_all(&mut file, b"needle\nnext needle\n").unwrap();
    let before = agent.memory_kib();
    let found = agent.found("", "needle", false).await;
    assert_eq!(found.iter().map(|it| it.1).collect::<Vec<_>>(), [1, 2]);
    assert!(found[0].2.ends_with("needle") && found[0].2.len() <= 4096);
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB");
}
