//! The Linux runtime on this host's kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    fs::{self, File},
    os::{
        fd::AsRawFd,
        unix::{
            fs::{PermissionsExt, symlink},
            process::CommandExt,
        },
    },
    path::Path,
    process::Command,
    sync::Arc,
};

use cloud_sandbox_images::{ImageStore, Options as ImageOptions};
use cloud_sandbox_model::{Limits, RuntimeName, SandboxId, Template, template::Source};
use cloud_sandbox_runtime::{INTERFACE, Prepared, Root, Runtime, RuntimeError, SandboxSpec, conformance};
use cloud_sandbox_runtime_linux::{LinuxRuntime, Options};

fn options(state_dir: &Path) -> Options {
    Options {
        state_dir: state_dir.into(),
        agent: cloud_sandbox_embedded::AGENT,
        jailer: cloud_sandbox_embedded::JAILER,
        images: None,
    }
}

fn spec() -> SandboxSpec {
    SandboxSpec { template: Prepared::host(), limits: Limits::DEFAULT }
}

#[tokio::test]
async fn linux_conforms() {
    let state = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    conformance::check_all(Arc::new(runtime), Prepared::host()).await;
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0, "sockets have no name");
}

/// A root file system with nothing in it, below a folder that its owner alone may enter.
fn bare_root(folder: &Path) -> Prepared {
    let root = folder.join("root");
    for place in ["etc", "home/user", "usr/bin", "var/tmp"] {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/machine-id"] {
        fs::write(root.join(file), "").unwrap();
    }
    symlink("usr/bin", root.join("bin")).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    Prepared { template: "bare@1".into(), root: Root::Folder(root), ..Prepared::host() }
}

#[tokio::test]
async fn linux_conforms_with_a_root_file_system_in_a_folder() {
    let state = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    conformance::check_all(Arc::new(runtime), bare_root(folder.path())).await;
}

#[tokio::test]
async fn linux_conforms_with_what_it_has_prepared() {
    let state = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("usr")).unwrap();
    let images = ImageStore::open(ImageOptions::new(state.path().join("images"), INTERFACE.gateway)).await.unwrap();
    let options = Options { images: Some(images), ..options(&state.path().join("run")) };
    let runtime = Arc::new(LinuxRuntime::new(&options).unwrap());
    let source = Source::Folder { path: folder.path().into() };
    let template = Template { name: "bare".into(), version: 1, source, ..Template::host() };
    let prepared = runtime.prepare(&template, &RuntimeName::Linux, &Arc::default()).await.unwrap();
    conformance::check_all(Arc::clone(&runtime) as Arc<dyn Runtime>, prepared).await;
    assert_eq!(runtime.prepared_templates().await.unwrap(), ["bare@1"]);
    runtime.discard("bare@1").await.unwrap();
    assert!(runtime.prepared_templates().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(state.path().join("images/trees")).unwrap().count(), 0, "nothing of it is left");
}

/// Names that the jailer might use for itself, places that it mounts something on, and the folders above them.
const PLACES: [&str; 13] =
    [".own", ".old", ".scratch", ".dockerenv", "dev", "etc", "home", "proc", "run", "sys", "tmp", "usr", "var"];

/// Makes something at a path.
type Make<'a> = &'a dyn Fn(&Path);

/// Makes a sandbox of each image that has a link out of it, a folder or a file at a place, and looks that it starts and that
/// nothing outside has changed.
async fn try_hostile_images() {
    let (folder, away) = (tempfile::tempdir().unwrap(), outside());
    let outside = away.path();
    let images = ImageStore::open(ImageOptions::new(folder.path().join("images"), INTERFACE.gateway)).await.unwrap();
    let state_dir = folder.path().join("run");
    let runtime = LinuxRuntime::new(&Options { images: Some(images), ..options(&state_dir) }).unwrap();
    let kinds: [(&str, Make<'_>); 5] = [
        ("a link to a file", &|place| symlink(outside.join("secret"), place).unwrap()),
        ("a link to a folder", &|place| symlink(outside, place).unwrap()),
        ("a link to nothing", &|place| symlink(outside.join("new"), place).unwrap()),
        ("a folder", &|place| fs::create_dir(place).unwrap()),
        ("a file", &|place| fs::write(place, "inside").unwrap()),
    ];
    let places = [&PLACES[..1], &PLACES[1..2], &PLACES[2..3], &PLACES];
    let images = kinds.iter().flat_map(|kind| places.map(|places| (kind, places)));
    for (version, ((kind, make), places)) in (1..).zip(images) {
        let source = folder.path().join(format!("source-{version}"));
        fs::create_dir(&source).unwrap();
        places.iter().for_each(|place| make(&source.join(place)));
        let source = Source::Folder { path: source };
        let template = Template { name: "hostile".into(), version, source, ..Template::host() };
        let prepared = runtime.prepare(&template, &RuntimeName::Linux, &Arc::default()).await.unwrap();
        let Root::Folder(root) = &prepared.root else { panic!("{prepared:?}") };
        assert!(fs::symlink_metadata(root.join(places[0])).is_ok(), "{kind} {places:?}: it is left out");
        let made = starts(&runtime, &prepared).await;
        assert_untouched(outside, &format!("{kind} {places:?}"));
        made.unwrap_or_else(|error| panic!("{kind} {places:?}: {error:?}"));
    }
}

async fn starts(runtime: &LinuxRuntime, template: &Prepared) -> Result<(), RuntimeError> {
    let id = SandboxId::generate();
    let spec = SandboxSpec { template: template.clone(), limits: Limits::DEFAULT };
    runtime.create(id, &spec).await?;
    drop(runtime.connect(id).await?);
    runtime.destroy(id).await
}

/// A folder of the host that everybody may write to, with a file. Not in `/tmp`, which the jailer does not see.
fn outside() -> tempfile::TempDir {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "untouched").unwrap();
    fs::set_permissions(secret, fs::Permissions::from_mode(0o666)).unwrap();
    outside
}

fn assert_untouched(outside: &Path, by: &str) {
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "untouched", "{by}");
    assert_eq!(fs::read_dir(outside).unwrap().count(), 1, "{by}");
}

/// Set for a test that an ordinary user runs.
const AS_SOMEBODY: &str = "CLOUD_SANDBOX_TEST_AS_SOMEBODY";

/// Runs a test once more as an ordinary user, whose files are those of a sandbox's own root too.
fn again_as_somebody(test: &str) {
    if std::env::var_os(AS_SOMEBODY).is_some() {
        return;
    }
    // by its descriptor: that user may not enter every folder above it
    let program = File::open(std::env::current_exe().unwrap()).unwrap();
    let mut again = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    let uid = 200_000 + std::process::id();
    again.args(["--exact", test]).env(AS_SOMEBODY, "1").env_remove("TMPDIR").current_dir("/");
    let ended = again.uid(uid).gid(uid).output().unwrap();
    let told = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&ended.stderr));
}

#[tokio::test]
async fn no_image_changes_a_file_of_the_host() {
    try_hostile_images().await;
    again_as_somebody("no_image_changes_a_file_of_the_host");
}

/// Links that lead out of an image where the jailer puts something, in an image that nobody has made fit.
#[tokio::test]
async fn jailer_follows_no_link_while_the_hosts_root_is_there() {
    for link in ["home", "home/user", "var", "var/tmp", "etc/machine-id"] {
        let (state, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let template = bare_root(folder.path());
        let Root::Folder(root) = &template.root else { panic!("{template:?}") };
        let place = root.join(link);
        fs::remove_dir_all(&place).or_else(|_| fs::remove_file(&place)).unwrap();
        let outside = outside();
        let target = if link == "etc/machine-id" { outside.path().join("secret") } else { outside.path().into() };
        symlink(target, &place).unwrap();
        let runtime = LinuxRuntime::new(&options(&state.path().join("run"))).unwrap();
        let made = runtime.create(SandboxId::generate(), &SandboxSpec { template, limits: Limits::DEFAULT }).await;
        assert_untouched(outside.path(), link);
        assert!(matches!(made, Err(RuntimeError::Host { .. })), "{link}: {made:?}");
    }
    again_as_somebody("jailer_follows_no_link_while_the_hosts_root_is_there");
}

#[tokio::test]
async fn as_much_as_an_image_may_have_at_the_top_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let images = ImageStore::open(ImageOptions::new(folder.path().join("images"), INTERFACE.gateway)).await.unwrap();
    let state_dir = folder.path().join("run");
    let runtime = LinuxRuntime::new(&Options { images: Some(images), ..options(&state_dir) }).unwrap();
    let far = format!("/{}", "long/".repeat(60));
    let kinds: [(&str, usize, Make<'_>); 2] = [
        ("folders", 360, &|place| fs::create_dir(place).unwrap()),
        ("links", 80, &|place| symlink(&far, place).unwrap()),
    ];
    for (version, (kind, count, make)) in (1..).zip(kinds) {
        let path = folder.path().join(kind);
        fs::create_dir(&path).unwrap();
        (0..count).for_each(|number| make(&path.join(format!("\u{1}{number:03}"))));
        let template = Template { name: "wide".into(), version, source: Source::Folder { path }, ..Template::host() };
        let prepared = runtime.prepare(&template, &RuntimeName::Linux, &Arc::default()).await.unwrap();
        starts(&runtime, &prepared).await.unwrap_or_else(|error| panic!("{kind}: {error:?}"));
    }
}

#[tokio::test]
async fn root_file_system_that_is_gone_is_told() {
    let state = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    let template = Prepared { root: Root::Folder(state.path().join("gone")), ..Prepared::host() };
    let made = runtime.create(SandboxId::generate(), &SandboxSpec { template, limits: Limits::DEFAULT }).await;
    assert!(matches!(made, Err(RuntimeError::Template { .. })), "{made:?}");
}

#[tokio::test]
async fn destroyed_sandbox_leaves_no_process_and_no_cgroup() {
    let state = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    let id = SandboxId::generate();
    runtime.create(id, &spec()).await.unwrap();
    assert!(!groups_of(id).is_empty() || runtime.cgroups().is_none());
    runtime.destroy(id).await.unwrap();
    assert_eq!(groups_of(id), Vec::<String>::new());
}

/// The cgroups of a sandbox in any hierarchy.
fn groups_of(id: SandboxId) -> Vec<String> {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &id.to_string()]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}
