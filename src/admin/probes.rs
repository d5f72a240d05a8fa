//! Whether the roles of the process are as they should be.

use axum::{
    Json,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use serde::Serialize;
use woodpecker_base::health::Health;

use super::Roles;

/// What `/healthz` says, field for field as the probes of Milvus read it.
#[derive(Debug, Serialize)]
struct Healthz {
    state: String,
    detail: Vec<Component>,
}

#[derive(Debug, Serialize)]
struct Component {
    name: &'static str,
    code: i32,
}

/// 200 when every role is healthy or standing by, 500 otherwise.
pub(super) async fn healthz(State(roles): State<Roles>, headers: HeaderMap) -> Response {
    let roles: Vec<_> = roles.iter().map(|(name, reporter)| (*name, reporter.now().state)).collect();
    let bad = roles.iter().find(|(_, state)| !state.is_good());
    let status = if bad.is_some() { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
    let state = bad.map_or_else(|| "OK".to_owned(), |(name, state)| format!("component {name} state is {state:?}"));
    let detail = roles.iter().map(|(name, state)| Component { name, code: state.code() }).collect();
    answer(status, &headers, state.clone(), Healthz { state, detail })
}

/// What `/readyz` says of a role.
#[derive(Debug, Serialize)]
struct Readiness {
    name: &'static str,
    ready: bool,
    state: String,
    missing: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

/// 200 when every role does all that it is there for, 503 otherwise, with what is missing; and with what is to be known
/// besides.
pub(super) async fn readyz(State(roles): State<Roles>, headers: HeaderMap) -> Response {
    let roles: Vec<(_, Health, Vec<String>)> =
        roles.iter().map(|(name, reporter)| (*name, reporter.now(), reporter.notes())).collect();
    let ready = roles.iter().all(|(_, health, _)| health.is_ready());
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = String::from(if ready { "OK" } else { "not ready" });
    for (name, health, notes) in &roles {
        text.push_str(&format!("\n{name}: {:?}", health.state));
        text.extend(health.missing.iter().chain(notes).map(|said| format!("\n{name}: {said}")));
    }
    let body: Vec<_> = roles
        .into_iter()
        .map(|(name, health, notes)| Readiness {
            name,
            ready: health.is_ready(),
            state: format!("{:?}", health.state),
            missing: health.missing,
            notes,
        })
        .collect();
    answer(status, &headers, text, body)
}

/// JSON for who asks for it, text otherwise.
fn answer(status: StatusCode, headers: &HeaderMap, text: String, json: impl Serialize) -> Response {
    let asks = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if [ACCEPT, CONTENT_TYPE].into_iter().any(|name| asks(name).contains("application/json")) {
        (status, Json(json)).into_response()
    } else {
        (status, text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use woodpecker_base::health::{HealthReporter, State as Of};

    use super::*;

    #[tokio::test]
    async fn what_is_noted_of_a_ready_role_stands_in_the_answer() {
        let reporter = HealthReporter::default();
        reporter.report(Of::Healthy, Vec::new());
        reporter.note(vec!["the disk is full".to_owned()]);
        for (accept, said) in
            [("*/*", "logstore: the disk is full"), ("application/json", r#""notes":["the disk is full"]"#)]
        {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            let answer = readyz(State(vec![("logstore", reporter.clone())]), headers).await;
            assert_eq!(answer.status(), StatusCode::OK);
            let body = to_bytes(answer.into_body(), 1 << 10).await.unwrap();
            let body = String::from_utf8_lossy(&body);
            assert!(body.contains(said), "{body}");
        }
    }
}
