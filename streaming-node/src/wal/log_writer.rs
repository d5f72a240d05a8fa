//! The bottom of the append stack: writes groups to the log.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::sync::oneshot;
use tower::Service;
use woodpecker::{AppendError, Appended, EntryId, Writer};

use super::{
    chunk::split,
    group::{Group, Placed},
    record,
};

/// Puts the term on messages, encodes them and hands a group to the log as one append; as several, if it does not fit
/// into one.
pub struct LogWriter {
    writer: Arc<Writer>,
    term: i64,
    node: i64,
    /// Largest record that is written as one entry.
    entry_bytes: usize,
    room: Room,
    /// The rest of a group that does not fit into one append. Nothing passes it.
    unsent: VecDeque<(Vec<Bytes>, oneshot::Sender<woodpecker::Append>)>,
}

/// Room in the log's queue for one append.
enum Room {
    Unknown,
    Awaited(BoxFuture<'static, ()>),
    Free,
}

impl LogWriter {
    pub fn new(writer: Arc<Writer>, term: i64, node: i64, entry_bytes: usize) -> Self {
        Self { writer, term, node, entry_bytes, room: Room::Unknown, unsent: VecDeque::new() }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
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
                Room::Free => return Poll::Ready(()),
            }
        }
    }

    fn append(&mut self, entries: Vec<Bytes>) -> woodpecker::Append {
        self.room = Room::Unknown;
        self.writer.append(entries)
    }
}

impl Service<Group> for LogWriter {
    type Response = Group;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Group, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        loop {
            ready!(self.poll_room(cx));
            let Some((entries, sent)) = self.unsent.pop_front() else { return Poll::Ready(Ok(())) };
            // Nobody listens when the WAL has ended.
            let _ = sent.send(self.append(entries));
        }
    }

    fn call(&mut self, mut group: Group) -> Self::Future {
        let mut entries = Entries::default();
        for append in &mut group.appends {
            append.record = record::encode(&mut append.message, self.term);
            entries.add(append.record.clone(), self.entry_bytes);
        }
        let mut tick = group.closing.filter(|closing| closing.persisted).map(|closing| {
            let mut tick = record::tick(closing.tick, closing.confirmed, self.node);
            entries.add(record::encode(&mut tick, self.term), self.entry_bytes);
            tick
        });
        let Entries { mut parts, starts } = entries;
        if starts.is_empty() {
            return Box::pin(async { Ok(group) });
        }
        let first = self.append(parts.pop_front().unwrap_or_default());
        let rest: Vec<_> = parts
            .into_iter()
            .map(|entries| {
                let (sent, append) = oneshot::channel();
                self.unsent.push_back((entries, sent));
                append
            })
            .collect();
        Box::pin(async move {
            match written(first, rest).await {
                Ok(places) => {
                    let mut ids = starts.into_iter().filter_map(|start| places.at(start));
                    for append in &mut group.appends {
                        append.outcome = ids.next().and_then(|id| Placed::new(append, id)).map(Ok);
                    }
                    group.tick = ids.next().zip(tick.take());
                    group.written = places.last().map(Ok);
                }
                Err(error) => group.written = Some(Err(error)),
            }
            Ok(group)
        })
    }
}

/// Entries on their way to the log, in appends of bounded size.
#[derive(Default)]
struct Entries {
    parts: VecDeque<Vec<Bytes>>,
    /// For each record, how many entries are before it.
    starts: Vec<usize>,
}

impl Entries {
    fn add(&mut self, record: Bytes, entry_bytes: usize) {
        self.starts.push(self.parts.iter().map(Vec::len).sum());
        if record.len() <= entry_bytes {
            match self.parts.back_mut() {
                Some(part) => part.push(record),
                None => self.parts.push_back(vec![record]),
            }
        } else {
            self.parts.extend(split(record, entry_bytes).into_iter().map(|piece| vec![piece]));
        }
    }
}

/// Where the appends of a group went.
struct Places(Vec<Appended>);

impl Places {
    fn at(&self, mut index: usize) -> Option<EntryId> {
        for part in &self.0 {
            let count = usize::try_from(part.count).unwrap_or(usize::MAX);
            if index < count {
                return Some(EntryId { segment: part.first.segment, entry: part.first.entry + index as u64 });
            }
            index -= count;
        }
        None
    }

    fn last(&self) -> Option<EntryId> {
        let last = self.0.last()?;
        Some(EntryId { segment: last.first.segment, entry: last.first.entry + last.count.saturating_sub(1) })
    }
}

async fn written(
    first: woodpecker::Append,
    rest: Vec<oneshot::Receiver<woodpecker::Append>>,
) -> Result<Places, AppendError> {
    let mut places = vec![first.await?];
    for append in rest {
        // Without one the WAL has ended before it was sent.
        places.push(append.await.map_err(|_| AppendError::Closed)?.await?);
    }
    Ok(Places(places))
}
