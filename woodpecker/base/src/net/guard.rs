//! Checks every call before its service sees it.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::{Denied, Gate, Need, Refusals, Role, Tokens, operate};

/// A layer for a gRPC server. The default lets every call through.
#[derive(Debug, Clone, Default)]
pub struct Guard(Option<Arc<Rules>>);

#[derive(Debug)]
struct Rules {
    tokens: Option<Tokens>,
    needs: fn(&str) -> Need,
    limit: usize,
    places: Arc<Semaphore>,
    refusals: Refusals,
}

impl Guard {
    pub(super) fn new(gate: &Gate) -> Self {
        let Gate { tokens, needs, calls, refusals, .. } = gate.clone();
        let places = Arc::new(Semaphore::new(calls.min(Semaphore::MAX_PERMITS)));
        Self(Some(Arc::new(Rules { tokens, needs, limit: calls, places, refusals })))
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Guarded { inner, guard: self.clone() }
    }
}

/// A service behind a [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    inner: S,
    guard: Guard,
}

impl<S, R> Service<Request<R>> for Guarded<S>
where
    S: Service<Request<R>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let Some(rules) = &self.guard.0 else { return self.inner.call(request).boxed() };
        match rules.check(&request) {
            Ok(place) => {
                let answer = self.inner.call(request);
                async move { Ok(answer.await?.map(|body| Body::new(Placed { body, _place: place }))) }.boxed()
            }
            Err(status) => futures::future::ready(Ok(status.into_http())).boxed(),
        }
    }
}

impl Rules {
    /// The call's place among those that run, or why it may not run.
    fn check<R>(&self, request: &Request<R>) -> Result<Option<OwnedSemaphorePermit>, Status> {
        let path = request.uri().path();
        let peer = request.extensions().get::<Option<SocketAddr>>().copied().flatten();
        let judged = match (&self.tokens, (self.needs)(path)) {
            // Probes are answered however busy the server is.
            (_, Need::Nothing) => return Ok(None),
            (Some(tokens), Need::Role(needed)) => tokens.judge(request.headers(), needed),
            (Some(tokens), Need::Operator) => tokens.judge(request.headers(), Role::Admin),
            (None, Need::Operator) => operate(peer),
            (None, Need::Role(_)) => Ok(()),
        };
        if let Err(denied) = judged {
            self.refusals.unauthorized(denied.reason(), peer, path, denied);
            return Err(match denied {
                Denied::NoToken | Denied::WrongToken => Status::unauthenticated(denied.to_string()),
                Denied::Role { .. } | Denied::Remote => Status::permission_denied(denied.to_string()),
            });
        }
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let status = Status::resource_exhausted(format!("{} calls run here, which is the limit", self.limit));
            self.refusals.beyond("calls", peer, path, status.message());
            return Err(status);
        };
        Ok(Some(place))
    }
}

/// A body that keeps its call's place until it was sent, or nobody wants it any more.
struct Placed {
    body: Body,
    _place: Option<OwnedSemaphorePermit>,
}

impl hyper::body::Body for Placed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
