//! Builds the two programs of a sandbox, static and small, with a cargo of its own: they have another profile and other
//! flags than whatever is being built around them.

use std::{
    env,
    error::Error,
    path::{Path, PathBuf},
    process::Command,
};

const PROGRAMS: [&str; 2] = ["cloud-sandbox-agent", "cloud-sandbox-jailer"];
const SOURCES: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", "proto", "crates/proto", "crates/agent/src", "crates/jailer/src"];

fn main() -> Result<(), Box<dyn Error>> {
    let workspace = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../..").canonicalize()?;
    for source in SOURCES {
        // relative: two checkouts may share a target folder, and each has to look at its own
        println!("cargo::rerun-if-changed=../../{source}");
    }
    let target = env::var("TARGET")?;
    let folder = target_folder(&PathBuf::from(env::var("OUT_DIR")?))?.join("guest");
    build(&workspace, &target, &folder)?;
    for program in PROGRAMS {
        let path = folder.join(&target).join("guest").join(program);
        let name = program.to_uppercase().replace('-', "_");
        println!("cargo::rustc-env={name}_PATH={}", path.display());
    }
    Ok(())
}

/// `OUT_DIR` is `<target>/<profile>/build/<package>/out`. One folder serves all profiles.
fn target_folder(out: &Path) -> Result<PathBuf, String> {
    out.ancestors().nth(4).map(Path::to_path_buf).ok_or_else(|| format!("unexpected OUT_DIR {}", out.display()))
}

fn build(workspace: &Path, target: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.current_dir(workspace).args(["build", "--profile", "guest", "--target", target, "--target-dir"]).arg(folder);
    for program in PROGRAMS {
        cargo.args(["--package", program, "--bin", program]);
    }
    // static and at a fixed address: no loader, and no pages dirtied by relocation in every sandbox
    cargo.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-feature=+crt-static\u{1f}-Crelocation-model=static");
    // clippy and coverage wrap the outer build only
    cargo.env_remove("RUSTC_WORKSPACE_WRAPPER").env_remove("RUSTC_WRAPPER").env_remove("RUSTFLAGS");
    let status = cargo.status()?;
    if status.success() { Ok(()) } else { Err(format!("building the sandbox's programs: {status}").into()) }
}
