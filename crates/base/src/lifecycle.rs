//! The lifecycle of background work: every task has an owner, a name, a readiness and a drain.
//!
//! A [`Component`] is built from a finished configuration and handles, binds its ports when it is built, and starts
//! work only in [`Component::run`]. The [`Supervisor`] starts components when those that they come after are ready,
//! restarts or ends on failure as the component's policy says, and drains them in reverse order.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::BoxError;
use crate::backoff::Policy;

/// Delays between restarts of a failed component.
const RESTART: Policy = Policy { first: Duration::from_millis(100), max: Duration::from_secs(10) };

/// What the supervisor does when a component's `run` returns an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Run it again after a back-off.
    Restart,
    /// Drain everything and report the error: the process cannot do its work without it.
    Die,
}

/// A named piece of background work.
#[async_trait]
pub trait Component: Send + Sync + 'static {
    /// Its name in logs and in `/readyz`.
    fn name(&self) -> &'static str;
    /// The components that must be ready before this one starts.
    fn after(&self) -> &'static [&'static str] {
        &[]
    }
    /// What happens when it fails.
    fn on_failure(&self) -> OnFailure {
        OnFailure::Die
    }
    /// Works until `ctx` is cancelled; calls [`Context::ready`] once it can serve. To return before that is a failure,
    /// with or without an error. Tasks that it has spawned end with the run.
    async fn run(&self, ctx: Context) -> Result<(), BoxError>;
}

/// What a running component is given.
#[derive(Debug, Clone)]
pub struct Context {
    name: &'static str,
    cancel: CancellationToken,
    tasks: TaskTracker,
    readiness: Readiness,
}

impl Context {
    /// Declares the component ready. Later calls do nothing.
    pub fn ready(&self) {
        self.readiness.set(self.name, State::Ready);
    }

    /// Says what the component waits for before it is ready, for whoever waits for the component.
    pub fn waiting_for(&self, what: &str) {
        self.readiness.set(self.name, State::Waiting(format!("waits for {what}")));
    }

    /// The token that is cancelled when the component has to drain.
    pub fn cancel(&self) -> &CancellationToken {
        &self.cancel
    }

    /// Returns when the component has to drain.
    pub async fn cancelled(&self) {
        self.cancel.cancelled().await;
    }

    /// Spawns a task that belongs to this component: it is dropped at its next await point when the drain begins.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancel = self.cancel.clone();
        self.tasks.spawn(async move {
            tokio::select! { () = cancel.cancelled() => {}, () = task => {} }
        })
    }

    /// Spawns a task that the drain waits for: it watches [`Context::cancel`] itself.
    pub fn spawn_draining<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task)
    }

    /// A context outside any supervisor, for tests and short-lived programs.
    pub fn detached(name: &'static str) -> Self {
        Self {
            name,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
            readiness: Readiness::default(),
        }
    }
}

/// A set of tasks that end when their owner is dropped, for library code that is not a component of its own.
#[derive(Debug)]
pub struct Tasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Default for Tasks {
    fn default() -> Self {
        Self { cancel: CancellationToken::new(), tracker: TaskTracker::new() }
    }
}

impl Tasks {
    /// Spawns a task that ends, at the latest, with this set.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! { () = cancel.cancelled() => {}, () = task => {} }
        })
    }

    /// Ends every task and waits for them.
    pub async fn shutdown(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What a component says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Ready,
    /// Not yet; why, if it is known.
    Waiting(String),
}

/// Which components are ready; cloned into whoever serves `/readyz`.
#[derive(Debug, Clone)]
pub struct Readiness {
    state: Arc<watch::Sender<HashMap<&'static str, State>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self { state: Arc::new(watch::Sender::new(HashMap::new())) }
    }
}

impl Readiness {
    /// The names of components that are not ready, sorted.
    pub fn missing(&self) -> Vec<&'static str> {
        self.waiting().into_iter().map(|(name, _)| name).collect()
    }

    /// The components that are not ready, sorted by name, each with what it says of the reason (may be empty).
    pub fn waiting(&self) -> Vec<(&'static str, String)> {
        let state = self.state.borrow();
        let mut waiting: Vec<_> = state
            .iter()
            .filter_map(|(name, state)| match state {
                State::Ready => None,
                State::Waiting(why) => Some((*name, why.clone())),
            })
            .collect();
        waiting.sort_unstable();
        waiting
    }

    /// Returns when [`Readiness::waiting`] differs from `seen`; gives the new list.
    pub async fn changed(&self, seen: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
        let mut state = self.state.subscribe();
        loop {
            let waiting = self.waiting();
            if waiting != seen || state.changed().await.is_err() {
                return waiting;
            }
        }
    }

    /// Returns when every one of `names` is ready.
    pub async fn wait_for(&self, names: &[&str]) {
        let mut state = self.state.subscribe();
        // The sender is held by `self`, so waiting cannot fail.
        let _ = state.wait_for(|all| names.iter().all(|name| all.get(name) == Some(&State::Ready))).await;
    }

    /// Returns when every registered component is ready.
    pub async fn wait_all(&self) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|all| all.values().all(|state| *state == State::Ready)).await;
    }

    fn is_ready(&self, name: &str) -> bool {
        self.state.borrow().get(name) == Some(&State::Ready)
    }

    fn set(&self, name: &'static str, state: State) {
        self.state.send_if_modified(|all| {
            let changed = all.get(name) != Some(&state);
            all.insert(name, state);
            changed
        });
    }
}

/// Starts, watches and drains components.
#[derive(Default)]
pub struct Supervisor {
    components: Vec<Arc<dyn Component>>,
    readiness: Readiness,
    failure: Arc<Mutex<Option<(&'static str, BoxError)>>>,
}

impl Supervisor {
    /// No components yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a component. Dependencies come before those that name them.
    ///
    /// # Panics
    /// If a component names one in `after` that was not added before it: a fault of the wiring, caught by any test.
    pub fn add(&mut self, component: Arc<dyn Component>) {
        for dependency in component.after() {
            assert!(
                self.components.iter().any(|known| known.name() == *dependency),
                "component {} comes after {dependency}, which was not added before it",
                component.name()
            );
        }
        let why = match component.after() {
            [] => String::new(),
            after => format!("comes after {}", after.join(", ")),
        };
        self.readiness.set(component.name(), State::Waiting(why));
        self.components.push(component);
    }

    /// The readiness of all components.
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Runs everything until `stop` is cancelled or a component that may not fail has failed; then drains in reverse
    /// order, each component for at most `drain_max`.
    pub async fn run(self, stop: CancellationToken, drain_max: Duration) -> Result<(), BoxError> {
        let mut running = Vec::new();
        for component in &self.components {
            let cancel = CancellationToken::new();
            let tasks = TaskTracker::new();
            let ctx = Context {
                name: component.name(),
                cancel: cancel.clone(),
                tasks: tasks.clone(),
                readiness: self.readiness.clone(),
            };
            tasks.spawn(keep_running(component.clone(), ctx, stop.clone(), self.failure.clone()));
            running.push((component.name(), cancel, tasks));
        }
        stop.cancelled().await;
        for (name, cancel, tasks) in running.into_iter().rev() {
            cancel.cancel();
            tasks.close();
            if tokio::time::timeout(drain_max, tasks.wait()).await.is_err() {
                tracing::warn!(component = name, "did not drain within {} s", drain_max.as_secs());
            }
        }
        match self.failure.lock().take() {
            Some((name, error)) => {
                Err(format!("component {name} failed: {}", crate::error::chain(&*error)).into())
            }
            None => Ok(()),
        }
    }
}

/// The delays between the restarts of one component.
#[derive(Debug, Default)]
struct Restarts {
    failures: u32,
}

impl Restarts {
    /// Counts a failure; tells how long to wait. `worked`: how long the run lasted, where it had become ready. One that
    /// worked for as long as the longest delay has recovered from what was before.
    fn failed(&mut self, worked: Option<Duration>) -> Duration {
        if worked.is_some_and(|worked| worked >= RESTART.max) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        RESTART.delay(self.failures)
    }
}

/// Starts one component after those it depends on and applies its failure policy until it is cancelled.
async fn keep_running(
    component: Arc<dyn Component>,
    ctx: Context,
    stop: CancellationToken,
    failure: Arc<Mutex<Option<(&'static str, BoxError)>>>,
) {
    tokio::select! {
        () = ctx.readiness.wait_for(component.after()) => {}
        () = ctx.cancelled() => return,
    }
    let mut restarts = Restarts::default();
    while !ctx.cancel.is_cancelled() {
        let begun = Instant::now();
        // Each run has tasks of its own: those of a run that failed have ended when the next one begins.
        let run = Context { cancel: ctx.cancel.child_token(), tasks: TaskTracker::new(), ..ctx.clone() };
        let result = component.run(run.clone()).await;
        run.cancel.cancel();
        run.tasks.close();
        let error = match result {
            Err(error) => error,
            // Others that it works with may be gone before its own turn to drain comes.
            Ok(()) if ctx.cancel.is_cancelled() || stop.is_cancelled() => return run.tasks.wait().await,
            Ok(()) => "it ended though nobody asked it to".into(),
        };
        let why = crate::error::chain(&*error);
        tracing::error!(component = component.name(), error = %why, "component failed");
        let worked = ctx.readiness.is_ready(component.name()).then(|| begun.elapsed());
        ctx.readiness.set(component.name(), State::Waiting(format!("failed: {why}")));
        if component.on_failure() == OnFailure::Die {
            failure.lock().get_or_insert((component.name(), error));
            stop.cancel();
            return run.tasks.wait().await;
        }
        if tokio::time::timeout(RESTART.max, run.tasks.wait()).await.is_err() {
            tracing::warn!(component = component.name(), "tasks of the run that failed do not end");
        }
        tokio::select! {
            () = tokio::time::sleep(restarts.failed(worked)) => {}
            () = ctx.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Fake {
        name: &'static str,
        after: &'static [&'static str],
        fails: AtomicU32,
        policy: OnFailure,
        log: Arc<Mutex<Vec<String>>>,
    }

    #[async_trait]
    impl Component for Fake {
        fn name(&self) -> &'static str {
            self.name
        }
        fn after(&self) -> &'static [&'static str] {
            self.after
        }
        fn on_failure(&self) -> OnFailure {
            self.policy
        }
        async fn run(&self, ctx: Context) -> Result<(), BoxError> {
            if self.fails.load(Ordering::SeqCst) > 0 {
                self.fails.fetch_sub(1, Ordering::SeqCst);
                return Err("no".into());
            }
            self.log.lock().push(format!("start {}", self.name));
            ctx.ready();
            ctx.cancelled().await;
            self.log.lock().push(format!("stop {}", self.name));
            Ok(())
        }
    }

    fn fake(
        name: &'static str,
        after: &'static [&'static str],
        fails: u32,
        policy: OnFailure,
        log: &Arc<Mutex<Vec<String>>>,
    ) -> Arc<Fake> {
        Arc::new(Fake { name, after, fails: AtomicU32::new(fails), policy, log: log.clone() })
    }

    #[tokio::test]
    async fn what_is_not_ready_says_why() {
        let mut supervisor = Supervisor::new();
        let log = Arc::default();
        supervisor.add(fake("store", &[], 0, OnFailure::Die, &log));
        supervisor.add(fake("api", &["store"], 0, OnFailure::Die, &log));
        let readiness = supervisor.readiness();
        let before = readiness.waiting();
        assert_eq!(before, [("api", "comes after store".to_owned()), ("store", String::new())]);
        let ctx = Context { readiness: readiness.clone(), ..Context::detached("store") };
        ctx.waiting_for("its files");
        let now = readiness.changed(&before).await;
        assert_eq!(now[1], ("store", "waits for its files".to_owned()));
        ctx.ready();
        assert_eq!(readiness.changed(&now).await.len(), 1);
    }

    #[tokio::test]
    async fn starts_in_order_restarts_and_drains_in_reverse() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut supervisor = Supervisor::new();
        supervisor.add(fake("store", &[], 2, OnFailure::Restart, &log));
        supervisor.add(fake("api", &["store"], 0, OnFailure::Die, &log));
        let readiness = supervisor.readiness();
        assert_eq!(readiness.missing(), ["api", "store"]);
        let stop = CancellationToken::new();
        let (result, ()) = tokio::join!(supervisor.run(stop.clone(), Duration::from_secs(60)), async {
            readiness.wait_all().await;
            stop.cancel();
        });
        assert!(result.is_ok());
        assert_eq!(*log.lock(), ["start store", "start api", "stop api", "stop store"]);
    }

    #[tokio::test]
    async fn a_fatal_failure_is_reported() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut supervisor = Supervisor::new();
        supervisor.add(fake("store", &[], 1, OnFailure::Die, &log));
        let error = supervisor.run(CancellationToken::new(), Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(error.to_string(), "component store failed: no");
    }

    /// Counts the tasks of its runs, fails when it is told to, and once without an error.
    #[derive(Default)]
    struct Leaky {
        runs: AtomicU32,
        alive: Arc<AtomicU32>,
        /// How many tasks of earlier runs each run found alive.
        found: Mutex<Vec<u32>>,
        fail: tokio::sync::Notify,
        began: tokio::sync::Notify,
    }

    #[async_trait]
    impl Component for Leaky {
        fn name(&self) -> &'static str {
            "leaky"
        }
        fn on_failure(&self) -> OnFailure {
            OnFailure::Restart
        }
        async fn run(&self, ctx: Context) -> Result<(), BoxError> {
            let run = self.runs.fetch_add(1, Ordering::SeqCst);
            self.found.lock().push(self.alive.load(Ordering::SeqCst));
            for draining in [false, true] {
                self.alive.fetch_add(1, Ordering::SeqCst);
                let counted = Guard(self.alive.clone());
                let cancel = ctx.cancel().clone();
                let task = async move {
                    let _counted = counted;
                    if draining { cancel.cancelled().await } else { std::future::pending().await }
                };
                if draining {
                    ctx.spawn_draining(task)
                } else {
                    ctx.spawn(task)
                };
            }
            ctx.ready();
            self.began.notify_one();
            tokio::select! {
                () = ctx.cancelled() => Ok(()),
                () = self.fail.notified() => if run == 0 { Ok(()) } else { Err("told to".into()) },
            }
        }
    }

    /// A task that is alive.
    struct Guard(Arc<AtomicU32>);

    impl Drop for Guard {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn a_run_that_ends_takes_its_tasks_along() {
        let leaky = Arc::new(Leaky::default());
        let mut supervisor = Supervisor::new();
        supervisor.add(leaky.clone());
        let readiness = supervisor.readiness();
        let stop = CancellationToken::new();
        let story = async {
            for _ in 0..3 {
                leaky.began.notified().await;
                leaky.fail.notify_one();
                // Also an end without an error is one, and is told.
                let failed = readiness.changed(&[]).await;
                assert!(failed[0].1.starts_with("failed: "), "{failed:?}");
            }
            leaky.began.notified().await;
            stop.cancel();
        };
        let (result, ()) = tokio::join!(supervisor.run(stop.clone(), Duration::from_secs(60)), story);
        result.unwrap();
        assert_eq!(*leaky.found.lock(), [0, 0, 0, 0]);
        assert_eq!(leaky.alive.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_worked_for_long_starts_again_soon() {
        let mut restarts = Restarts::default();
        let delays: Vec<_> = (0..9).map(|_| restarts.failed(None).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        // Ready, but not for long: it may be failing again and again.
        assert_eq!(restarts.failed(Some(Duration::from_secs(1))), RESTART.max);
        assert_eq!(restarts.failed(Some(RESTART.max)), RESTART.first);
        assert_eq!(restarts.failed(None), RESTART.first * 2);
    }
}
