//! Writes files: whole ones, several, streams, and additions to the end.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Seek, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
};

use cloud_sandbox_proto::v1::{
    FileInfo, UploadFileRequest, WriteFileRequest, upload_file_request::Part, write_file_request::Body,
};
use tonic::{Status, Streaming};

use super::{
    draft::{Draft, Expected, Parents, Target},
    failed,
    info::file_info,
    parse_raw,
};

/// The most files in one request.
const MAX_BATCH: usize = 1000;

/// Writes a whole file, or adds to one.
pub(super) fn write(request: WriteFileRequest) -> Result<FileInfo, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    let data = match &request.body {
        Some(Body::Content(text)) => text.as_bytes(),
        Some(Body::Data(data)) => data,
        None => &[],
    };
    let expected = Expected::parse(request.if_etag);
    if request.append {
        return append(&Target::find(path)?, data, request.mode, &expected);
    }
    let mut draft = Draft::begin(path, request.mode, expected)?;
    draft.write(data)?;
    draft.commit()
}

/// Writes files in their order, up to the first that fails. Others are served between two of them.
pub(super) async fn write_all(files: Vec<WriteFileRequest>) -> Result<Vec<FileInfo>, Status> {
    let count = files.len();
    if !(1..=MAX_BATCH).contains(&count) {
        return Err(Status::invalid_argument(format!("{count} files are not 1 to {MAX_BATCH}")));
    }
    let mut written = Vec::with_capacity(count);
    for (index, file) in files.into_iter().enumerate() {
        let file = write(file).map_err(|status| {
            Status::new(status.code(), format!("file {} of {count}: {}", index + 1, status.message()))
        })?;
        written.push(file);
        tokio::task::yield_now().await;
    }
    Ok(written)
}

/// Writes what comes, and puts it in its place when all of it has.
pub(super) async fn upload(mut parts: Streaming<UploadFileRequest>) -> Result<FileInfo, Status> {
    let first = parts.message().await?.and_then(|message| message.part);
    let Some(Part::Header(header)) = first else {
        return Err(Status::invalid_argument("the first message of an upload must be header"));
    };
    let path = parse_raw(&header.path, &header.raw_path)?;
    let mut draft = Draft::begin(path, header.mode, Expected::parse(header.if_etag))?;
    while let Some(message) = parts.message().await? {
        match message.part {
            Some(Part::Data(data)) => draft.write(&data)?,
            Some(Part::Commit(_)) => return draft.commit(),
            Some(Part::Header(_)) => return Err(Status::invalid_argument("header comes once")),
            None => {}
        }
    }
    Err(Status::invalid_argument("the upload ended without commit"))
}

/// Adds to the end of a file, without regard to its mode and links, as a program would. What was added by a write that
/// failed is taken back unless somebody else has added to it.
fn append(target: &Target, data: &[u8], mode: u32, expected: &Expected) -> Result<FileInfo, Status> {
    let failed = failed("append to", &target.path);
    expected.check(&target.path, target.found.as_ref())?;
    let initial = target.mode(mode)?;
    let mut parents = Parents::create(target.real.parent().unwrap_or(&target.real)).map_err(&failed)?;
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).mode(initial);
    let opened =
        if target.found.is_some() { options.open(&target.real) } else { options.create_new(true).open(&target.real) };
    let mut file = opened.map_err(&failed)?;
    if let Err(error) = add(&mut file, data) {
        if target.found.is_none() {
            let _ = fs::remove_file(&target.real);
        }
        return Err(failed(error));
    }
    parents.keep();
    if mode != 0 || target.found.is_none() {
        file.set_permissions(Permissions::from_mode(initial)).map_err(&failed)?;
    }
    Ok(file_info(&target.path, &file.metadata().map_err(&failed)?))
}

fn add(file: &mut File, data: &[u8]) -> io::Result<()> {
    let mut rest = data;
    while !rest.is_empty() {
        match file.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let added = (data.len() - rest.len()) as u64;
                let end = file.stream_position()?;
                if added > 0 && file.metadata()?.len() == end {
                    file.set_len(end - added)?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}
