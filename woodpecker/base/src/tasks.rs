//! The task tree: who spawned what, how it is told to stop, and how one waits for it.

use std::{future::Future, time::Duration};

use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use crate::clock::Clock;

/// A task that ends with this handle; what it gives back, or `None` when its group was told to stop first.
pub type Held<T> = AbortOnDropHandle<Option<T>>;

/// A group of tasks that stop together. Children stop with their parent; a parent is drained only when its children are.
#[derive(Debug, Clone)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// A root group.
    #[must_use]
    pub fn new() -> Self {
        Self { token: CancellationToken::new(), tracker: TaskTracker::new() }
    }

    /// A root group that is told to stop when `shutdown` is cancelled, and can be stopped alone.
    #[must_use]
    pub fn under(shutdown: &CancellationToken) -> Self {
        Self { token: shutdown.child_token(), tracker: TaskTracker::new() }
    }

    /// A group that is told to stop when this one is, and can be stopped alone. Its tasks count as this group's.
    #[must_use]
    pub fn child(&self) -> Self {
        Self { token: self.token.child_token(), tracker: self.tracker.clone() }
    }

    /// A group that is told to stop when this one is, and whose tasks can be waited for alone.
    #[must_use]
    pub fn branch(&self) -> Self {
        Self { token: self.token.child_token(), tracker: TaskTracker::new() }
    }

    /// Runs a task to its end; it is expected to watch [`Tasks::stopped`] by itself.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }

    /// Runs a task that is dropped at its next await when the group is told to stop.
    pub fn spawn_until_stopped<F>(&self, task: F) -> tokio::task::JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let token = self.token.clone();
        self.tracker.spawn(async move { token.run_until_cancelled(task).await })
    }

    /// As [`Tasks::spawn_until_stopped`], and the task is dropped with its handle too.
    pub fn spawn_held<F>(&self, task: F) -> Held<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        AbortOnDropHandle::new(self.spawn_until_stopped(task))
    }

    /// Tells every task of the group, and of its children, to stop.
    pub fn stop(&self) {
        self.token.cancel();
    }

    /// Whether the group was told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Resolves when the group is told to stop.
    pub async fn stopped(&self) {
        self.token.cancelled().await;
    }

    /// The token that [`Tasks::stop`] cancels, for libraries that take one.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Tells the group to stop and waits for its tasks, at most for `grace`. Says whether all of them ended.
    pub async fn drain(&self, clock: &Clock, grace: Duration) -> bool {
        self.stop();
        self.tracker.close();
        clock.timeout(grace, self.tracker.wait()).await.is_ok()
    }
}
