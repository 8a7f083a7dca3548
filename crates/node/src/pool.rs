//! How many sandboxes there are in which state, and which warm ones are free: decisions only, nothing here waits.
//!
//! Invariant: whatever exists holds exactly one [`Slot`], from before it is made until nothing of it is left, and the
//! slots never exceed `max`. A sandbox leaves the pool once, to whoever holds its [`Taken`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cloud_sandbox_model::{
    SandboxState,
    error::{Error, ErrorKind, Result, reason},
};
use tokio::sync::{Notify, oneshot};

use crate::{
    sandbox::{EndCause, Sandbox},
    templates::Origin,
};

/// Sandboxes by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) creating: usize,
    pub(crate) ready: usize,
    pub(crate) acquired: usize,
    pub(crate) paused: usize,
    pub(crate) terminating: usize,
}

impl Counts {
    fn total(&self) -> usize {
        self.creating + self.ready + self.acquired + self.paused + self.terminating
    }

    fn of(&mut self, state: SandboxState) -> &mut usize {
        match state {
            SandboxState::Creating => &mut self.creating,
            SandboxState::Ready => &mut self.ready,
            SandboxState::Acquired => &mut self.acquired,
            SandboxState::Paused => &mut self.paused,
            SandboxState::Terminating => &mut self.terminating,
        }
    }
}

/// The word for a state in metrics and messages.
pub(crate) const fn word(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Creating => "creating",
        SandboxState::Ready => "ready",
        SandboxState::Acquired => "acquired",
        SandboxState::Paused => "paused",
        SandboxState::Terminating => "terminating",
    }
}

#[derive(Default)]
struct State {
    counts: Counts,
    /// by the references of templates
    shelves: BTreeMap<String, Shelf>,
    /// slots that victims will free, promised to whoever had them destroyed
    promised: usize,
    closed: bool,
}

/// The warm sandboxes of one template.
struct Shelf {
    origin: Arc<Origin>,
    /// how many there are to be
    warm: usize,
    ready: VecDeque<Arc<Sandbox>>,
    /// being made for the pool
    filling: usize,
    /// callers who will be given what is being made
    waiters: VecDeque<oneshot::Sender<Taken>>,
}

/// The census of a node, and its warm sandboxes.
pub(crate) struct Pool {
    state: Mutex<State>,
    /// warm sandboxes of the default template
    pub(crate) min: usize,
    max: usize,
    /// the pool may want more
    pub(crate) refill: Notify,
    /// the counts, or what is told of templates, are others now
    pub(crate) changed: Notify,
}

/// How to come by a sandbox.
pub(crate) enum Way {
    /// this one is warm
    Warm(Taken),
    /// one that is being made for the pool will be given
    Wait(oneshot::Receiver<Taken>),
    /// there is room to make one
    Create(Slot),
    /// there is room once this unsuitable one is destroyed
    Evict(Taken, Promise),
    /// there is no room
    Full,
}

impl Shelf {
    fn new(origin: &Arc<Origin>) -> Self {
        Self { origin: Arc::clone(origin), warm: 0, ready: VecDeque::new(), filling: 0, waiters: VecDeque::new() }
    }

    fn wanted(&self) -> usize {
        self.warm + self.waiters.len()
    }

    fn has(&self) -> usize {
        self.ready.len() + self.filling
    }

    /// Whether its template comes before another's: the one that has the smaller part of what it is to have.
    fn is_emptier_than(&self, other: &Self) -> bool {
        self.has() * other.wanted() < other.has() * self.wanted()
    }

    /// Ends what is warm; what is being made ends when it is made.
    fn retire(self) {
        self.origin.retired.cancel();
        for sandbox in self.ready {
            sandbox.end(EndCause::Retired);
        }
    }
}

impl State {
    fn shelf(&mut self, origin: &Arc<Origin>) -> Option<&mut Shelf> {
        let shelf = self.shelves.get_mut(origin.reference());
        shelf.filter(|shelf| Arc::ptr_eq(&shelf.origin, origin))
    }

    /// A warm sandbox that has to make room for one of `origin`: of another template as long as there is one, of the one
    /// that has most.
    fn victim(&mut self, origin: &Arc<Origin>) -> Option<Arc<Sandbox>> {
        let others = self.shelves.iter_mut().filter(|(reference, _)| *reference != origin.reference());
        let fullest = others.map(|(_, shelf)| shelf).max_by_key(|shelf| shelf.ready.len());
        let victim = fullest.and_then(|shelf| shelf.ready.pop_front());
        victim.or_else(|| self.shelves.get_mut(origin.reference())?.ready.pop_front())
    }
}

impl Pool {
    pub(crate) fn new(min: usize, max: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), min, max, refill: Notify::new(), changed: Notify::new() })
    }

    /// Finds a way for a caller; `warm_fits` says whether a warm sandbox can be what it wants.
    pub(crate) fn choose(self: &Arc<Self>, origin: &Arc<Origin>, warm_fits: bool) -> Way {
        let mut state = self.state();
        if state.closed {
            return Way::Full;
        }
        if let Some(shelf) = state.shelf(origin).filter(|_| warm_fits) {
            if let Some(sandbox) = shelf.ready.pop_front() {
                self.refill.notify_one();
                return Way::Warm(Taken::new(sandbox));
            }
            shelf.waiters.retain(|waiter| !waiter.is_closed());
            if shelf.filling > shelf.waiters.len() {
                let (sender, receiver) = oneshot::channel();
                shelf.waiters.push_back(sender);
                self.refill.notify_one();
                return Way::Wait(receiver);
            }
        }
        if let Some(slot) = self.reserve(&mut state) {
            return Way::Create(slot);
        }
        match state.victim(origin) {
            Some(victim) => {
                state.promised += 1;
                Way::Evict(Taken::new(victim), Promise(Arc::clone(self)))
            }
            None => Way::Full,
        }
    }

    /// A slot for the pool's own next sandbox, if it wants one of a template that `may` have one now, and what that is made
    /// from. [`Pool::offer`] or [`Pool::fill_failed`] must follow.
    pub(crate) fn want(self: &Arc<Self>, may: impl Fn(&str) -> bool) -> Option<(Slot, Arc<Origin>)> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        for shelf in state.shelves.values_mut() {
            shelf.waiters.retain(|waiter| !waiter.is_closed());
        }
        let lacking = state.shelves.iter().filter(|(reference, shelf)| shelf.has() < shelf.wanted() && may(reference));
        let emptiest =
            lacking.map(|(_, shelf)| shelf).reduce(|one, other| if other.is_emptier_than(one) { other } else { one });
        let origin = Arc::clone(&emptiest?.origin);
        let slot = self.reserve(&mut state)?;
        if let Some(shelf) = state.shelf(&origin) {
            shelf.filling += 1;
        }
        Some((slot, origin))
    }

    /// Takes a sandbox that was made for the pool. One that nobody wants any more ends.
    pub(crate) fn offer(&self, sandbox: &Arc<Sandbox>) {
        let mut state = self.state();
        let Some(shelf) = state.shelf(&sandbox.origin) else { return sandbox.end(EndCause::Retired) };
        shelf.filling -= 1;
        let mut taken = Taken::new(Arc::clone(sandbox));
        while let Some(waiter) = shelf.waiters.pop_front() {
            match waiter.send(taken) {
                Ok(()) => return,
                Err(back) => taken = back,
            }
        }
        shelf.ready.push_back(taken.keep());
    }

    /// One that was made for the pool came to nothing. Waiters beyond what is still being made find another way.
    pub(crate) fn fill_failed(&self, origin: &Arc<Origin>) {
        let mut state = self.state();
        let Some(shelf) = state.shelf(origin) else { return };
        shelf.filling -= 1;
        shelf.waiters.truncate(shelf.filling);
    }

    /// Removes a sandbox that has ended by itself.
    pub(crate) fn forget(&self, sandbox: &Sandbox) {
        if let Some(shelf) = self.state().shelf(&sandbox.origin) {
            shelf.ready.retain(|ready| ready.id != sandbox.id);
        }
        self.refill.notify_one();
    }

    /// Keeps so many warm sandboxes of a template. What there is of an earlier one by its reference ends.
    pub(crate) fn stock(&self, origin: &Arc<Origin>, warm: usize) {
        let mut state = self.state();
        if state.shelf(origin).is_none()
            && let Some(old) = state.shelves.insert(origin.reference().to_owned(), Shelf::new(origin))
        {
            old.retire();
        }
        if let Some(shelf) = state.shelf(origin).filter(|shelf| shelf.warm != warm) {
            shelf.warm = warm;
            for surplus in shelf.ready.drain(warm.min(shelf.ready.len())..) {
                surplus.end(EndCause::Retired);
            }
        }
        self.refill.notify_one();
    }

    /// Makes no more of a template for now; what there is stays.
    pub(crate) fn rest(&self, reference: &str) {
        if let Some(shelf) = self.state().shelves.get_mut(reference) {
            shelf.warm = 0;
        }
    }

    /// Ends what is warm of a template, and makes no more.
    pub(crate) fn clear(&self, reference: &str) {
        if let Some(shelf) = self.state().shelves.remove(reference) {
            shelf.retire();
        }
    }

    /// Gives and makes nothing any more.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for shelf in state.shelves.values_mut() {
            shelf.waiters.clear();
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.state().counts
    }

    fn reserve(self: &Arc<Self>, state: &mut State) -> Option<Slot> {
        if state.counts.total() + state.promised >= self.max {
            return None;
        }
        state.counts.creating += 1;
        self.report(&state.counts);
        Some(Slot { pool: Arc::clone(self), state: SandboxState::Creating })
    }

    fn report(&self, counts: &Counts) {
        let mut counts = *counts;
        for state in SandboxState::ALL {
            metrics::gauge!("cloud_sandbox_pool_sandboxes", "state" => word(state)).set(*counts.of(state) as f64);
        }
        metrics::gauge!("cloud_sandbox_leases").set((counts.acquired + counts.paused) as f64);
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for one sandbox, and the state it counts under.
pub(crate) struct Slot {
    pool: Arc<Pool>,
    state: SandboxState,
}

impl Slot {
    pub(crate) fn state(&self) -> SandboxState {
        self.state
    }

    /// Counts the sandbox under its next state, if it may go there.
    pub(crate) fn enter(&mut self, next: SandboxState) -> Result<()> {
        if !self.state.may_become(next) {
            let message = format!("a sandbox that is {} cannot become {}", word(self.state), word(next));
            return Err(Error::new(ErrorKind::FailedPrecondition, reason::INVALID_REQUEST, message));
        }
        let mut state = self.pool.state();
        *state.counts.of(self.state) -= 1;
        *state.counts.of(next) += 1;
        self.pool.report(&state.counts);
        drop(state);
        self.state = next;
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        *state.counts.of(self.state) -= 1;
        self.pool.report(&state.counts);
        drop(state);
        self.pool.refill.notify_one();
    }
}

/// The slot of a victim, for the caller it dies for.
pub(crate) struct Promise(Arc<Pool>);

impl Promise {
    /// The slot, once the victim is gone.
    pub(crate) fn redeem(self) -> Option<Slot> {
        let mut state = self.0.state();
        state.promised -= 1;
        let slot = self.0.reserve(&mut state);
        // the lock must not be held, and the promise not be given back, when it is dropped
        state.promised += 1;
        drop(state);
        slot
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.state().promised -= 1;
        self.0.refill.notify_one();
    }
}

/// A sandbox that somebody is about to acquire. Dropped before it is kept, it is destroyed: nobody knows of it.
pub(crate) struct Taken(Option<Arc<Sandbox>>);

impl Taken {
    pub(crate) fn new(sandbox: Arc<Sandbox>) -> Self {
        Self(Some(sandbox))
    }

    pub(crate) fn sandbox(&self) -> &Arc<Sandbox> {
        self.0.as_ref().expect("only keep and drop empty it")
    }

    /// Lets it live.
    pub(crate) fn keep(mut self) -> Arc<Sandbox> {
        self.0.take().expect("only keep and drop empty it")
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(sandbox) = self.0.take() {
            sandbox.abandon();
        }
    }
}
