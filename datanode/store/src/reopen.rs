//! When a store that failed is opened again.
//!
//! Opening it again takes nothing for granted: it is another run, and what its log proves then is what
//! counts. So the only question is how often that is tried. Each try may cost clients a pause, for a replica
//! that is back for a moment may be listed, and has to leave again.
//!
//! A full disk is no fault of the disk: somebody makes room, or a checkpoint elsewhere on it does.
//! [A disk was full for some seconds, the replica failed five times meanwhile, and was not used any more
//! until the process was started anew.] So those failures count for nothing but the next pause.

use std::error::Error;
use std::io;
use std::time::Duration;

/// A store that fails so often without a long run in between, for another reason than want of space, is
/// retired.
const MAX_FAILURES: u32 = 5;
/// A run of this length forgives earlier failures.
const LONG_RUN: Duration = Duration::from_secs(10 * 60);
const FIRST: Duration = Duration::from_millis(200);
/// The longest pause on a full disk: room may be there that nobody can tell, as below a quota.
const FULL_MOST: Duration = Duration::from_secs(30);
/// The least pause when room was made: who fills a disk may free a little of it again and again.
const FULL_LEAST: Duration = Duration::from_secs(1);
/// A retired replica is tried once more after this. It is longer than what masters wait, by default,
/// before they have another one take its place (10 minutes), so that a disk that works for moments does
/// not keep them from it; where no other node has room, a disk that was mended is used again.
const RETIRED: Duration = Duration::from_secs(15 * 60);

/// When it is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reopening {
    /// After a short pause.
    Soon(Duration),
    /// Its disk is full. When there is room, but not before `least`, and after `most` in any case.
    WithRoom {
        /// The shortest pause.
        least: Duration,
        /// The longest one.
        most: Duration,
    },
    /// It failed too often. After a long pause.
    Retired(Duration),
}

/// The failures of one replica's store in one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Failures {
    full: u32,
    others: u32,
}

impl Failures {
    /// It failed after it was open for `ran`; `full`: for want of space.
    pub fn add(&mut self, full: bool, ran: Duration) -> Reopening {
        if ran >= LONG_RUN {
            *self = Self::default();
        }
        if full {
            let most = FIRST.saturating_mul(1 << self.full.min(16)).min(FULL_MOST);
            self.full = self.full.saturating_add(1);
            return Reopening::WithRoom { least: most.min(FULL_LEAST), most };
        }
        self.others += 1;
        if self.others >= MAX_FAILURES {
            // One more failure after the long pause, and it is retired again.
            self.others = MAX_FAILURES - 1;
            return Reopening::Retired(RETIRED);
        }
        Reopening::Soon(FIRST * (1 << (self.others - 1)))
    }

    /// All without a long run in between; those for other reasons up to the limit.
    pub fn count(&self) -> u32 {
        self.full.saturating_add(self.others)
    }
}

/// Whether an operation failed for want of space: the disk is full, or a quota used up.
pub fn is_out_of_space(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::StoreError;

    const MOMENT: Duration = Duration::from_secs(1);

    fn store_error(errno: i32) -> StoreError {
        let source = io::Error::from_raw_os_error(errno);
        StoreError::Log(sbk_wal::LogError::Io { doing: "write", path: "x".into(), source })
    }

    #[test]
    fn want_of_space_is_told_from_other_failures_through_all_wraps() {
        // EIO, ENOSPC, EDQUOT.
        assert!(!is_out_of_space(&store_error(5)));
        assert!(is_out_of_space(&store_error(28)));
        assert!(is_out_of_space(&store_error(122)));
        let later = StoreError::Failed { cause: store_error(28).to_string() };
        assert!(!is_out_of_space(&later), "a text is no proof");
    }

    #[test]
    fn a_full_disk_never_retires_a_replica() {
        let mut failures = Failures::default();
        let mut last = Duration::ZERO;
        for n in 0..1000 {
            let Reopening::WithRoom { least, most } = failures.add(true, MOMENT) else {
                panic!("failure {n} is none of a full disk");
            };
            assert!(least <= most && most <= FULL_MOST && most >= last, "{least:?} {most:?}");
            last = most;
        }
        assert_eq!(last, FULL_MOST);
        assert_eq!(
            failures.add(false, MOMENT),
            Reopening::Soon(FIRST),
            "and counts for nothing else"
        );
    }

    #[test]
    fn other_failures_retire_it_for_a_while_and_a_long_run_forgives_them() {
        let mut failures = Failures::default();
        for n in 1..MAX_FAILURES {
            let pause = FIRST * (1 << (n - 1));
            assert_eq!(failures.add(false, MOMENT), Reopening::Soon(pause));
            assert!(matches!(failures.add(true, MOMENT), Reopening::WithRoom { .. }));
        }
        assert_eq!(failures.add(false, MOMENT), Reopening::Retired(RETIRED));
        assert_eq!(failures.add(false, MOMENT), Reopening::Retired(RETIRED), "one try");
        assert_eq!(failures.add(false, LONG_RUN), Reopening::Soon(FIRST));
    }
}
