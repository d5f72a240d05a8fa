//! How a role is: said by the role, asked by probes, operators and peers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::ServingStatus;

use crate::tasks::Tasks;

/// The state of a role, as the protocol's components name theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Starting, registering, or taking over.
    Initializing,
    Healthy,
    /// Ready to take over from another one.
    StandBy,
    Stopping,
}

impl State {
    /// Its number in the protocol.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Initializing => 0,
            Self::Healthy => 1,
            Self::StandBy => 3,
            Self::Stopping => 4,
        }
    }

    /// Whether the role is as it should be while nobody stops it.
    #[must_use]
    pub fn is_good(self) -> bool {
        matches!(self, Self::Healthy | Self::StandBy)
    }
}

/// What a role says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    pub state: State,
    /// What it should do and does not at the moment, a sentence each.
    pub missing: Vec<String>,
}

impl Health {
    /// Whether it does all that it is there for; a standby does.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.is_good() && self.missing.is_empty()
    }
}

/// Where a role says how it is. Clones are one place.
#[derive(Debug, Clone)]
pub struct HealthReporter(Arc<Said>);

#[derive(Debug)]
struct Said {
    health: watch::Sender<Health>,
    notes: Mutex<Vec<String>>,
}

impl Default for HealthReporter {
    fn default() -> Self {
        let health = watch::Sender::new(Health { state: State::Initializing, missing: Vec::new() });
        Self(Arc::new(Said { health, notes: Mutex::default() }))
    }
}

impl HealthReporter {
    /// Says how the role is from now on. A role that is stopping says nothing more.
    pub fn report(&self, state: State, missing: Vec<String>) {
        let health = Health { state, missing };
        self.0.health.send_if_modified(|known| {
            let news = known.state != State::Stopping && *known != health;
            if news {
                *known = health;
            }
            news
        });
    }

    /// What was said last.
    #[must_use]
    pub fn now(&self) -> Health {
        self.0.health.borrow().clone()
    }

    /// Says what an operator should know though nothing is missing for which the role would be taken out of service: a
    /// sentence each, in place of those before.
    pub fn note(&self, notes: Vec<String>) {
        *self.noted() = notes;
    }

    /// What was noted last.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.noted().clone()
    }

    fn noted(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what standard tools ask of any gRPC server: `grpc.health.v1.Health`, which says that it serves while the
    /// role is ready, and reflection. `services` are the names of what the server has besides, `descriptors` the
    /// encoded file descriptor set that describes them.
    #[must_use]
    pub fn serve(&self, routes: Routes, descriptors: &[u8], services: &[&'static str], tasks: &Tasks) -> Routes {
        let (reporter, health) = tonic_health::server::health_reporter();
        let names: Vec<_> = std::iter::once("").chain(services.iter().copied()).collect();
        let mut said = self.0.health.subscribe();
        tasks.spawn(async move {
            loop {
                let (ready, ends) = {
                    let health = said.borrow_and_update();
                    (health.is_ready(), health.state == State::Stopping)
                };
                let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
                for name in &names {
                    reporter.set_service_status(name, status).await;
                }
                if ends || said.changed().await.is_err() {
                    return;
                }
            }
        });
        let mut reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        for name in services {
            reflection = reflection.with_service_name(*name);
        }
        let routes = routes.add_service(health);
        match reflection.with_service_name("grpc.health.v1.Health").build_v1() {
            Ok(reflection) => routes.add_service(reflection),
            Err(error) => {
                tracing::warn!(%error, "no reflection: the descriptors do not decode");
                routes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_is_as_it_should_be_and_misses_nothing() {
        for (state, good) in
            [(State::Initializing, false), (State::Healthy, true), (State::StandBy, true), (State::Stopping, false)]
        {
            assert_eq!(Health { state, missing: Vec::new() }.is_ready(), good, "{state:?}");
            assert!(!Health { state, missing: vec!["a channel".into()] }.is_ready(), "{state:?}");
        }
    }

    #[test]
    fn who_has_something_to_note_is_as_ready_as_before() {
        let reporter = HealthReporter::default();
        reporter.report(State::Healthy, Vec::new());
        reporter.note(vec!["the disk is full".into()]);
        assert!(reporter.now().is_ready());
        assert_eq!(reporter.notes(), ["the disk is full"]);
        reporter.note(Vec::new());
        assert!(reporter.notes().is_empty());
    }

    #[test]
    fn saying_the_same_again_is_no_news() {
        let reporter = HealthReporter::default();
        let mut said = reporter.0.health.subscribe();
        reporter.report(State::Healthy, Vec::new());
        assert!(said.has_changed().unwrap());
        said.mark_unchanged();
        reporter.report(State::Healthy, Vec::new());
        assert!(!said.has_changed().unwrap());
        reporter.report(State::Healthy, vec!["a channel".into()]);
        assert!(said.has_changed().unwrap());
        assert_eq!(reporter.now().missing, ["a channel"]);
        reporter.report(State::Stopping, Vec::new());
        reporter.report(State::Healthy, Vec::new());
        assert_eq!(reporter.now().state, State::Stopping);
    }
}
