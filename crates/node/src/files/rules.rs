//! What a request about files must be like: the bounds that the contract names, all faults at once, each with its field.
//! What lies at a path, and whether a pattern can be read, is the agent's to say.

use std::borrow::Cow;

use bytes::Bytes;
use cloud_sandbox_model::input::{PATH_MAX, PATH_NAME_MAX, Violations, page_size};
use cloud_sandbox_proto::v1::{self, write_file_request};

use crate::service::Addressed;

/// The most of a file in one call, in bytes.
pub(super) const FILE_MAX: u32 = 8 * 1024 * 1024;
/// The longest piece of an upload, in bytes.
pub(super) const PIECE_MAX: usize = 4 * 1024 * 1024;
const PAGE_MAX: u32 = 1000;
/// The permission bits a caller may set: no set-user-id, set-group-id or sticky bit.
const MODE_MAX: u32 = 0o777;
const BATCH_MAX: usize = 1000;
const DEPTH_MAX: u32 = 64;
const MATCHES_MAX: u32 = 1000;
const PATTERN_MAX: usize = 1024;
/// A glob is a pattern of paths: longer than a path, none can match.
const GLOB_MAX: usize = 1024;
/// The longest token that an agent gives: a path in base64, with room.
const TOKEN_MAX: usize = 16 * 1024;

/// A request about files of one sandbox.
pub(crate) trait FileRequest: Addressed + Send + 'static {
    /// Notes every rule that the request breaks.
    fn check(&self, violations: &mut Violations);

    /// The path that errors name.
    fn subject(&self) -> Cow<'_, str>;
}

/// The text of a path that is given in one of two ways.
fn shown<'a>(path: &'a str, raw: &'a Bytes) -> Cow<'a, str> {
    if raw.is_empty() { path.into() } else { String::from_utf8_lossy(raw) }
}

/// A path that is given as text or as bytes: exactly one of them, below the field `prefix`.
fn check_path(violations: &mut Violations, field: &str, path: &str, raw_field: &str, raw: &Bytes) {
    if raw.is_empty() {
        return violations.path(field, path);
    }
    violations.check(path.is_empty(), field, format!("must be empty when {raw_field} is given"));
    let mut parts = raw.split(|byte| *byte == b'/');
    violations.check(raw.starts_with(b"/"), raw_field, "must be an absolute path");
    violations.check(raw.len() <= PATH_MAX, raw_field, format!("must be at most {PATH_MAX} bytes long"));
    violations.check(!raw.contains(&0), raw_field, "must not contain NUL");
    violations.check(!parts.clone().any(|part| part == b".."), raw_field, "must not contain '..'");
    let short = parts.all(|part| part.len() <= PATH_NAME_MAX);
    violations.check(short, raw_field, format!("must have names of at most {PATH_NAME_MAX} bytes"));
}

fn check_page(violations: &mut Violations, size: u32, token: &str) {
    violations.take(page_size(size, PAGE_MAX, PAGE_MAX));
    let short = token.len() <= TOKEN_MAX;
    violations.check(short, "page_token", "must be the next_page_token of an earlier answer");
}

/// What most requests have: `path` and `raw_path`, and rules of their own.
macro_rules! rules {
    ($($request:ident |$this:ident, $violations:ident| $body:block)*) => {$(
        impl FileRequest for v1::$request {
            fn check(&self, $violations: &mut Violations) {
                check_path($violations, "path", &self.path, "raw_path", &self.raw_path);
                let $this = self;
                $body
            }

            fn subject(&self) -> Cow<'_, str> {
                shown(&self.path, &self.raw_path)
            }
        }
    )*};
}

rules! {
    ReadFileRequest |it, violations| {
        violations.range("limit", &it.limit, &0, &FILE_MAX);
        check_page(violations, it.page_size, &it.page_token);
    }
    DownloadFileRequest |_it, _violations| {}
    DeleteFileRequest |_it, _violations| {}
    ListFilesRequest |it, violations| {
        violations.range("depth", &it.depth, &0, &DEPTH_MAX);
        check_glob(violations, &it.glob);
        check_page(violations, it.page_size, &it.page_token);
    }
    StatFileRequest |_it, _violations| {}
    MakeFolderRequest |it, violations| {
        violations.range("mode", &it.mode, &0, &MODE_MAX);
    }
    ChangeModeRequest |it, violations| {
        violations.range("mode", &it.mode, &0, &MODE_MAX);
    }
    SearchFilesRequest |it, violations| {
        check_glob(violations, &it.glob);
        let short = it.pattern.len() <= PATTERN_MAX;
        violations.check(short, "pattern", format!("must be at most {PATTERN_MAX} bytes long"));
        violations.range("max_matches", &it.max_matches, &0, &MATCHES_MAX);
    }
    WatchFilesRequest |_it, _violations| {}
    DownloadArchiveRequest |_it, _violations| {}
    UploadFileHeader |it, violations| {
        violations.range("mode", &it.mode, &0, &MODE_MAX);
    }
    UploadArchiveHeader |_it, _violations| {}
}

fn check_glob(violations: &mut Violations, glob: &str) {
    violations.check(glob.len() <= GLOB_MAX, "glob", format!("must be at most {GLOB_MAX} bytes long"));
    violations.check(!glob.contains('\0'), "glob", "must not contain NUL");
}

impl FileRequest for v1::WriteFileRequest {
    fn check(&self, violations: &mut Violations) {
        check_written(violations, "", self);
        let fits = written_bytes(self) <= FILE_MAX as usize;
        violations.check(fits, "content", format!("must be at most {FILE_MAX} bytes long"));
    }

    fn subject(&self) -> Cow<'_, str> {
        shown(&self.path, &self.raw_path)
    }
}

impl FileRequest for v1::WriteFilesRequest {
    fn check(&self, violations: &mut Violations) {
        let count = self.files.len();
        violations.check((1..=BATCH_MAX).contains(&count), "files", format!("must be 1 to {BATCH_MAX}"));
        let bytes: usize = self.files.iter().map(written_bytes).sum();
        violations.check(bytes <= FILE_MAX as usize, "files", format!("must have at most {FILE_MAX} bytes in all"));
        // beyond the bound it is one fault, not a thousand
        for (index, file) in self.files.iter().take(BATCH_MAX).enumerate() {
            let prefix = format!("files[{index}].");
            for (field, id) in [("sandbox_id", &file.sandbox_id), ("session_id", &file.session_id)] {
                violations.check(id.is_empty(), &format!("{prefix}{field}"), "must be empty");
            }
            check_written(violations, &prefix, file);
        }
    }

    /// None: which file it was, only the agent knows.
    fn subject(&self) -> Cow<'_, str> {
        "".into()
    }
}

fn written_bytes(file: &v1::WriteFileRequest) -> usize {
    match &file.body {
        Some(write_file_request::Body::Content(text)) => text.len(),
        Some(write_file_request::Body::Data(data)) => data.len(),
        None => 0,
    }
}

fn check_written(violations: &mut Violations, prefix: &str, file: &v1::WriteFileRequest) {
    let field = |name| format!("{prefix}{name}");
    check_path(violations, &field("path"), &file.path, &field("raw_path"), &file.raw_path);
    violations.range(&field("mode"), &file.mode, &0, &MODE_MAX);
}

macro_rules! transfers {
    ($($request:ident)*) => {$(
        impl FileRequest for v1::$request {
            fn check(&self, violations: &mut Violations) {
                check_path(violations, "source", &self.source, "raw_source", &self.raw_source);
                let raw = &self.raw_destination;
                check_path(violations, "destination", &self.destination, "raw_destination", raw);
            }

            fn subject(&self) -> Cow<'_, str> {
                shown(&self.source, &self.raw_source)
            }
        }
    )*};
}

transfers! { MoveFileRequest CopyFileRequest }
