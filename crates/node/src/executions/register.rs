//! Which executions a sandbox has: those that run, those that have ended and are kept, and the request ids of those that
//! are not kept any more. What is not kept leaves the journal too, as soon as nobody reads it any more.
//!
//! Invariant: a `request_id` that has run is found here for as long as the sandbox can run anything, up to a bound that
//! is far beyond what is asked again.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use cloud_sandbox_journal::{Journal, Log, Recovered};
use cloud_sandbox_model::{
    ExecutionId, SandboxId,
    error::{Error, ErrorKind, Result, reason},
};
use cloud_sandbox_proto::checkpoint::v1::AnsweredRequest;
use prost::Message;
use tokio_util::task::TaskTracker;

use crate::sandbox::Activity;

use super::{
    Execution,
    record::{Head, Owned},
};

/// Executions at once. A sandbox's limit of processes usually comes first.
const RUNNING_MAX: usize = 256;
/// Finished executions of a sandbox that can be asked for, newest first; the logs of others go when their time is over.
const KEPT_MAX: usize = 1000;
/// Request ids remembered after their results are gone, so that none runs twice.
const REMEMBERED_MAX: usize = 100_000;
/// Of the newest of them, and of those before a resume, it is known which execution they made of what.
const PAST_MAX: usize = 10_000;

/// The executions of a sandbox.
pub(crate) struct Executions {
    sandbox: SandboxId,
    journal: Journal,
    state: Mutex<State>,
    /// when the sandbox was last in use
    pub(crate) activity: Arc<Activity>,
    /// the tasks that drive them
    pub(crate) tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    /// the journal knows whose the sandbox is
    described: bool,
    /// the sandbox has ended: nothing begins any more
    closed: bool,
    running: usize,
    records: BTreeMap<ExecutionId, Arc<Execution>>,
    named: HashMap<String, ExecutionId>,
    /// oldest first
    finished: VecDeque<ExecutionId>,
    forgotten: Forgotten,
    past: Past,
}

/// Requests whose executions are not kept, the oldest of which make room.
#[derive(Default)]
struct Past {
    known: HashMap<String, PastRequest>,
    order: VecDeque<String>,
}

/// A request that was answered.
#[derive(Debug, Clone)]
struct PastRequest {
    execution_id: String,
    fingerprint: Vec<u8>,
    /// in a sandbox before this one
    before_resume: bool,
}

impl Past {
    fn insert(&mut self, id: &str, request: PastRequest) {
        if self.known.insert(id.to_owned(), request).is_none() {
            self.order.push_back(id.to_owned());
        }
        if self.order.len() > PAST_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// Request ids by their hashes, the oldest of which make room.
#[derive(Default)]
struct Forgotten {
    keys: RandomState,
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Forgotten {
    fn insert(&mut self, id: &str) {
        let hash = self.keys.hash_one(id);
        if self.known.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn contains(&self, id: &str) -> bool {
        self.known.contains(&self.keys.hash_one(id))
    }
}

/// What is to begin.
pub(super) struct Beginning {
    pub(super) id: ExecutionId,
    pub(super) head: Head,
    /// bytes of input at its start, and whether more may come
    pub(super) stdin: (u64, bool),
    /// what is kept of its output, in bytes
    pub(super) output_bytes: u64,
}

/// Whose turn a `request_id` is.
pub(super) enum Turn {
    First(Arc<Execution>),
    Later(Arc<Execution>),
}

impl Executions {
    /// None yet.
    pub(crate) fn new(sandbox: SandboxId, journal: Journal) -> Arc<Self> {
        let (state, activity, tasks) = Default::default();
        Arc::new(Self { sandbox, journal, state, activity, tasks })
    }

    /// Those that an earlier process left of a sandbox, which is no more.
    pub(crate) fn recovered(journal: Journal, left: &Recovered) -> Arc<Self> {
        let executions = Self::new(left.sandbox, journal);
        {
            let mut state = executions.state();
            state.closed = true;
            state.described = true;
            for found in left.logs.iter().filter(|found| !found.log.totals().evicted) {
                let register = Arc::downgrade(&executions);
                match Execution::recovered(found.execution, Arc::clone(&found.log), register) {
                    Some(execution) => state.insert(Arc::new(execution)),
                    None => executions.journal.remove(left.sandbox, found.execution),
                }
            }
            state.finished = state.records.keys().copied().collect();
        }
        executions
    }

    /// The execution that a `request_id` stands for, if it has been here.
    pub(super) fn earlier(&self, request_id: &str, fingerprint: &[u8]) -> Result<Option<Arc<Execution>>> {
        self.state().earlier(request_id, fingerprint)
    }

    /// The requests that were answered here and in sandboxes before this one, oldest first, the newest of too many.
    pub(crate) fn answered(&self) -> Vec<AnsweredRequest> {
        let state = self.state();
        let answer = |id: &str, execution_id: String, fingerprint: &[u8]| AnsweredRequest {
            request_id: id.to_owned(),
            execution_id,
            fingerprint: fingerprint.to_vec().into(),
        };
        let past = state.past.order.iter().filter_map(|id| {
            let request = state.past.known.get(id).filter(|_| !state.named.contains_key(id))?;
            Some(answer(id, request.execution_id.clone(), &request.fingerprint))
        });
        let kept = state.records.values().filter(|execution| !execution.request_id().is_empty());
        let kept =
            kept.map(|execution| answer(execution.request_id(), execution.id.to_string(), execution.fingerprint()));
        let mut answered: Vec<_> = past.chain(kept).collect();
        answered.drain(..answered.len().saturating_sub(PAST_MAX));
        answered
    }

    /// Takes note of requests that were answered in a sandbox before this one: none of them runs again.
    pub(crate) fn remember(&self, answered: Vec<AnsweredRequest>) {
        let mut state = self.state();
        for request in answered {
            let AnsweredRequest { request_id, execution_id, fingerprint } = request;
            if !request_id.is_empty() {
                let fingerprint = fingerprint.to_vec();
                state.past.insert(&request_id, PastRequest { execution_id, fingerprint, before_resume: true });
            }
        }
    }

    /// Those that have not ended, oldest first.
    pub(super) fn running(&self) -> Vec<Arc<Execution>> {
        let state = self.state();
        state.records.values().filter(|execution| execution.known_end().is_none()).cloned().collect()
    }

    /// Lets an execution begin, unless its id has been here. Its end must be told to [`Executions::end`].
    pub(super) fn begin(self: &Arc<Self>, beginning: Beginning, owned: impl FnOnce() -> Owned) -> Result<Turn> {
        let Beginning { id, head, stdin, output_bytes } = beginning;
        let mut state = self.state();
        if let Some(earlier) = state.earlier(&head.execution.request_id, &head.fingerprint)? {
            return Ok(Turn::Later(earlier));
        }
        if state.closed {
            let message = format!("sandbox {} is gone", self.sandbox);
            return Err(Error::new(ErrorKind::NotFound, reason::SANDBOX_GONE, message).before_it_began());
        }
        if state.running >= RUNNING_MAX {
            let message = format!("the sandbox runs {RUNNING_MAX} executions at once already");
            return Err(Error::new(ErrorKind::ResourceExhausted, reason::EXECUTION_LIMIT, message));
        }
        if !state.described {
            self.describe(&owned())?;
            state.described = true;
        }
        let log = self.create(id, &head, output_bytes)?;
        let execution = Arc::new(Execution::new(id, head, log, stdin, Arc::downgrade(self)));
        state.running += 1;
        state.insert(Arc::clone(&execution));
        Ok(Turn::First(execution))
    }

    fn create(&self, id: ExecutionId, head: &Head, bytes: u64) -> Result<Arc<Log>> {
        self.journal.create_within(self.sandbox, id, &head.encode_to_vec(), bytes).map_err(unavailable)
    }

    /// Notes in the journal whose the sandbox is, and why it ended.
    pub(crate) fn describe(&self, owned: &Owned) -> Result<()> {
        self.journal.describe_sandbox(self.sandbox, &owned.encode_to_vec()).map_err(unavailable)
    }

    /// An execution is over. One that never ran is forgotten, so that a repeat tries again.
    pub(super) fn end(&self, execution: &Execution, refused: bool) {
        // deleted when the register is not locked any more
        let mut gone = Vec::new();
        let mut state = self.state();
        state.running -= 1;
        if refused {
            state.named.remove(execution.request_id());
            gone.extend(state.records.remove(&execution.id));
        } else {
            state.finished.push_back(execution.id);
        }
        while state.finished.len() > KEPT_MAX
            && let Some(oldest) = state.finished.pop_front()
        {
            gone.extend(state.forget(oldest));
        }
        drop(state);
        for execution in gone {
            execution.forgotten.store(true, Ordering::Relaxed);
        }
    }

    /// Drops what a forgotten execution printed.
    pub(super) fn discard(&self, id: ExecutionId) {
        self.journal.remove(self.sandbox, id);
    }

    /// The journal has dropped what an execution printed.
    pub(crate) fn evicted(&self, id: ExecutionId) {
        let mut state = self.state();
        state.finished.retain(|finished| *finished != id);
        let gone = state.forget(id);
        drop(state);
        drop(gone);
    }

    /// An execution that is kept.
    pub(crate) fn get(&self, id: ExecutionId) -> Result<Arc<Execution>> {
        let found = self.state().records.get(&id).cloned();
        found.filter(|execution| !execution.log.totals().evicted).ok_or_else(|| {
            let message = format!("execution {id} not found");
            Error::new(ErrorKind::NotFound, reason::EXECUTION_NOT_FOUND, message)
        })
    }

    /// Up to `limit` executions after `after`, oldest first, that `wanted` says yes to.
    pub(crate) fn list(
        &self,
        after: Option<ExecutionId>,
        limit: usize,
        wanted: impl Fn(&Execution) -> bool,
    ) -> Vec<Arc<Execution>> {
        let state = self.state();
        let from = after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let there = |execution: &&Arc<Execution>| !execution.log.totals().evicted && wanted(execution);
        let range = state.records.range((from, std::ops::Bound::Unbounded));
        range.map(|(_, execution)| execution).filter(there).take(limit).cloned().collect()
    }

    /// Whether the journal has anything of the sandbox.
    pub(crate) fn have_begun(&self) -> bool {
        self.state().described
    }

    /// Whether nothing is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.state().records.is_empty()
    }

    /// Nothing begins any more.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.tasks.close();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn earlier(&self, request_id: &str, fingerprint: &[u8]) -> Result<Option<Arc<Execution>>> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let expired = || expired(request_id);
        let Some(execution) = self.named.get(request_id).and_then(|id| self.records.get(id)) else {
            if let Some(past) = self.past.known.get(request_id) {
                return Err(past.refusal(request_id, fingerprint));
            }
            return if self.forgotten.contains(request_id) { Err(expired()) } else { Ok(None) };
        };
        if execution.fingerprint() != fingerprint {
            return Err(reused(request_id));
        }
        if execution.log.totals().evicted { Err(expired()) } else { Ok(Some(Arc::clone(execution))) }
    }

    fn insert(&mut self, execution: Arc<Execution>) {
        if !execution.request_id().is_empty() {
            self.named.insert(execution.request_id().to_owned(), execution.id);
        }
        self.records.insert(execution.id, execution);
    }

    fn forget(&mut self, id: ExecutionId) -> Option<Arc<Execution>> {
        let execution = self.records.remove(&id)?;
        if !execution.request_id().is_empty() {
            self.named.remove(execution.request_id());
            self.forgotten.insert(execution.request_id());
            let fingerprint = execution.fingerprint().to_vec();
            let past = PastRequest { execution_id: id.to_string(), fingerprint, before_resume: false };
            self.past.insert(execution.request_id(), past);
        }
        Some(execution)
    }
}

impl PastRequest {
    fn refusal(&self, request_id: &str, fingerprint: &[u8]) -> Error {
        if self.fingerprint != fingerprint {
            return reused(request_id);
        }
        if !self.before_resume {
            return expired(request_id);
        }
        let execution = &self.execution_id;
        let message = format!(
            "request_id {request_id} ran as execution {execution} before the session was resumed; its result is no \
             longer kept, and it is not run again"
        );
        Error::new(ErrorKind::FailedPrecondition, reason::RESULT_EXPIRED, message)
            .with_metadata("execution_id", execution)
    }
}

fn reused(request_id: &str) -> Error {
    let message = format!("request_id {request_id} stands for another execution");
    Error::new(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, message)
}

/// What those are told who ask again for what is not kept.
pub(super) fn expired(request_id: &str) -> Error {
    let message = format!("the result of request_id {request_id} is no longer kept; it is not run again");
    Error::new(ErrorKind::FailedPrecondition, reason::RESULT_EXPIRED, message)
}

fn unavailable(error: std::io::Error) -> Error {
    let message = "the node's journal of executions is unavailable";
    Error::new(ErrorKind::Unavailable, reason::STORE_UNAVAILABLE, message).with_cause(error)
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::v1;

    use super::*;
    use crate::executions::Exit;

    struct Bench {
        executions: Arc<Executions>,
        folder: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let options = cloud_sandbox_journal::Options::new(folder.path().join("journal"));
            let journal = Journal::open(options).unwrap().0;
            Self { executions: Executions::new(SandboxId::generate(), journal), folder }
        }

        /// In the sandbox's folder.
        fn files(&self) -> usize {
            let folder = self.folder.path().join("journal").join(self.executions.sandbox.to_string());
            std::fs::read_dir(folder).unwrap().count()
        }

        fn begin(&self, request_id: &str, fingerprint: &[u8]) -> Result<Turn> {
            let execution = v1::Execution { request_id: request_id.to_owned(), ..Default::default() };
            let head = Head { execution, fingerprint: fingerprint.to_vec() };
            let beginning = Beginning { id: ExecutionId::generate(), head, stdin: (0, false), output_bytes: u64::MAX };
            self.executions.begin(beginning, Owned::default)
        }

        fn run(&self, request_id: &str) -> Result<Arc<Execution>> {
            match self.begin(request_id, b"1")? {
                Turn::First(execution) => {
                    execution.started(1);
                    execution.end(Ok(Exit::default()));
                    Ok(execution)
                }
                Turn::Later(execution) => Ok(execution),
            }
        }
    }

    #[test]
    fn oldest_results_make_room_and_are_never_run_again() {
        let bench = Bench::new();
        let first = bench.run("r0").unwrap();
        assert_eq!(bench.run("r0").unwrap().id, first.id);
        for index in 1..=KEPT_MAX {
            bench.run(&format!("r{index}")).unwrap();
        }
        let error = bench.run("r0").err().unwrap();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::FailedPrecondition, "RESULT_EXPIRED"));
        assert_eq!(bench.executions.get(first.id).err().unwrap().reason(), "EXECUTION_NOT_FOUND");
        bench.run("r1").unwrap();
    }

    #[test]
    fn what_is_forgotten_leaves_the_journal_when_nobody_reads_it() {
        let bench = Bench::new();
        let first = bench.run("").unwrap();
        for _ in 0..KEPT_MAX + 50 {
            bench.run("").unwrap();
        }
        // the one that is held, and what is noted of the sandbox
        assert_eq!(bench.files(), KEPT_MAX + 2);
        assert!(bench.executions.get(first.id).is_err() && !first.log.totals().evicted);
        let log = Arc::clone(&first.log);
        drop(first);
        assert!(log.totals().evicted);
        assert_eq!(bench.files(), KEPT_MAX + 1);
    }

    #[test]
    fn refused_start_leaves_nothing_in_the_journal() {
        let bench = Bench::new();
        for _ in 0..20 {
            let Turn::First(execution) = bench.begin("a", b"1").unwrap() else { panic!() };
            execution.end(Err(Error::invalid("argv", "must be there")));
        }
        assert_eq!(bench.files(), 1);
    }

    #[test]
    fn refused_start_that_a_crash_left_is_no_execution() {
        let bench = Bench::new();
        let ran = bench.run("ran").unwrap().id;
        let Turn::First(refused) = bench.begin("refused", b"1").unwrap() else { panic!() };
        let Turn::First(lost) = bench.begin("lost", b"1").unwrap() else { panic!() };
        // as far as a process comes that dies before it removes the log
        let tail = super::super::record::Tail { refused: true, ..Default::default() };
        refused.log.finish(&tail.encode_to_vec());
        let (sandbox, ids) = (bench.executions.sandbox, [refused.id, lost.id]);
        let Bench { executions, folder } = bench;
        drop((refused, lost, executions));
        let options = cloud_sandbox_journal::Options::new(folder.path().join("journal"));
        let (journal, left) = Journal::open(options).unwrap();
        let executions = Executions::recovered(journal.clone(), &left[0]);
        let listed: Vec<_> = executions.list(None, 10, |_| true).iter().map(|execution| execution.id).collect();
        // ids of one millisecond have no order
        let mut kept = [ran, ids[1]];
        kept.sort();
        assert_eq!(listed, kept);
        assert!(journal.log(sandbox, ids[0]).is_none() && journal.log(sandbox, ids[1]).is_some());
        assert!(executions.earlier("refused", b"2").unwrap().is_none());
    }

    #[test]
    fn id_with_other_content_is_refused() {
        let bench = Bench::new();
        bench.run("a").unwrap();
        let error = bench.begin("a", b"2").err().unwrap();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::AlreadyExists, "REQUEST_ID_REUSED"));
    }

    #[test]
    fn answered_requests_go_along_from_sandbox_to_sandbox_and_never_run_again() {
        let (first, second, third) = (Bench::new(), Bench::new(), Bench::new());
        let ran = first.run("a").unwrap().id.to_string();
        second.executions.remember(first.executions.answered());
        second.run("b").unwrap();
        third.executions.remember(second.executions.answered());
        for bench in [&second, &third] {
            let error = bench.run("a").err().unwrap();
            assert_eq!((error.kind(), error.reason()), (ErrorKind::FailedPrecondition, "RESULT_EXPIRED"));
            assert!(error.message().contains(&ran) && error.message().contains("resumed"), "{}", error.message());
            assert_eq!(bench.begin("a", b"2").err().unwrap().reason(), "REQUEST_ID_REUSED");
        }
        assert_eq!(third.run("b").err().unwrap().reason(), "RESULT_EXPIRED");
        third.run("c").unwrap();
        let names: Vec<_> = third.executions.answered().into_iter().map(|request| request.request_id).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn answered_requests_are_the_newest_of_too_many() {
        let bench = Bench::new();
        let request = |number: usize| AnsweredRequest { request_id: format!("r{number}"), ..Default::default() };
        bench.executions.remember((0..PAST_MAX).map(request).collect());
        bench.run("new").unwrap();
        let answered = bench.executions.answered();
        assert_eq!((answered.len(), answered[0].request_id.as_str()), (PAST_MAX, "r1"));
        assert_eq!(answered[PAST_MAX - 1].request_id, "new");
    }

    #[test]
    fn one_that_never_ran_is_forgotten() {
        let bench = Bench::new();
        let Turn::First(execution) = bench.begin("a", b"1").unwrap() else { panic!() };
        execution.end(Err(Error::invalid("argv", "must be there")));
        assert!(matches!(bench.begin("a", b"2").unwrap(), Turn::First(_)));
        assert!(bench.executions.get(execution.id).is_err());
    }

    #[test]
    fn executions_at_once_are_bounded() {
        let bench = Bench::new();
        let running: Vec<_> = (0..RUNNING_MAX).map(|_| bench.begin("", b"").unwrap()).collect();
        assert_eq!(bench.begin("", b"").err().unwrap().reason(), "EXECUTION_LIMIT");
        let Turn::First(execution) = &running[0] else { panic!() };
        execution.started(1);
        execution.end(Ok(Exit::default()));
        assert!(bench.begin("", b"").is_ok());
    }

    #[test]
    fn nothing_begins_once_the_sandbox_has_ended() {
        let bench = Bench::new();
        bench.run("a").unwrap();
        bench.executions.close();
        assert!(bench.run("a").is_ok());
        assert_eq!(bench.run("b").err().unwrap().reason(), "SANDBOX_GONE");
    }

    #[test]
    fn forgotten_ids_are_bounded() {
        let mut forgotten = Forgotten::default();
        for index in 0..REMEMBERED_MAX + 10 {
            forgotten.insert(&index.to_string());
        }
        assert!(!forgotten.contains("9") && forgotten.contains("10"));
        assert_eq!((forgotten.known.len(), forgotten.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
    }
}
