//! Reading all of a log to see that it is whole.

use woodpecker_core::record::LogRecord;
use woodpecker_store::backend::{SegmentReader, StoreError};

use crate::{
    EntryId, Log, LogError,
    catalog::PATIENCE,
    view::{Extent, Place},
};

const READ_BYTES: usize = 4 << 20;

/// What was found of one segment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VerifiedSegment {
    pub segment: u64,
    /// `sealed`, or the backend it was read from.
    pub from: String,
    /// Entries that were read and whose checksums hold.
    pub entries: u64,
    pub bytes: u64,
    /// Why not all of it could be read.
    pub problem: Option<String>,
}

/// How far a verification is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Verified {
    pub segments: u64,
    pub entries: u64,
    pub bytes: u64,
}

impl Log {
    /// Reads every entry that was not truncated, from where readers would read it, and checks checksums and continuity:
    /// no segment number is missing, and every segment holds exactly the entries that its record says. A segment that is
    /// sealed meanwhile is read in its new form, and one that is truncated is left out. `progress` is called after every
    /// read.
    ///
    /// # Errors
    /// The metadata store's. What is wrong with a segment is part of its report, and does not end the verification.
    pub async fn verify(&self, mut progress: impl FnMut(Verified)) -> Result<Vec<VerifiedSegment>, LogError> {
        let (log, _) = self.client.read(&self.view).await?;
        self.view.learn_all_closed(self.client.catalog.segments(self.view.id).await?);
        let earliest = log.earliest();
        let mut so_far = Verified::default();
        let mut segments = Vec::new();
        for number in earliest.segment..=log.last {
            let found = self.verify_segment(number, |bytes, entries| {
                so_far.bytes += bytes;
                so_far.entries += entries;
                progress(so_far);
            });
            segments.extend(found.await?);
            so_far.segments += 1;
        }
        Ok(segments)
    }

    /// What is found of a segment; `None` if it was truncated meanwhile.
    async fn verify_segment(
        &self,
        number: u64,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<Option<VerifiedSegment>, LogError> {
        let mut place = self.view.place(number);
        loop {
            let earliest = self.view.ask(LogRecord::earliest);
            if number < earliest.segment {
                return Ok(None);
            }
            let from = if number == earliest.segment { earliest.entry } else { 0 };
            let mut found =
                VerifiedSegment { segment: number, from: String::new(), entries: 0, bytes: 0, problem: None };
            let Err(problem) = self.read_segment(&place, from, &mut found, &mut progress).await else {
                return Ok(Some(found));
            };
            let before = std::mem::replace(&mut place, self.client.find(&self.view, number, Some(PATIENCE)).await?);
            match place {
                _ if place.form() != before.form() => {}
                // Truncated meanwhile, or nothing of it was left to read. One whose record was lost looks no different.
                Place::Unknown if EntryId { segment: number, entry: 0 } < self.view.ask(LogRecord::earliest) => {
                    return Ok(None);
                }
                _ => {
                    found.problem = Some(problem.to_string());
                    return Ok(Some(found));
                }
            }
        }
    }

    async fn read_segment(
        &self,
        place: &Place,
        from: u64,
        found: &mut VerifiedSegment,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        let client = &self.client;
        let (reader, end) = match place {
            Place::Ended(extent) => {
                found.from = form(extent);
                if from >= extent.entries {
                    return Ok(());
                }
                (client.open_extent(self.view.id, extent).await?, extent.entries)
            }
            Place::Open(open) => {
                found.from.clone_from(&open.backend);
                let reader = client.open_segment(self.view.id, open, None).await?;
                let tail = client.retrying.run(Some(PATIENCE), || reader.tail()).await?;
                (reader, tail)
            }
            Place::Ahead | Place::Unknown | Place::Deleted => {
                let what = format!("the record of segment {}/{}", self.view.id, found.segment);
                return Err(StoreError::NotFound { what });
            }
        };
        let mut next = from;
        while next < end {
            let (entries, bytes) = self.read_some(&*reader, next, end).await?;
            (found.entries, found.bytes, next) = (found.entries + entries, found.bytes + bytes, next + entries);
            progress(bytes, entries);
        }
        Ok(())
    }

    async fn read_some(&self, reader: &dyn SegmentReader, next: u64, end: u64) -> Result<(u64, u64), StoreError> {
        let entries = self.client.retrying.run(Some(PATIENCE), || reader.read(next, READ_BYTES)).await?;
        let count = (entries.len() as u64).min(end - next);
        if count == 0 {
            let what = format!("segment of {:?}", self.name());
            let detail = format!("it should hold {end} entries, and has no entry {next}");
            return Err(StoreError::Corrupt { what, detail });
        }
        Ok((count, entries.iter().map(|entry| entry.len() as u64).sum()))
    }
}

fn form(extent: &Extent) -> String {
    if extent.sealed.is_some() { "sealed".to_owned() } else { extent.opened.backend.clone() }
}
