//! What requests to an object store take and come to.

use std::time::Duration;

use metrics::{Counter, Histogram, counter, histogram};
use object_store::Error;

/// What is asked of a store.
#[derive(Debug, Clone, Copy)]
pub enum Operation {
    Put,
    Get,
    Head,
    List,
    Delete,
}

impl Operation {
    const ALL: [Self; 5] = [Self::Put, Self::Get, Self::Head, Self::List, Self::Delete];

    fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
        }
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Also when there is no such object.
    Ok,
    /// The name was taken.
    Conflict,
    Error,
    /// No answer in time.
    Timeout,
}

impl Outcome {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Ok, "ok"), (Self::Conflict, "conflict"), (Self::Error, "error"), (Self::Timeout, "timeout")];

    fn of<T>(answer: Option<&object_store::Result<T>>) -> Self {
        match answer {
            None => Self::Timeout,
            Some(Ok(_) | Err(Error::NotFound { .. })) => Self::Ok,
            Some(Err(Error::AlreadyExists { .. } | Error::Precondition { .. })) => Self::Conflict,
            Some(Err(_)) => Self::Error,
        }
    }
}

/// One process's requests to a store, without a lookup for each.
pub struct RequestMetrics {
    took: [[Histogram; Outcome::ALL.len()]; Operation::ALL.len()],
    repeats: Counter,
}

impl RequestMetrics {
    pub fn new() -> Self {
        let of = |operation: &'static str, outcome: &'static str| histogram!("woodpecker_object_request_duration_seconds", "operation" => operation, "outcome" => outcome);
        Self {
            took: Operation::ALL.map(|operation| Outcome::ALL.map(|(_, outcome)| of(operation.name(), outcome))),
            repeats: counter!("woodpecker_object_requests_repeated_total"),
        }
    }

    /// A request was answered, or was not in time.
    pub fn took<T>(&self, operation: Operation, answer: Option<&object_store::Result<T>>, took: Duration) {
        self.took[operation as usize][Outcome::of(answer) as usize].record(took);
    }

    /// A request failed and is made again.
    pub fn repeated(&self) {
        self.repeats.increment(1);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Arc};

    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use object_store::{PutMode, memory::InMemory, path::Path};
    use woodpecker_base::{clock::Clock, random::Random};

    use crate::object::requests::{Operation, Requests};

    #[tokio::test(start_paused = true)]
    async fn requests_are_counted_by_what_was_asked_and_how_it_ended() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let (clock, random, limit) = (Clock::system(), Random::seeded(1), std::time::Duration::from_secs(1));
        let store = Arc::new(InMemory::new());
        let requests = with_local_recorder(&recorder, || Requests::new(store.clone(), clock, random, limit));
        let (path, other) = (Path::from("a"), Path::from("b"));
        for _ in 0..2 {
            let put = requests.store.put_opts(&path, "x".into(), PutMode::Create.into());
            let _ = requests.once(Operation::Put, 1, put).await.unwrap();
        }
        requests.range(&path, 0, 1).await.unwrap();
        requests.range(&other, 0, 1).await.unwrap_err();
        requests.list(&path, None, 10).await.unwrap();
        requests.delete("a", vec![path.clone()]).await.unwrap();
        requests.retry(Operation::Head, "b", 0, pending::<object_store::Result<()>>).await.unwrap_err();
        let refusing = || async {
            let (operation, implementer) = (String::new(), String::new());
            Err::<(), _>(object_store::Error::NotImplemented { operation, implementer })
        };
        requests.retry(Operation::Get, "refused", 0, refusing).await.unwrap_err();

        let page = recorder.handle().render();
        let counted = |operation: &str, outcome: &str| {
            let labels = format!("_count{{operation=\"{operation}\",outcome=\"{outcome}\"}} ");
            let line = page.lines().find(|line| line.contains(&labels));
            line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        };
        assert_eq!((counted("put", "ok"), counted("put", "conflict")), (1, 1), "{page}");
        assert_eq!((counted("get", "ok"), counted("get", "error")), (2, 3), "what is not there was found out");
        assert_eq!((counted("list", "ok"), counted("delete", "ok"), counted("head", "timeout")), (1, 1, 3), "{page}");
        assert!(page.contains("woodpecker_object_requests_repeated_total 4"), "{page}");
    }
}
