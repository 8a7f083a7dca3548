//! The agent, and the few small files of a sandbox's own, as files that a daemon can bind into containers.

use std::{
    ffi::OsStr,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// What the file's name begins with; the rest is the hash of what is in it.
const PREFIX: &str = "agent-";

/// Writes the agent into `folder`, unless it is there, and removes others.
///
/// A file of another hash may be bound into containers of a server that was killed: they keep what they have.
pub fn install(folder: &Path, agent: &[u8]) -> io::Result<PathBuf> {
    let hash = blake3::hash(agent).to_hex();
    let path = folder.join(format!("{PREFIX}{}", &hash[..32]));
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.path() != path && entry.file_name().to_string_lossy().starts_with(PREFIX) {
            fs::remove_file(entry.path())?;
        }
    }
    if fs::metadata(&path).is_ok_and(|there| there.len() == agent.len() as u64) {
        return Ok(path);
    }
    let unfinished = folder.join(format!("{PREFIX}{}.{}", &hash[..32], std::process::id()));
    let mut file = File::create(&unfinished)?;
    file.write_all(agent)?;
    file.set_permissions(Permissions::from_mode(0o555))?;
    // whoever finds the name later trusts what it names, after a loss of power as well
    file.sync_all()?;
    drop(file);
    fs::rename(&unfinished, &path)?;
    Ok(path)
}

/// Writes small files that are the same in all sandboxes into `folder`, and gives their places here and inside.
pub fn write_files(folder: &Path, files: &[(PathBuf, String)]) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let write = |(inside, content): &(PathBuf, String)| {
        Ok((write_file(folder, inside.file_name().unwrap_or_default(), content)?, inside.clone()))
    };
    files.iter().map(write).collect()
}

/// Writes a file that anybody may read into `folder`, unless it is there, and gives its place.
pub fn write_file(folder: &Path, name: &OsStr, content: &str) -> io::Result<PathBuf> {
    let path = folder.join(name);
    if fs::read_to_string(&path).ok().as_deref() != Some(content) {
        let mut unfinished = name.to_owned();
        unfinished.push(format!(".{}", std::process::id()));
        let unfinished = folder.join(unfinished);
        fs::write(&unfinished, content)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o444))?;
        fs::rename(&unfinished, &path)?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_is_written_once_and_older_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let old = install(folder.path(), b"old").unwrap();
        let new = install(folder.path(), b"new").unwrap();
        assert!(!old.exists());
        assert_eq!(fs::read(&new).unwrap(), b"new");
        assert_eq!(fs::metadata(&new).unwrap().permissions().mode() & 0o7777, 0o555);
        let written = fs::metadata(&new).unwrap().modified().unwrap();
        assert_eq!(install(folder.path(), b"new").unwrap(), new);
        assert_eq!(fs::metadata(&new).unwrap().modified().unwrap(), written);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn small_files_are_written_anew_where_they_differ() {
        let folder = tempfile::tempdir().unwrap();
        for content in ["one", "two", "two"] {
            let files = [(PathBuf::from("/etc/hosts"), content.to_owned())];
            let written = write_files(folder.path(), &files).unwrap();
            assert_eq!(written, [(folder.path().join("hosts"), PathBuf::from("/etc/hosts"))]);
            assert_eq!(fs::read_to_string(&written[0].0).unwrap(), content);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
