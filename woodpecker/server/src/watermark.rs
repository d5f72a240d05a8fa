//! How full the disk is, and what that means for appends.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use woodpecker_base::{
    disk::{Disk, Space},
    random::Random,
};

use crate::{lock, refusal::Refusal};

/// Where a watermark lies: at a part of the disk in use, or at a number of bytes left, whichever comes first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mark {
    /// Used bytes by all bytes.
    pub used: f64,
    /// Bytes left.
    pub free: u64,
}

/// From the soft mark on appends are slowed down, ever more of them the closer the hard mark is; at the hard mark all are
/// refused. Recovery of a segment, which must succeed before it can be sealed and its space come back, has the lower half
/// of what the hard mark keeps free.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Watermarks {
    pub soft: Mark,
    pub hard: Mark,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self { soft: Mark { used: 0.80, free: 2 << 30 }, hard: Mark { used: 0.90, free: 1 << 30 } }
    }
}

/// How full the disk is, as far as appends care.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pressure {
    Low,
    /// How far between the soft and the hard mark, from 0 to 1.
    Soft(f64),
    Hard,
    /// Not even recovery may write.
    Full,
}

/// Shortest and longest pause that a slowed append is asked for.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long to wait on a full disk: space comes back by sealing and deletion.
const FULL_PAUSE: Duration = Duration::from_secs(5);
/// What is said while all appends are refused.
const FULL: &str = "the disk is full: appends are refused until there is room; what is held is read";

impl Watermarks {
    /// What is wrong with them, if anything.
    pub fn problem(&self) -> Option<&'static str> {
        let parts = [self.soft.used, self.hard.used];
        if !parts.iter().all(|part| (0.0..=1.0).contains(part)) {
            return Some("a watermark's `used` is a part of the disk, from 0 to 1");
        }
        if self.soft.used > self.hard.used || self.soft.free < self.hard.free {
            return Some("the soft watermark must come before the hard one");
        }
        None
    }

    /// What this much room means.
    pub fn pressure(&self, space: Space) -> Pressure {
        let used = if space.total == 0 { 1.0 } else { 1.0 - as_f64(space.free) / as_f64(space.total) };
        if space.free <= self.hard.free / 2 {
            return Pressure::Full;
        }
        if used >= self.hard.used || space.free <= self.hard.free {
            return Pressure::Hard;
        }
        let by_part = position(used, self.soft.used, self.hard.used);
        let by_bytes = position(-as_f64(space.free), -as_f64(self.soft.free), -as_f64(self.hard.free));
        let position = by_part.max(by_bytes);
        if position > 0.0 { Pressure::Soft(position) } else { Pressure::Low }
    }
}

/// How far `at` is from `low` to `high`; negative in front of `low`.
fn position(at: f64, low: f64, high: f64) -> f64 {
    if high > low { (at - low) / (high - low) } else { f64::from(at >= low) }
}

#[expect(clippy::cast_precision_loss, reason = "a part of a disk need not be exact to the byte")]
fn as_f64(bytes: u64) -> f64 {
    bytes as f64
}

/// The last look at the disk, and what was appended since.
#[derive(Debug)]
pub struct Gauge {
    marks: Watermarks,
    seen: Mutex<Space>,
    appended: AtomicU64,
    random: Random,
    /// Why all appends are refused, while they are.
    refusing: watch::Sender<Option<&'static str>>,
}

impl Gauge {
    /// Looks once, so that there is something to judge by.
    ///
    /// # Errors
    /// The operating system's.
    pub fn new(marks: Watermarks, disk: &dyn Disk, path: &Path, random: Random) -> io::Result<Self> {
        let space = disk.space(path)?;
        let (seen, appended, refusing) = (Mutex::new(space), AtomicU64::new(0), watch::Sender::default());
        let gauge = Self { marks, seen, appended, random, refusing };
        gauge.tell(Pressure::Low, space);
        Ok(gauge)
    }

    /// Looks again. A look that fails changes nothing: the volume will say what is wrong.
    pub async fn look(self: &Arc<Self>, disk: &Arc<dyn Disk>, path: &Path) {
        let (gauge, on, path) = (self.clone(), disk.clone(), path.to_owned());
        disk.run(Box::new(move || match on.space(&path) {
            Ok(space) => {
                gauge.appended.store(0, Ordering::Relaxed);
                let before = gauge.marks.pressure(std::mem::replace(&mut *lock(&gauge.seen), space));
                gauge.tell(before, space);
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot tell how full the disk is"),
        }))
        .await;
    }

    /// Room as of now: what was appended since the last look is gone.
    pub fn space(&self) -> Space {
        let seen = *lock(&self.seen);
        Space { free: seen.free.saturating_sub(self.appended.load(Ordering::Relaxed)), ..seen }
    }

    pub fn pressure(&self) -> Pressure {
        self.marks.pressure(self.space())
    }

    /// Why all appends are refused, from now on.
    pub fn refusing(&self) -> watch::Receiver<Option<&'static str>> {
        self.refusing.subscribe()
    }

    /// Says what has changed.
    fn tell(&self, before: Pressure, space: Space) {
        use Pressure::{Full, Hard, Low, Soft};
        let now = self.marks.pressure(space);
        match (before, now) {
            (Low, Soft(_)) => tracing::warn!(?space, "the disk is almost full: appends are slowed down"),
            (Low | Soft(_), Hard | Full) => tracing::error!(?space, "{FULL}"),
            (Hard | Full, Low | Soft(_)) => tracing::info!(?space, "the disk has room again: appends are taken"),
            _ => {}
        }
        let refusing = matches!(now, Hard | Full).then_some(FULL);
        self.refusing.send_if_modified(|told| std::mem::replace(told, refusing) != refusing);
    }

    fn full(&self) -> Refusal {
        Refusal::DiskFull { free: self.space().free, retry_after: FULL_PAUSE }
    }

    /// Admits an append of so many bytes, or says why not.
    pub fn admit(&self, bytes: u64, recovery: bool) -> Result<(), Refusal> {
        let refused = match self.pressure() {
            Pressure::Full => Some(self.full()),
            Pressure::Hard if !recovery => Some(self.full()),
            Pressure::Soft(position) if !recovery && self.random.fork().f64() < position => {
                let pause = PAUSE.0 + (PAUSE.1 - PAUSE.0).mul_f64(position.clamp(0.0, 1.0));
                Some(Refusal::SlowDown { reason: "the disk is almost full", retry_after: pause })
            }
            _ => None,
        };
        match refused {
            Some(refusal) => Err(refusal),
            None => {
                self.appended.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use woodpecker_base::disk::RealDisk;

    use super::*;

    const GB: u64 = 1 << 30;

    fn at(total: u64, free: u64) -> Pressure {
        Watermarks::default().pressure(Space { total, free })
    }

    #[test]
    fn pressure_rises_from_the_soft_mark_to_the_hard_one() {
        assert_eq!(at(1_000 * GB, 500 * GB), Pressure::Low);
        assert_eq!(at(1_000 * GB, 200 * GB + 1), Pressure::Low);
        let Pressure::Soft(half) = at(1_000 * GB, 150 * GB) else { panic!("not soft") };
        assert!((half - 0.5).abs() < 0.01, "{half}");
        assert_eq!(at(1_000 * GB, 100 * GB), Pressure::Hard);
        assert_eq!(at(0, 0), Pressure::Full);
    }

    #[test]
    fn on_a_small_disk_the_bytes_left_decide() {
        assert_eq!(at(4 * GB, 3 * GB), Pressure::Low);
        let Pressure::Soft(half) = at(4 * GB, GB + GB / 2) else { panic!("not soft") };
        assert!((half - 0.5).abs() < 0.01, "{half}");
        assert_eq!(at(4 * GB, GB), Pressure::Hard);
        assert_eq!(at(4 * GB, GB / 2), Pressure::Full);
    }

    fn gauge(space: Space) -> Gauge {
        let gauge = Gauge::new(Watermarks::default(), &RealDisk, Path::new("/"), Random::seeded(1)).unwrap();
        *lock(&gauge.seen) = space;
        gauge
    }

    #[test]
    fn ever_more_appends_are_slowed_down_and_the_pause_grows() {
        let mut refused = Vec::new();
        for free in [180 * GB, 150 * GB, 110 * GB] {
            let gauge = gauge(Space { total: 1_000 * GB, free });
            let refusals: Vec<_> = (0..1_000).filter_map(|_| gauge.admit(1, false).err()).collect();
            assert!(refusals.iter().all(|refusal| matches!(refusal, Refusal::SlowDown { .. })));
            assert!((0..100).all(|_| gauge.admit(1, true).is_ok()), "recovery was slowed down");
            refused.push((refusals.len(), refusals[0].retry_after()));
        }
        assert!(refused.is_sorted() && refused[0].0 > 100 && refused[2].0 > 800, "{refused:?}");
    }

    #[test]
    fn a_full_disk_refuses_with_a_pause_and_leaves_room_for_recovery() {
        let hard = gauge(Space { total: 1_000 * GB, free: 90 * GB });
        assert!(matches!(hard.admit(1, false), Err(Refusal::DiskFull { retry_after: FULL_PAUSE, .. })));
        assert_eq!(hard.admit(1, true), Ok(()));
        let full = gauge(Space { total: 1_000 * GB, free: GB / 2 });
        assert!(matches!(full.admit(1, true), Err(Refusal::DiskFull { .. })));
    }

    #[test]
    fn a_disk_that_is_full_at_the_start_is_said_to_be() {
        let none = Mark { used: 0.0, free: 0 };
        let marks = Watermarks { soft: none, hard: none };
        let gauge = Gauge::new(marks, &RealDisk, Path::new("/"), Random::seeded(1)).unwrap();
        assert_eq!(*gauge.refusing().borrow(), Some(FULL));
    }

    #[test]
    fn what_was_appended_since_the_last_look_counts() {
        let gauge = gauge(Space { total: 1_000 * GB, free: 200 * GB + 1 });
        assert_eq!(gauge.admit(150 * GB, false), Ok(()));
        assert!(matches!(gauge.admit(1, false), Err(Refusal::DiskFull { .. })));
    }
}
