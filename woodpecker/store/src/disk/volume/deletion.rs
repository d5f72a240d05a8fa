//! Removing what no segment of a volume needs any more.

use std::{collections::BTreeSet, io};

use woodpecker_base::disk::OpenMode;
use woodpecker_core::ids::SegmentKey;

use super::{State, Volume};
use crate::{
    backend::StoreError,
    disk::{file::unreadable, index::FileIndex, marks::Mark},
};

/// So many deleted segments are remembered at least before any are forgotten.
pub(super) const REMEMBERED: usize = 1_024;

impl Volume {
    /// Notes that a segment is needed no more and removes the files that no segment needs. Files of a volume that is
    /// being written go when they are full; of one whose writer is gone, all. The directory stays, with the marks, so
    /// that a segment that never had an entry can still be fenced.
    pub(in crate::disk) fn delete(&self, key: SegmentKey) -> Result<(), StoreError> {
        match self.mark(Mark::Deleted { key }) {
            Err(StoreError::NotFound { .. }) => return Ok(()),
            other => other?,
        }
        let abandoned = self.is_abandoned()?;
        // A damaged volume must not look like an empty one before its files are removed.
        self.refresh(&mut self.lock(), abandoned)?;
        let (files, live) = {
            let state = self.lock();
            (state.files.clone(), state.live.as_ref().map(|live| live.number))
        };
        let mut needed = false;
        for number in files.into_keys().filter(|number| abandoned || Some(*number) != live) {
            if self.is_unneeded(number)? {
                self.remove(number)?;
            } else {
                needed = true;
            }
        }
        if abandoned && !needed {
            // What is left was prepared and never used.
            for number in self.dir.list().map_err(|error| unreadable(&self.dir.path, &error))? {
                self.remove(number)?;
            }
        }
        self.forget_deleted()
    }

    /// Whether every segment in the file is deleted. Looks no further than to the first that is not, since a file may hold
    /// very many, and remembers that one, since there may be very many files, and each deletion asks for all of them.
    fn is_unneeded(&self, number: u64) -> Result<bool, StoreError> {
        let needing = |state: &State, index: &FileIndex| index.segments().find(|key| !state.marks.is_deleted(*key));
        {
            let state = self.lock();
            if state.needing.get(&number).is_some_and(|key| !state.marks.is_deleted(*key)) {
                return Ok(false);
            }
            if let Some(live) = state.live.as_ref().filter(|live| live.number == number) {
                return Ok(needing(&state, &live.index).is_none());
            }
        }
        let Some(full) = self.full_file(number)? else { return Ok(true) };
        let mut state = self.lock();
        let found = needing(&state, &full.index);
        state.needing.extend(found.map(|key| (number, key)));
        Ok(found.is_none())
    }

    /// Forgets deleted segments of which no file holds anything any more, when that may be half of them.
    fn forget_deleted(&self) -> Result<(), StoreError> {
        let files: Vec<u64> = {
            let mut state = self.lock();
            if state.marks.deletions() < state.forget_at {
                return Ok(());
            }
            // Not again with the next deletion, if a file cannot be read.
            state.forget_at *= 2;
            state.files.keys().copied().collect()
        };
        let mut held = BTreeSet::new();
        for number in files {
            self.in_file(number, |_, index| held.extend(index.segments()))?;
        }
        let mut state = self.lock();
        state.marks.forget_deleted(|key| held.contains(&key));
        state.forget_at = (2 * state.marks.deletions()).max(REMEMBERED);
        Ok(())
    }

    /// How many deleted segments are remembered.
    #[cfg(test)]
    pub(in crate::disk) fn deletions(&self) -> usize {
        self.lock().marks.deletions()
    }

    /// Whether the volume has files and no writer any more. One that is just being made has no file yet.
    pub(in crate::disk) fn is_left(&self) -> Result<bool, StoreError> {
        let numbers = self.dir.list().map_err(|error| unreadable(&self.dir.path, &error))?;
        if numbers.is_empty() {
            return Ok(false);
        }
        self.is_abandoned()
    }

    /// Whether its writer is gone: a living one holds the lock of the marks.
    fn is_abandoned(&self) -> Result<bool, StoreError> {
        let path = self.dir.marks();
        let marks = self.dir.disk.open(&path, OpenMode::Read).map_err(|error| unreadable(&path, &error))?;
        marks.try_lock().map_err(|error| unreadable(&path, &error))
    }

    /// Removes all files of a volume without a writer; says how many there were. The marks stay, for takers.
    pub(in crate::disk) fn clear(&self) -> Result<u64, StoreError> {
        let numbers = self.dir.list().map_err(|error| unreadable(&self.dir.path, &error))?;
        for number in &numbers {
            self.remove(*number)?;
        }
        Ok(numbers.len() as u64)
    }

    fn remove(&self, number: u64) -> Result<(), StoreError> {
        for path in [self.dir.data(number), self.dir.sidecar(number)] {
            match self.dir.disk.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unreadable(&path, &error)),
                _ => {}
            }
        }
        let mut state = self.lock();
        state.files.remove(&number);
        state.needing.remove(&number);
        state.live.take_if(|live| live.number == number);
        drop(state);
        self.full.remove(&(self.dir.id, number));
        self.dir.disk.sync_dir(&self.dir.path).map_err(|error| unreadable(&self.dir.path, &error))
    }
}
