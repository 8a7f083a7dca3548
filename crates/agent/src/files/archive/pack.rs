//! Writes archives: pax, with what does not fit a header in records before it.

use std::{
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};

use bytes::BytesMut;
use cloud_sandbox_proto::v1::DownloadArchiveResponse;
use tar::{EntryType, Header};
use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::files::{
    failed, read,
    walk::{Kind, Step, Walk, has_gone},
};

const BLOCK: usize = 512;
/// What is sent at a time.
const PIECE: usize = 96 * 1024;
/// What the name field of a header holds.
const MAX_NAME: usize = 100;
/// What the size field holds, in octal.
const MAX_SIZE: u64 = 0o777_7777_7777;

/// What is to be packed.
pub(super) struct Source {
    path: PathBuf,
    kind: SourceKind,
}

enum SourceKind {
    Folder(Walk),
    File(File, Metadata),
}

impl Source {
    /// Opens a folder or file.
    pub(super) fn open(path: PathBuf) -> Result<Self, Status> {
        let refused = failed("archive", &path);
        let kind = if path.metadata().map_err(&refused)?.is_dir() {
            SourceKind::Folder(Walk::of(&path).map_err(&refused)?)
        } else {
            let (file, metadata) = read::open(&path)?;
            SourceKind::File(file, metadata)
        };
        Ok(Self { path, kind })
    }

    /// Packs all of it, unless the caller leaves.
    pub(super) fn pack(self, pieces: &Sender<Result<DownloadArchiveResponse, Status>>) {
        let mut archive = Archive { pieces, buffer: BytesMut::with_capacity(PIECE) };
        let packed = match self.kind {
            SourceKind::Folder(walk) => archive.folder(&self.path, walk),
            SourceKind::File(file, metadata) => {
                let name = self.path.file_name().map_or_else(Vec::new, |name| name.as_bytes().to_vec());
                archive.file(&name, &file, &metadata).map_err(failed("archive", &self.path))
            }
        };
        let ended = packed.and_then(|()| archive.end().map_err(failed("archive", &self.path)));
        if let Err(status) = ended {
            // Nobody may wait any more.
            let _ = pieces.blocking_send(Err(status));
        }
    }
}

/// An archive under way.
struct Archive<'a> {
    pieces: &'a Sender<Result<DownloadArchiveResponse, Status>>,
    buffer: BytesMut,
}

impl Archive<'_> {
    fn folder(&mut self, root: &Path, mut walk: Walk) -> Result<(), Status> {
        while let Some(step) = walk.next().map_err(failed("archive", root))? {
            match self.entry(&walk, step) {
                Err(error) if has_gone(&error) => {}
                packed => packed.map_err(failed("archive", &walk.path_from(root)))?,
            }
        }
        Ok(())
    }

    fn entry(&mut self, walk: &Walk, step: Step) -> io::Result<()> {
        let name = walk.path().as_os_str().as_bytes();
        match step {
            Step::Entry(Kind::File) => {
                let file = walk.open()?;
                let metadata = file.metadata()?;
                if metadata.is_file() { self.file(name, &file, &metadata) } else { Ok(()) }
            }
            Step::Entry(Kind::Folder) => {
                let stat = walk.stat()?;
                let name = [name, b"/"].concat();
                self.header(EntryType::Directory, &name, &[], 0, stat.st_mode, stat.st_mtime)
            }
            Step::Entry(Kind::Link) => {
                let stat = walk.stat()?;
                let target = walk.link()?;
                self.header(EntryType::Symlink, name, target.as_os_str().as_bytes(), 0, stat.st_mode, stat.st_mtime)
            }
            // Sockets, pipes and devices are no content.
            Step::Entry(Kind::Other) | Step::Left => Ok(()),
            Step::Closed => Err(nix::errno::Errno::EACCES.into()),
        }
    }

    /// A file of the size it has now: what is added meanwhile is left out, what is taken away is zeros.
    fn file(&mut self, name: &[u8], mut file: &File, metadata: &Metadata) -> io::Result<()> {
        self.header(EntryType::Regular, name, &[], metadata.len(), metadata.mode(), metadata.mtime())?;
        let mut remaining = metadata.len();
        while remaining > 0 {
            let start = self.buffer.len();
            let wanted = usize::try_from(remaining).unwrap_or(PIECE).min(PIECE - start);
            self.buffer.resize(start + wanted, 0);
            let read = match file.read(&mut self.buffer[start..]) {
                Ok(0) => wanted,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error),
            };
            self.buffer.truncate(start + read);
            remaining -= read as u64;
            self.send_full()?;
        }
        let odd = usize::try_from(metadata.len() % BLOCK as u64).unwrap_or(0);
        self.zeros((BLOCK - odd) % BLOCK)
    }

    fn header(&mut self, kind: EntryType, name: &[u8], link: &[u8], size: u64, mode: u32, time: i64) -> io::Result<()> {
        let mut records = Vec::new();
        let fits = |text: &[u8]| text.len() <= MAX_NAME && (text.is_ascii() || std::str::from_utf8(text).is_err());
        if !fits(name) || !fits(link) {
            if std::str::from_utf8(name).is_err() || std::str::from_utf8(link).is_err() {
                record(&mut records, "hdrcharset", b"BINARY");
            }
            if !fits(name) {
                record(&mut records, "path", name);
            }
            if !fits(link) {
                record(&mut records, "linkpath", link);
            }
        }
        if size > MAX_SIZE {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        if !records.is_empty() {
            self.block(&block(EntryType::XHeader, b"PaxHeader", &[], records.len() as u64, 0o644, 0))?;
            self.bytes(&records)?;
            self.zeros((BLOCK - records.len() % BLOCK) % BLOCK)?;
        }
        self.block(&block(kind, name, link, size, mode & 0o777, u64::try_from(time).unwrap_or(0)))
    }

    fn end(&mut self) -> io::Result<()> {
        self.zeros(2 * BLOCK)?;
        self.send()
    }

    fn block(&mut self, header: &Header) -> io::Result<()> {
        self.bytes(header.as_bytes())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        for part in bytes.chunks(PIECE / 2) {
            if self.buffer.len() + part.len() > PIECE {
                self.send()?;
            }
            self.buffer.extend_from_slice(part);
        }
        self.send_full()
    }

    fn zeros(&mut self, count: usize) -> io::Result<()> {
        self.bytes(&[0; 2 * BLOCK][..count])
    }

    fn send_full(&mut self) -> io::Result<()> {
        if self.buffer.len() < PIECE { Ok(()) } else { self.send() }
    }

    fn send(&mut self) -> io::Result<()> {
        let data = self.buffer.split().freeze();
        let sent = self.pieces.blocking_send(Ok(DownloadArchiveResponse { data }));
        self.buffer.reserve(PIECE);
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

fn block(kind: EntryType, name: &[u8], link: &[u8], size: u64, mode: u32, time: u64) -> Header {
    let mut header = Header::new_ustar();
    let old = header.as_old_mut();
    let (name, link) = (&name[..name.len().min(MAX_NAME)], &link[..link.len().min(MAX_NAME)]);
    old.name[..name.len()].copy_from_slice(name);
    old.linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    header
}

/// A record of pax: its own length in decimal, a space, `key=value` and a line's end.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [1, 5, 84, 85, 86, 87, 88, 89, 90, 91, 984, 985, 986, 987, 988, 989, 5000] {
            let mut records = Vec::new();
            record(&mut records, "path", &vec![b'x'; length]);
            let text = String::from_utf8(records).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), text.len());
        }
    }
}
