//! A store in a folder of its own, beside which nothing may change.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use cloud_sandbox_images::{Image, ImageError, ImageStore, Limits, Options};
use cloud_sandbox_model::template::{Progress, Source};
use tempfile::TempDir;

use crate::pack::pack;

pub const REFERENCE: &str = "python@3";
/// Far more than anything takes on a machine that is not stuck.
const EVENTUALLY: Duration = Duration::from_secs(120);

pub struct Rig {
    pub folder: TempDir,
    pub store: ImageStore,
}

impl Rig {
    pub async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("outside")).unwrap();
        fs::write(folder.path().join("outside/secret"), "untouched").unwrap();
        let mut options = options(&folder.path().join("store"));
        change(&mut options);
        let store = ImageStore::open(options).await.unwrap();
        Self { folder, store }
    }

    pub async fn limited(bytes: u64, entries: u64) -> Self {
        Self::with(|options| options.limits = Limits { bytes, entries }).await
    }

    pub async fn prepare(&self, source: &Source) -> Result<Image, ImageError> {
        self.store.prepare(REFERENCE, source, &Arc::default()).await
    }

    /// A file beside the store.
    pub fn write(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    pub fn tarball(&self, content: &[u8]) -> Source {
        Source::Tarball { path: self.write("source.tar", content) }
    }

    /// The image of an archive.
    pub async fn unpack(&self, content: &[u8]) -> Result<Image, ImageError> {
        self.prepare(&self.tarball(content)).await
    }

    pub fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    /// What is beside the store is as it was.
    pub fn assert_untouched(&self) {
        assert_eq!(fs::read_to_string(self.outside().join("secret")).unwrap(), "untouched");
        assert_eq!(names(&self.outside()), ["secret"]);
    }

    /// Nothing is in the store but what is named.
    pub fn assert_holds(&self, trees: &[&str], layers: usize) {
        assert_eq!(names(&self.path("trees")), trees);
        assert_eq!(names(&self.path("layers")).len(), layers);
        assert_eq!(names(&self.path("work")), [""; 0]);
    }

    pub fn assert_empty(&self) {
        self.assert_holds(&[], 0);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("store").join(name)
    }
}

pub fn options(folder: &Path) -> Options {
    Options {
        // nobody listens there; tests with a daemon name theirs
        docker_host: Some("unix:///nonexistent/docker.sock".to_owned()),
        ..Options::new(folder, Ipv4Addr::new(10, 0, 0, 1))
    }
}

/// The names in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All that is in a folder: what it is, its mode, and what it says.
pub fn tree(folder: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    collect(folder, "", &mut found);
    found
}

fn collect(folder: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for name in names(folder) {
        let path = folder.join(&name);
        let told = fs::symlink_metadata(&path).unwrap();
        let shown = format!("{prefix}{name}");
        let about = if told.is_dir() {
            collect(&path, &format!("{shown}/"), found);
            format!("d{:o}", told.mode() & 0o7777)
        } else if told.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else if told.is_file() {
            format!("{:o} {}", told.mode() & 0o7777, String::from_utf8_lossy(&fs::read(&path).unwrap()))
        } else {
            format!("special {:o}", told.mode())
        };
        found.insert(shown, about);
    }
}

pub fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Waits until a condition holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < EVENTUALLY, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Begins to prepare, and gives up in the middle of a phase. On a busy machine it may be over before that is seen.
pub async fn give_up_while(rig: &Rig, source: &Source, phase: &str) {
    for _ in 0..ATTEMPTS {
        let progress = Arc::new(Progress::default());
        let under_way = async {
            let (mut now, mut done, _) = progress.now();
            while now != phase || done == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                (now, done, _) = progress.now();
            }
        };
        tokio::select! {
            made = rig.store.prepare(REFERENCE, source, &progress) => { made.unwrap(); }
            () = under_way => return,
        }
        rig.store.remove(REFERENCE).await.unwrap();
    }
    panic!("it was over too soon {ATTEMPTS} times");
}

/// How often something may be over before it is seen to be under way.
const ATTEMPTS: usize = 20;

/// An archive with enough files to be in the middle of.
pub fn large() -> Vec<u8> {
    let content = "0123456789abcdef".repeat(512);
    let files = (0..LARGE).fold(pack(), |pack, number| pack.file(&format!("{}/{number}", number / 100), &content));
    files.bytes()
}

/// How many files that archive has, of 8 KiB each.
pub const LARGE: u64 = 2000;
