//! RPCs whose REST form is raw bytes, told by the shape of their messages:
//!
//! - a server stream whose messages have `bytes data` is a download; with a `FileInfo file` in its first message, a
//!   file's, which has a size, an etag and ranges, and without one an archive's;
//! - a client stream of messages with `header`, `bytes data` and `commit` is an upload. Path, query and headers make
//!   `header`, the body is `data`, and `commit` is only ever sent after the body's last byte.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::routes::{Binding, BodyRule};

const FILE_INFO: &str = "cloud_sandbox.v1.FileInfo";

pub const OCTET_STREAM: &str = "application/octet-stream";
pub const TAR: &str = "application/x-tar";

/// An RPC that answers with raw bytes.
#[derive(Debug, Clone)]
pub struct Download {
    pub binding: Binding,
    /// the bytes of an answer's message
    pub data: FieldDescriptor,
    /// what the first message tells of a file
    pub file: Option<FileFields>,
}

/// The fields by which a file is downloaded.
#[derive(Debug, Clone)]
pub struct FileFields {
    /// the answer's `FileInfo`
    pub info: FieldDescriptor,
    /// the request's first byte
    pub offset: FieldDescriptor,
    /// the request's number of bytes; 0 is all
    pub length: FieldDescriptor,
}

impl Download {
    /// `None` where the answers are not raw bytes.
    pub fn of(binding: &Binding) -> Option<Self> {
        if !binding.rpc.is_server_streaming() || binding.response_body.is_some() {
            return None;
        }
        let (input, output) = (binding.rpc.input(), binding.rpc.output());
        let data = bytes_field(&output, "data")?;
        let file = file_info(&output).and_then(|info| {
            let (offset, length) = (input.get_field_by_name("offset")?, input.get_field_by_name("length")?);
            Some(FileFields { info, offset, length })
        });
        Some(Self { binding: binding.clone(), data, file })
    }

    pub fn media_type(&self) -> &'static str {
        if self.file.is_some() { OCTET_STREAM } else { TAR }
    }
}

/// An RPC that takes raw bytes.
#[derive(Debug, Clone)]
pub struct Upload {
    pub binding: Binding,
    pub header: FieldDescriptor,
    pub data: FieldDescriptor,
    pub commit: FieldDescriptor,
}

impl Upload {
    /// The error says what is wrong with the RPC's shape.
    pub fn of(binding: Binding) -> Result<Self, String> {
        if binding.rpc.is_server_streaming() || !matches!(binding.body, BodyRule::None) {
            return Err("a client stream has a REST form only with a unary answer and without a body".to_owned());
        }
        let input = binding.rpc.input();
        let message = |name| input.get_field_by_name(name).filter(|field| field.kind().as_message().is_some());
        let fields = (message("header"), bytes_field(&input, "data"), message("commit"));
        let (Some(header), Some(data), Some(commit)) = fields else {
            return Err("a client stream has a REST form only as header, data and commit".to_owned());
        };
        Ok(Self { binding, header, data, commit })
    }

    /// The message that the path and the query set.
    pub fn header_message(&self) -> MessageDescriptor {
        match self.header.kind() {
            Kind::Message(message) => message,
            _ => self.binding.rpc.input(),
        }
    }

    /// The media type to send a body as.
    pub fn media_type(&self) -> &'static str {
        if file_info(&self.binding.rpc.output()).is_some() { OCTET_STREAM } else { TAR }
    }
}

fn bytes_field(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_name(name).filter(|field| field.kind() == Kind::Bytes && !field.is_list())
}

fn file_info(message: &MessageDescriptor) -> Option<FieldDescriptor> {
    let file = message.get_field_by_name("file")?;
    let is_info = file.kind().as_message().is_some_and(|kind| kind.full_name() == FILE_INFO);
    is_info.then_some(file)
}
