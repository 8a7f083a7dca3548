//! Messages that are encoded already: the edge works on bytes and descriptors, not on generated types.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// Sends and receives encoded messages as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }
}

/// An encoded message in parts that follow one another, so that what arrived in pieces is joined only where it is sent.
#[derive(Debug, Default)]
pub struct Parts(Vec<Bytes>);

impl Parts {
    /// A message with one field, number `field`, of a kind that is written with its length.
    pub fn field(field: u32, value: Vec<Bytes>) -> Self {
        let mut prefix = BytesMut::with_capacity(16);
        encode_key(field, WireType::LengthDelimited, &mut prefix);
        encode_varint(value.iter().map(|part| part.len() as u64).sum(), &mut prefix);
        let mut parts = value;
        parts.insert(0, prefix.freeze());
        Self(parts)
    }
}

/// Sends messages in parts, receives encoded ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct InParts;

impl Codec for InParts {
    type Encode = Parts;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Encoded;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Encoded {
        Encoded
    }
}

impl Encoder for InParts {
    type Item = Parts;
    type Error = Status;

    fn encode(&mut self, message: Parts, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(message.0.iter().map(Bytes::len).sum());
        for part in message.0 {
            buffer.put(part);
        }
        Ok(())
    }
}
