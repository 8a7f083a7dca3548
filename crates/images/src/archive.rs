//! An archive as it comes in: what it is compressed with, how much of it may be held in memory, and what an error in it
//! means.

use std::{
    cell::{Cell, RefCell},
    io::{self, BufRead, BufReader, Read},
};

use flate2::bufread::MultiGzDecoder;

use crate::{ImageError, job::Job};

/// What may lie between the contents of two entries, in bytes: headers, long names, maps of sparse files. The library
/// holds all of it.
const MAX_HEADERS: u64 = 1024 * 1024;
const BUFFER: usize = 256 * 1024;
/// How much memory a zstd frame may ask for, as a power of two: what `zstd --ultra` needs without `--long`.
const ZSTD_WINDOW: u32 = 27;

/// The plain bytes of an archive, whatever it is compressed with.
pub(crate) fn open<'a>(reader: impl Read + 'a) -> io::Result<(Box<dyn Read + 'a>, Beginning)> {
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let beginning = Beginning::of(reader.fill_buf()?);
    let plain: Box<dyn Read + 'a> = match beginning {
        Beginning::Gzip => Box::new(MultiGzDecoder::new(reader)),
        Beginning::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW)?;
            Box::new(decoder)
        }
        _ => Box::new(reader),
    };
    Ok((plain, beginning))
}

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beginning {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
    Zip,
    Other,
}

impl Beginning {
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', ..] => Self::Xz,
            [b'P', b'K', 3, 4, ..] => Self::Zip,
            _ => Self::Other,
        }
    }

    fn hint(self) -> String {
        let found = match self {
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zip => "zip",
            Self::Gzip | Self::Zstd | Self::Other => return String::new(),
        };
        format!(" but {found}; it may be plain or compressed by gzip or zstd")
    }
}

/// The plain bytes, with bounds on what is read besides contents.
pub(crate) struct Incoming<'a> {
    reader: RefCell<Box<dyn Read + 'a>>,
    beginning: Beginning,
    job: &'a Job,
    /// how much may be read before content must come
    allowance: Cell<u64>,
    /// all has been read
    ended: Cell<bool>,
    /// an entry has been found
    begun: Cell<bool>,
}

impl<'a> Incoming<'a> {
    pub(crate) fn new(reader: impl Read + 'a, job: &'a Job) -> Result<Self, ImageError> {
        let (reader, beginning) = open(reader).map_err(|error| fault(job, &error))?;
        let reader = RefCell::new(reader);
        let (allowance, ended, begun) = (Cell::new(0), Cell::new(false), Cell::new(false));
        Ok(Self { reader, beginning, job, allowance, ended, begun })
    }

    /// What comes now is headers.
    pub(crate) fn expect_header(&self) {
        self.allowance.set(MAX_HEADERS);
    }

    /// What comes now is the content of an entry, and no more than `most` bytes are wanted.
    pub(crate) fn expect_content(&self, most: u64) {
        self.begun.set(true);
        self.allowance.set(most);
    }

    /// Whether the archive ended without saying so: that is said by zeros, not by the end of the stream.
    pub(crate) fn is_cut_off(&self) -> bool {
        self.ended.get()
    }

    /// Reads what follows the archive's end, padding as a rule, so that checksums at the end are verified.
    pub(crate) fn finish(&self, most: u64) -> Result<(), ImageError> {
        self.allowance.set(most);
        io::copy(&mut &*self, &mut io::sink()).map_err(|error| self.fault(&error))?;
        Ok(())
    }

    /// What an error while reading the archive is.
    pub(crate) fn fault(&self, error: &io::Error) -> ImageError {
        let what = self.job.what.clone();
        if self.job.is_stopped() {
            return ImageError::Stopped;
        }
        if let Some(lost) = lost(error) {
            return lost;
        }
        if self.ended.get() && self.begun.get() {
            return ImageError::Truncated { what };
        }
        match fault(self.job, error) {
            ImageError::Damaged { .. } if !self.begun.get() && !self.is_compressed() => {
                ImageError::NotAnArchive { what, hint: self.beginning.hint() }
            }
            fault => fault,
        }
    }

    fn is_compressed(&self) -> bool {
        matches!(self.beginning, Beginning::Gzip | Beginning::Zstd)
    }
}

/// What an error of a reader is, whoever reads.
fn fault(job: &Job, error: &io::Error) -> ImageError {
    let what = job.what.clone();
    if let Some(lost) = lost(error) {
        return lost;
    }
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::Truncated { what },
        _ => ImageError::Damaged { what, reason: format!("{error:.200}") },
    }
}

/// The way an archive comes has failed, not the archive: the error says how.
#[derive(Debug, thiserror::Error)]
#[error("the archive stopped coming")]
pub(crate) struct Lost(std::sync::Mutex<Option<ImageError>>);

impl Lost {
    pub(crate) fn wrap(error: ImageError) -> io::Error {
        io::Error::other(Self(std::sync::Mutex::new(Some(error))))
    }
}

/// The error inside, however often it was wrapped on its way through readers.
fn lost(error: &io::Error) -> Option<ImageError> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = error.get_ref().map(|inner| inner as _);
    while let Some(error) = cause {
        if let Some(lost) = error.downcast_ref::<Lost>() {
            return lost.0.lock().ok()?.take();
        }
        cause = match error.downcast_ref::<io::Error>() {
            Some(error) => error.get_ref().map(|inner| inner as _),
            None => error.source(),
        };
    }
    None
}

impl Read for &Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.job.is_stopped() {
            return Err(io::Error::other("stopped"));
        }
        let length = buffer.len().min(usize::try_from(self.allowance.get()).unwrap_or(usize::MAX));
        if length == 0 && !buffer.is_empty() {
            return Err(io::Error::other("a header, or what belongs to no file, is too long"));
        }
        let read = self.reader.borrow_mut().read(&mut buffer[..length])?;
        if read == 0 && !buffer.is_empty() {
            self.ended.set(true);
        }
        self.allowance.set(self.allowance.get().saturating_sub(read as u64));
        Ok(read)
    }
}

/// A file, or what else an archive comes from, which tells the progress how much of it has been read.
pub(crate) struct Told<'a, R, F> {
    reader: R,
    job: &'a Job,
    failed: F,
}

impl<'a, R, F: Fn(io::Error) -> ImageError> Told<'a, R, F> {
    /// `failed` says what an error of the reader itself is.
    pub(crate) fn new(reader: R, job: &'a Job, failed: F) -> Self {
        Self { reader, job, failed }
    }
}

impl<R: Read, F: Fn(io::Error) -> ImageError> Read for Told<'_, R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(read) => {
                self.job.progress.advance(read as u64);
                Ok(read)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => Err(Lost::wrap((self.failed)(error))),
        }
    }
}
