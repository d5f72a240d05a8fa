//! Who may have which page.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header::WWW_AUTHENTICATE},
    middleware::Next,
    response::{IntoResponse, Response},
};
use woodpecker_base::net::{Denied, Gate, Refusals, Role, Tokens};

use super::From;

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

    /// Whether a request may go on. Without tokens, what changes something must come from this machine.
    fn judge(&self, request: &Request, peer: Option<SocketAddr>) -> Result<(), Refused> {
        let looks = matches!(*request.method(), Method::GET | Method::HEAD);
        if looks && OPEN.contains(&request.uri().path()) {
            return Ok(());
        }
        match &self.tokens {
            Some(tokens) => {
                let needed = if looks { Role::Read } else { Role::Admin };
                tokens.judge(request.headers(), needed).map_err(Refused::Token)
            }
            None if looks || peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) => Ok(()),
            None => Err(Refused::Stranger),
        }
    }
}

#[derive(Debug, Clone, Copy, thiserror::Error)]
enum Refused {
    #[error(transparent)]
    Token(Denied),
    #[error("without auth.enabled, what changes something is open to this machine only")]
    Stranger,
}

impl Refused {
    fn reason(self) -> &'static str {
        match self {
            Self::Token(denied) => denied.reason(),
            Self::Stranger => "remote",
        }
    }
}

/// Lets through what may pass; the rest is answered, logged and counted.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<From>().map(|from| from.0.0);
    let Err(refused) = guard.judge(&request, peer) else { return next.run(request).await };
    guard.refusals.unauthorized(refused.reason(), peer, request.uri().path(), refused);
    let status = match refused {
        Refused::Token(Denied::NoToken | Denied::WrongToken) => StatusCode::UNAUTHORIZED,
        Refused::Token(Denied::Role { .. }) | Refused::Stranger => StatusCode::FORBIDDEN,
    };
    let mut response = (status, format!("{refused}\n")).into_response();
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
        guard.judge(&request, Some(peer.parse().unwrap())).map_err(Refused::reason)
    }

    #[test]
    fn without_tokens_only_this_machine_changes_anything() {
        for near in ["127.0.0.1:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(judge(false, Method::DELETE, "/logstore/namespaces/x", near, None), Ok(()), "{near}");
        }
        for far in ["10.0.0.1:1", "[2001:db8::1]:1"] {
            assert_eq!(judge(false, Method::POST, "/logstore/decommission", far, None), Err("remote"), "{far}");
            assert_eq!(judge(false, Method::PUT, "/log/level", far, Some(ADMIN)), Err("remote"), "{far}");
            assert_eq!(judge(false, Method::POST, "/healthz", far, None), Err("remote"), "{far}");
            assert_eq!(judge(false, Method::GET, "/logstore/status", far, None), Ok(()), "{far}");
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
