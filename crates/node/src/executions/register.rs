//! Which executions of a sandbox run, and which are remembered: decisions only.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};

use super::Execution;

/// Executions at once. A sandbox's limit of processes usually comes first.
const RUNNING_MAX: usize = 256;
/// What running executions of all sandboxes may come to hold on the node, in bytes of output.
const RUNNING_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// Finished executions kept for a repeated `request_id`.
const KEPT_MAX: usize = 64;
/// The output that these may hold, in bytes.
const KEPT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Request ids remembered after their results are gone, so that none runs twice.
const REMEMBERED_MAX: usize = 10_000;

/// Whose turn a `request_id` is.
pub(super) enum Turn {
    First,
    Later(Arc<Execution>),
}

/// What an id stands for.
struct Named {
    fingerprint: u64,
    /// none once it was dropped
    execution: Option<Arc<Execution>>,
}

/// What the running executions of all sandboxes of a node may still come to hold, in bytes of output.
pub(crate) struct OutputBudget(AtomicUsize);

impl Default for OutputBudget {
    fn default() -> Self {
        Self(AtomicUsize::new(RUNNING_BYTES_MAX))
    }
}

impl OutputBudget {
    fn take(&self, bytes: usize) -> bool {
        let less = |left: usize| left.checked_sub(bytes);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct State {
    running: usize,
    named: HashMap<String, Named>,
    /// finished ones, oldest first, with the bytes they hold
    kept: VecDeque<(String, usize)>,
    kept_bytes: usize,
    /// dropped ones, oldest first
    dropped: VecDeque<String>,
}

/// The executions of a sandbox.
#[derive(Default)]
pub(crate) struct Executions {
    state: Mutex<State>,
    budget: Arc<OutputBudget>,
}

impl Executions {
    /// None yet, with a part in the node's budget.
    pub(crate) fn within(budget: Arc<OutputBudget>) -> Self {
        Self { state: Mutex::default(), budget }
    }

    /// Lets `execution` begin, unless its id has been here. [`Executions::end`] must follow a first turn.
    pub(super) fn begin(&self, execution: &Arc<Execution>, id: &str, fingerprint: u64, bytes: usize) -> Result<Turn> {
        let mut state = self.state();
        if let Some(named) = state.named.get(id) {
            return named.later(id, fingerprint).map(Turn::Later);
        }
        self.enter_with(&mut state, bytes)?;
        if !id.is_empty() {
            state.named.insert(id.to_owned(), Named { fingerprint, execution: Some(Arc::clone(execution)) });
        }
        Ok(Turn::First)
    }

    /// Room for an execution that is not recorded. [`Executions::leave`] must follow.
    pub(crate) fn enter(&self) -> Result<()> {
        self.enter_with(&mut self.state(), 0)
    }

    fn enter_with(&self, state: &mut State, bytes: usize) -> Result<()> {
        let refused = |message: String| Error::new(ErrorKind::ResourceExhausted, reason::EXECUTION_LIMIT, message);
        if state.running >= RUNNING_MAX {
            return Err(refused(format!("the sandbox runs {RUNNING_MAX} executions at once already")));
        }
        if !self.budget.take(bytes) {
            return Err(refused("the node has no room for the output of another execution".to_owned()));
        }
        state.running += 1;
        Ok(())
    }

    /// An execution that was not recorded is over.
    pub(crate) fn leave(&self) {
        self.state().running -= 1;
    }

    /// An execution is over. One that never started is forgotten, so that a repeat tries again.
    pub(super) fn end(&self, execution: &Execution, id: &str, bytes: usize) {
        let (started, kept_bytes) = {
            let capture = execution.capture.borrow();
            (capture.started, capture.kept_bytes())
        };
        let mut state = self.state();
        state.running -= 1;
        self.budget.give_back(bytes);
        if id.is_empty() {
            return;
        }
        if started {
            state.keep(id, kept_bytes);
        } else {
            state.named.remove(id);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Named {
    fn later(&self, id: &str, fingerprint: u64) -> Result<Arc<Execution>> {
        if self.fingerprint != fingerprint {
            let message = format!("request_id {id} stands for another execution");
            return Err(Error::new(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, message));
        }
        self.execution.clone().ok_or_else(|| {
            let message = format!("the result of request_id {id} is no longer kept; it is not run again");
            Error::new(ErrorKind::FailedPrecondition, reason::INVALID_REQUEST, message)
        })
    }
}

impl State {
    fn keep(&mut self, id: &str, bytes: usize) {
        self.kept.push_back((id.to_owned(), bytes));
        self.kept_bytes += bytes;
        while self.kept.len() > KEPT_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            let Some((id, bytes)) = self.kept.pop_front() else { break };
            self.kept_bytes -= bytes;
            if let Some(named) = self.named.get_mut(&id) {
                named.execution = None;
            }
            self.dropped.push_back(id);
        }
        while self.dropped.len() > REMEMBERED_MAX {
            if let Some(id) = self.dropped.pop_front() {
                self.named.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(executions: &Executions, id: &str, output: usize) -> Result<Turn> {
        let execution = Arc::new(Execution::new());
        let turn = executions.begin(&execution, id, 1, 0)?;
        if matches!(turn, Turn::First) {
            execution.capture.send_modify(|capture| {
                capture.started = true;
                capture.push_stdout(&vec![b'x'; output], output);
            });
            executions.end(&execution, id, 0);
        }
        Ok(turn)
    }

    #[test]
    fn oldest_results_make_room_and_are_never_run_again() {
        let executions = Executions::default();
        for index in 0..=KEPT_MAX {
            assert!(matches!(run(&executions, &format!("r{index}"), 1).unwrap(), Turn::First));
        }
        assert!(matches!(run(&executions, "r1", 1).unwrap(), Turn::Later(_)));
        let error = run(&executions, "r0", 1).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.message().contains("no longer kept"), "{error}");
    }

    #[test]
    fn kept_output_is_bounded_by_its_bytes() {
        let executions = Executions::default();
        for id in ["a", "b", "c"] {
            run(&executions, id, KEPT_BYTES_MAX / 2).unwrap();
        }
        assert!(run(&executions, "a", 1).is_err());
        assert!(matches!(run(&executions, "b", 1).unwrap(), Turn::Later(_)));
    }

    #[test]
    fn remembered_ids_are_bounded() {
        let executions = Executions::default();
        for index in 0..REMEMBERED_MAX + KEPT_MAX + 10 {
            run(&executions, &format!("r{index}"), 0).unwrap();
        }
        assert_eq!(executions.state().named.len(), REMEMBERED_MAX + KEPT_MAX);
    }

    #[test]
    fn id_with_other_content_is_refused() {
        let executions = Executions::default();
        run(&executions, "a", 1).unwrap();
        let error = executions.begin(&Arc::new(Execution::new()), "a", 2, 0).err().unwrap();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::AlreadyExists, "REQUEST_ID_REUSED"));
    }

    #[test]
    fn executions_at_once_are_bounded_by_number_and_by_what_the_whole_node_may_print() {
        let executions = Executions::default();
        for _ in 0..RUNNING_MAX {
            executions.enter().unwrap();
        }
        assert_eq!(executions.enter().unwrap_err().reason(), "EXECUTION_LIMIT");
        executions.leave();
        executions.enter().unwrap();

        let budget = Arc::new(OutputBudget::default());
        let (large, other) = (Executions::within(Arc::clone(&budget)), Executions::within(budget));
        let execution = Arc::new(Execution::new());
        large.begin(&execution, "", 0, RUNNING_BYTES_MAX).unwrap();
        assert_eq!(other.begin(&execution, "", 0, 1).err().unwrap().reason(), "EXECUTION_LIMIT");
        large.end(&execution, "", RUNNING_BYTES_MAX);
        other.begin(&execution, "", 0, 1).unwrap();
    }
}
