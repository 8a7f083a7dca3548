//! Searches a folder by name and by content, for a bounded time and in bounded memory.

mod lines;

use std::{
    io::{self, Read},
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use cloud_sandbox_proto::v1::{FileMatch, SearchFilesRequest, SearchFilesResponse};
use regex::bytes::{Regex, RegexBuilder};
use tonic::Status;

use super::{
    failed,
    glob::Glob,
    info::{lossy, raw},
    parse_raw, read,
    walk::{Kind, Step, Walk},
};
use crate::worker::Call;
use lines::{Line, Lines};

const MAX_TIME: Duration = Duration::from_secs(30);
const MAX_PATTERN: usize = 1024;
const MAX_MATCHES: u32 = 1000;
const DEFAULT_MATCHES: u32 = 100;
/// What a compiled expression and the tables made while it runs may take, in bytes each.
const REGEX_MEMORY: usize = 2 * 1024 * 1024;
/// A file with a NUL in so much of its beginning is binary.
const BINARY_WITHIN: usize = 8 * 1024;

/// Finds files, or lines in them.
pub(super) fn search(request: &SearchFilesRequest, call: &Call) -> Result<SearchFilesResponse, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    let max = match request.max_matches {
        0 => DEFAULT_MATCHES,
        max if max <= MAX_MATCHES => max,
        max => return Err(Status::invalid_argument(format!("max_matches {max} is more than {MAX_MATCHES}"))),
    };
    let search = Search {
        glob: Glob::parse(&request.glob)?,
        pattern: compile(&request.pattern, request.ignore_case)?,
        lines: Lines::default(),
        max: max as usize,
        until: Instant::now() + MAX_TIME,
        found: SearchFilesResponse::default(),
    };
    search.run(&path, call)
}

fn compile(pattern: &str, ignore_case: bool) -> Result<Option<Regex>, Status> {
    if pattern.is_empty() {
        return Ok(None);
    }
    if pattern.len() > MAX_PATTERN {
        return Err(Status::invalid_argument(format!("pattern is longer than {MAX_PATTERN} bytes")));
    }
    let mut builder = RegexBuilder::new(pattern);
    builder.case_insensitive(ignore_case).size_limit(REGEX_MEMORY).dfa_size_limit(REGEX_MEMORY);
    builder.build().map(Some).map_err(|error| {
        // The last line says what is wrong; those before draw where.
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ");
        Status::invalid_argument(format!("pattern is no regular expression: {reason:.200}"))
    })
}

/// A search under way.
struct Search {
    glob: Option<Glob>,
    pattern: Option<Regex>,
    lines: Lines,
    max: usize,
    until: Instant,
    found: SearchFilesResponse,
}

impl Search {
    fn run(mut self, root: &Path, call: &Call) -> Result<SearchFilesResponse, Status> {
        let failed = failed("search", root);
        if !root.metadata().map_err(&failed)?.is_dir() {
            let (file, _) = read::open(root)?;
            if self.wants(Path::new(root.file_name().unwrap_or_default())) {
                let _ = self.look_into(file, root, call)?;
            }
            return Ok(self.found);
        }
        let mut walk = Walk::of(root).map_err(&failed)?;
        while let Some(step) = walk.next().map_err(&failed)? {
            call.check()?;
            if Instant::now() >= self.until {
                self.found.more = true;
                break;
            }
            if step != Step::Entry(Kind::File) || !self.wants(walk.path()) {
                continue;
            }
            let path = walk.path_from(root);
            let searched = if self.pattern.is_none() {
                self.add(&path, None)
            } else {
                // What may not be read, or has gone, has no matches.
                let Ok(file) = walk.open() else { continue };
                if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
                    continue;
                }
                self.look_into(file, &path, call)?
            };
            if searched.is_break() {
                break;
            }
        }
        Ok(self.found)
    }

    fn wants(&self, path: &Path) -> bool {
        self.glob.as_ref().is_none_or(|glob| glob.matches(path))
    }

    /// Searches one file; breaks when the whole search is over.
    fn look_into(&mut self, mut file: impl Read, path: &Path, call: &Call) -> Result<ControlFlow<()>, Status> {
        let Some(pattern) = self.pattern.take() else { return Ok(self.add(path, None)) };
        let mut lines = std::mem::take(&mut self.lines);
        lines.begin();
        let mut searched = Ok(ControlFlow::Continue(()));
        let mut first = true;
        // A file that cannot be read further has no more matches.
        while let Ok(true) = lines.fill(&mut file) {
            if std::mem::take(&mut first) && memchr::memchr(0, lines.beginning(BINARY_WITHIN)).is_some() {
                break;
            }
            searched = call.check().map(|()| lines.search(&pattern, |line| self.add(path, Some(line))));
            if Instant::now() >= self.until {
                self.found.more = true;
                searched = searched.map(|_| ControlFlow::Break(()));
            }
            if !matches!(searched, Ok(ControlFlow::Continue(()))) {
                break;
            }
        }
        self.lines = lines;
        self.pattern = Some(pattern);
        searched
    }

    fn add(&mut self, path: &Path, line: Option<Line<'_>>) -> ControlFlow<()> {
        if self.found.matches.len() == self.max {
            self.found.more = true;
            return ControlFlow::Break(());
        }
        let found = FileMatch { path: lossy(path), raw_path: raw(path), ..FileMatch::default() };
        self.found.matches.push(match line {
            Some(line) => FileMatch { line_number: line.number, offset: line.offset, line: line.shown(), ..found },
            None => found,
        });
        ControlFlow::Continue(())
    }
}

/// Fills `buffer` as far as `file` goes; returns how much that was.
fn read_full(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
