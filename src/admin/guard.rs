//! Who may have which page.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header::WWW_AUTHENTICATE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use woodpecker_base::net::{Denied, Gate, Refusals, Role, Tokens, operate};

use super::Peer;

/// Pages that machines ask for which have no secrets.
const OPEN: [&str; 4] = ["/healthz", "/livez", "/readyz", "/metrics"];

pub(super) struct Guard {
    tokens: Option<Tokens>,
    refusals: Refusals,
}

impl Guard {
    pub(super) fn new(gate: &Gate) -> Self {
        Self { tokens: gate.tokens.clone(), refusals: gate.refusals.clone() }
    }

    /// Whether a request may go on. Without tokens, all but what is open to everybody must come from this machine.
    fn judge(&self, request: &Request, peer: Option<SocketAddr>) -> Result<(), Denied> {
        let looks = matches!(*request.method(), Method::GET | Method::HEAD);
        if looks && OPEN.contains(&request.uri().path()) {
            return Ok(());
        }
        match &self.tokens {
            Some(tokens) => {
                let needed = if looks { Role::Read } else { Role::Admin };
                tokens.judge(request.headers(), needed)
            }
            None => operate(peer),
        }
    }
}

/// Lets through what may pass; the rest is answered, logged and counted.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().and_then(|peer| peer.0);
    let Err(denied) = guard.judge(&request, peer) else { return next.run(request).await };
    guard.refusals.unauthorized(denied.reason(), peer, request.uri().path(), denied);
    let status = match denied {
        Denied::NoToken | Denied::WrongToken => StatusCode::UNAUTHORIZED,
        Denied::Role { .. } | Denied::Remote => StatusCode::FORBIDDEN,
    };
    let mut response = (status, format!("{denied}\n")).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use woodpecker_base::clock::Clock;

    use super::*;

    const READ: &str = "reads-0123456789";
    const ADMIN: &str = "admin-0123456789";

    fn judge(tokens: bool, method: Method, path: &str, peer: &str, token: Option<&str>) -> Result<(), &'static str> {
        let text = format!("read {READ}\nadmin {ADMIN}");
        let guard =
            Guard { tokens: tokens.then(|| Tokens::parse(&text).unwrap()), refusals: Refusals::new(Clock::system()) };
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        guard.judge(&request, Some(peer.parse().unwrap())).map_err(Denied::reason)
    }

    #[test]
    fn without_tokens_only_probes_and_scrapers_come_from_elsewhere() {
        for near in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(judge(false, Method::GET, "/logstore/namespaces", near, None), Ok(()), "{near}");
            assert_eq!(judge(false, Method::DELETE, "/logstore/namespaces/x", near, None), Ok(()), "{near}");
        }
        for far in ["10.0.0.1:1", "[2001:db8::1]:1"] {
            assert_eq!(judge(false, Method::POST, "/logstore/decommission", far, None), Err("remote"), "{far}");
            assert_eq!(judge(false, Method::PUT, "/log/level", far, Some(ADMIN)), Err("remote"), "{far}");
            assert_eq!(judge(false, Method::POST, "/healthz", far, None), Err("remote"), "{far}");
            assert_eq!(judge(false, Method::GET, "/logstore/namespaces", far, None), Err("remote"), "{far}");
            for open in OPEN {
                assert_eq!(judge(false, Method::GET, open, far, None), Ok(()), "{far}");
            }
        }
    }

    #[test]
    fn with_tokens_only_probes_and_scrapers_need_none() {
        for peer in ["127.0.0.1:1", "10.0.0.1:1"] {
            for open in OPEN {
                assert_eq!(judge(true, Method::GET, open, peer, None), Ok(()));
            }
            let cases = [
                (Method::GET, None, Err("no_token")),
                (Method::GET, Some("nonsense"), Err("wrong_token")),
                (Method::GET, Some(READ), Ok(())),
                (Method::PUT, None, Err("no_token")),
                (Method::PUT, Some(READ), Err("role")),
                (Method::PUT, Some(ADMIN), Ok(())),
            ];
            for (method, token, outcome) in cases {
                assert_eq!(judge(true, method, "/log/level", peer, token), outcome, "{token:?}");
            }
        }
    }
}
