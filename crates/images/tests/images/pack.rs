//! Archives for tests, also such as no tool makes.

use std::io::Write;

use tar::{Builder, EntryType, Header};

/// An archive that grows.
pub struct Pack(Builder<Vec<u8>>);

/// The beginning of any other pack.
pub fn pack() -> Pack {
    Pack(Builder::new(Vec::new()))
}

impl Pack {
    pub fn file(self, path: &str, content: &str) -> Self {
        self.file_with_mode(path, content, 0o644)
    }

    pub fn file_with_mode(self, path: &str, content: &str, mode: u32) -> Self {
        self.entry(EntryType::Regular, path, "", content.as_bytes(), mode)
    }

    pub fn folder(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", b"", 0o700)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"", 0o777)
    }

    pub fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, b"", 0o644)
    }

    /// An entry of any kind, whose names are not looked at; up to 100 bytes each.
    pub fn entry(mut self, kind: EntryType, path: &str, target: &str, content: &[u8], mode: u32) -> Self {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..path.len()].copy_from_slice(path.as_bytes());
        old.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        header.set_uid(4321);
        header.set_gid(4321);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    /// A file with a long name.
    pub fn deep_file(mut self, path: &str, content: &str) -> Self {
        let mut header = Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        self.0.append_data(&mut header, path, content.as_bytes()).unwrap();
        self
    }

    pub fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}
