//! What a server has on the host, and that it is gone afterwards.

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What may be left of a server and its sandboxes.
pub struct Leftovers {
    processes: Vec<(u32, String)>,
    folder: PathBuf,
    uid: u32,
}

impl Leftovers {
    /// Looks at a living server: all that descends from it, and its folder.
    pub fn of(server: u32, folder: PathBuf, uid: u32) -> Self {
        let mut processes = Vec::new();
        let mut ahead = vec![server];
        while let Some(pid) = ahead.pop() {
            let below = children(pid);
            processes.extend(below.iter().filter_map(|pid| Some((*pid, started(*pid)?))));
            ahead.extend(below);
        }
        Self { processes, folder, uid }
    }

    /// Fails unless all of it is gone, soon. `known` belongs to the test itself.
    pub fn assert_gone(&self, known: u32) {
        let begun = Instant::now();
        loop {
            let left = self.left(known);
            if left.is_empty() {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "left behind: {left:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn left(&self, known: u32) -> Vec<String> {
        let processes = self.processes.iter().filter(|(pid, begun)| started(*pid).as_ref() == Some(begun));
        let mut left: Vec<_> = processes.map(|(pid, _)| format!("process {pid}")).collect();
        let folder = self.folder.to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(folder)).map(str::to_owned));
        if self.uid != 0 {
            left.extend(
                processes_of(self.uid).filter(|pid| *pid != known).map(|pid| format!("process {pid} of the user")),
            );
        }
        left
    }
}

/// When a process was started; `None` when it has ended.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then(|| fields[19].to_owned())
}

/// The processes that a process has started and that still are; one that ends while it is looked at has none.
fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

fn processes_of(uid: u32) -> impl Iterator<Item = u32> {
    let ids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(move |pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| {
            line.strip_prefix("Uid:").is_some_and(|ids| ids.split_whitespace().any(|id| id == uid.to_string()))
        })
    })
}
