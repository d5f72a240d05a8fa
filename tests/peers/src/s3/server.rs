//! HTTP: accepts connections, counts requests, and makes the faults happen around the service that does the work.
#![expect(clippy::disallowed_methods, reason = "a peer lives in real time, outside the product's task tree")]

use std::{future, io, sync::Arc};

use http::{Method, Request, Response, StatusCode};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::{Body, service::S3Service};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{
    counters::Counters,
    faults::{Fault, Faults, Op},
};

pub struct Server {
    service: S3Service,
    faults: Faults,
    counters: Arc<Counters>,
}

impl Server {
    pub fn new(service: S3Service, faults: Faults, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { service, faults, counters })
    }

    /// Accepts until `stop`; connections end with it too.
    pub fn run(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        tokio::spawn(async move {
            while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
                if let Ok((stream, _)) = accepted {
                    let server = Arc::clone(&self);
                    let stop = stop.clone();
                    tokio::spawn(async move { stop.run_until_cancelled(server.serve(stream)).await });
                }
            }
        });
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        // Small answers must not wait for the peer's delayed ack.
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| self.answer(request));
        // A connection that breaks is the client's to notice.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let op = kind(&request);
        let received = length(request.headers());
        let in_flight = self.counters.begin(op, received);
        let (delay, fault) = self.faults.draw(op);
        tokio::time::sleep(delay + self.faults.transfer_time(received)).await;

        match fault {
            Some(Fault::Refuse(status)) => return refuse(status),
            Some(Fault::Hang) => future::pending::<()>().await,
            Some(Fault::LoseAnswer | Fault::Misreport(_)) | None => {}
        }
        let answer = self.service.call(request.map(Body::from)).await.map_err(io::Error::other)?;
        let sent = if op == Op::Get { length(answer.headers()) } else { 0 };
        tokio::time::sleep(self.faults.transfer_time(sent)).await;
        in_flight.answered(sent);

        match fault {
            // An error from the service makes the connection close without an answer.
            Some(Fault::LoseAnswer) => Err(io::ErrorKind::ConnectionReset.into()),
            Some(Fault::Misreport(status)) => refuse(status),
            _ => Ok(answer),
        }
    }
}

fn kind(request: &Request<Incoming>) -> Op {
    let query = request.uri().query().unwrap_or_default();
    let asks = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let in_bucket = request.uri().path().trim_matches('/').contains('/');
    match *request.method() {
        _ if asks("uploads") || asks("uploadId") => Op::Multipart,
        Method::PUT => Op::Put,
        Method::HEAD => Op::Head,
        Method::GET if in_bucket => Op::Get,
        Method::GET => Op::List,
        _ => Op::Delete,
    }
}

fn length(headers: &http::HeaderMap) -> u64 {
    let length = headers.get(http::header::CONTENT_LENGTH);
    length.and_then(|value| value.to_str().ok()?.parse().ok()).unwrap_or(0)
}

fn refuse(status: u16) -> io::Result<Response<Body>> {
    let status = StatusCode::from_u16(status).map_err(io::Error::other)?;
    let body = format!("<Error><Code>Fault</Code><Message>{status} on request of the test</Message></Error>");
    let mut answer = Response::new(Body::from(body));
    *answer.status_mut() = status;
    Ok(answer)
}
