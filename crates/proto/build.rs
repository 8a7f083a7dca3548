//! Compiles `proto/` without a `protoc`: protox makes the descriptor set, tonic the code.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message;
use prost_types::FileDescriptorSet;

const CONTRACTS: [&str; 10] = [
    "cloud_sandbox/v1/auth.proto",
    "cloud_sandbox/v1/scheduler.proto",
    "cloud_sandbox/v1/template.proto",
    "cloud_sandbox/v1/session.proto",
    "cloud_sandbox/v1/exec.proto",
    "cloud_sandbox/v1/context.proto",
    "cloud_sandbox/v1/file.proto",
    "cloud_sandbox/checkpoint/v1/checkpoint.proto",
    "cloud_sandbox/node/v1/node.proto",
    "cloud_sandbox/agent/v1/agent.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    // relative: two checkouts may share a target folder, and each has to look at its own
    println!("cargo::rerun-if-changed=../../proto");

    let mut compiler = protox::Compiler::new([root.clone(), root.join("third_party")])?;
    compiler.include_source_info(true).include_imports(true).open_files(CONTRACTS)?;
    // The encoded set keeps the http options; the typed one that prost reads drops what it has no field for.
    let bytes = compiler.encode_file_descriptor_set();
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptor_set.bin"), &bytes)?;

    let mut set = FileDescriptorSet::decode(bytes.as_slice())?;
    set.file.retain(|file| file.package() != "google.api");
    tonic_prost_build::configure().build_transport(false).bytes(".").compile_fds(set)?;
    Ok(())
}
