//! The bottom of the append stack: writes groups to the log.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{FutureExt, future::BoxFuture};
use tower::Service;
use woodpecker::Writer;

use super::{group::Group, record};

/// Puts the term on messages, encodes them and hands a group to the log as one append.
pub struct LogWriter {
    writer: Arc<Writer>,
    term: i64,
    node: i64,
    room: Room,
}

/// Room in the log's queue for one group.
enum Room {
    Unknown,
    Awaited(BoxFuture<'static, ()>),
    Free,
}

impl LogWriter {
    pub fn new(writer: Arc<Writer>, term: i64, node: i64) -> Self {
        Self { writer, term, node, room: Room::Unknown }
    }
}

impl Service<Group> for LogWriter {
    type Response = Group;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Group, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        loop {
            match &mut self.room {
                Room::Unknown => {
                    let writer = Arc::clone(&self.writer);
                    self.room = Room::Awaited(Box::pin(async move { writer.reserve().await }));
                }
                Room::Awaited(room) => {
                    ready!(room.poll_unpin(cx));
                    self.room = Room::Free;
                }
                Room::Free => return Poll::Ready(Ok(())),
            }
        }
    }

    fn call(&mut self, mut group: Group) -> Self::Future {
        self.room = Room::Unknown;
        let mut records = Vec::with_capacity(group.appends.len() + 1);
        for append in &mut group.appends {
            records.push(record::encode(&mut append.message, self.term));
        }
        if group.closing.persisted {
            let mut tick = record::tick(group.closing.tick, self.node);
            records.push(record::encode(&mut tick, self.term));
            group.tick = Some(tick);
        }
        let append = self.writer.append(records);
        Box::pin(async move {
            group.written = Some(append.await);
            Ok(group)
        })
    }
}
