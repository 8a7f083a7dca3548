//! gRPC reflection of what clients can reach, and of nothing else: the contracts of nodes and agents stay inside.

use std::collections::HashSet;

use prost::encoding::{WireType, encode_key, encode_varint};
use prost_reflect::{DescriptorPool, FileDescriptor};
use tonic_reflection::server::Builder;

use crate::routes::PACKAGE;

/// The files of the public package and what they import, as an encoded `FileDescriptorSet`. Encoded one by one from
/// the pool, so that custom options (`google.api.http`) stay.
pub fn public_files(pool: &DescriptorPool) -> Vec<u8> {
    const FILE: u32 = 1;
    let (mut set, mut seen) = (Vec::new(), HashSet::new());
    let mut next: Vec<FileDescriptor> = pool.files().filter(|file| file.package_name() == PACKAGE).collect();
    while let Some(file) = next.pop() {
        if !seen.insert(file.name().to_owned()) {
            continue;
        }
        next.extend(file.dependencies());
        let encoded = file.encode_to_vec();
        encode_key(FILE, WireType::LengthDelimited, &mut set);
        encode_varint(encoded.len() as u64, &mut set);
        set.extend_from_slice(&encoded);
    }
    set
}

/// A builder of the reflection services over `files`.
pub fn builder(files: &[u8]) -> Builder<'_> {
    Builder::configure()
        .register_encoded_file_descriptor_set(files)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false)
}
