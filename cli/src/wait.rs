//! The one way in which the tool waits for a condition: it looks again and again, until what it
//! waits for is there or a deadline passes. Never a fixed pause in the hope that it was enough.

use std::fmt;
use std::time::Duration;

use sbk_master_client::MasterError;
use tokio::time::{Instant, sleep};

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a look at the condition found.
#[derive(Debug)]
pub enum Look<T> {
    /// The condition holds.
    Done(T),
    /// Not yet; what is seen instead, for people.
    NotYet(String),
}

/// The condition did not come true in time. The tool ends with exit code 4.
#[derive(Debug, thiserror::Error)]
#[error("waited {} s for {what}, in vain; last seen: {seen}", .waited.as_secs())]
pub struct TimedOut {
    /// What was waited for.
    pub what: String,
    /// What was seen at the last look.
    pub seen: String,
    /// How long.
    pub waited: Duration,
}

/// Looks with `look` until it finds [`Look::Done`], at most for `limit`.
///
/// # Errors
/// [`TimedOut`] with what was last seen, or the first error of `look`: transient failures are to
/// be told as [`Look::NotYet`].
pub async fn until<T>(
    what: impl fmt::Display,
    limit: Duration,
    mut look: impl AsyncFnMut() -> anyhow::Result<Look<T>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        let seen = match look().await? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(seen) => seen,
        };
        let waited = started.elapsed();
        if waited >= limit {
            return Err(TimedOut { what: what.to_string(), seen, waited }.into());
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// One look at an answer of the masters. That none could be had now is no end of the wait: a leader may
/// be about to be elected.
///
/// # Errors
/// What asking again does not mend.
pub fn answered<A, T>(
    answer: Result<A, MasterError>,
    look: impl FnOnce(A) -> Look<T>,
) -> anyhow::Result<Look<T>> {
    match answer {
        Ok(answer) => Ok(look(answer)),
        Err(e) if e.is_transient() => Ok(Look::NotYet(e.to_string())),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_value_is_returned_once_it_is_there() {
        let mut looks = 0;
        let found = until("three looks", Duration::from_secs(60), async || {
            looks += 1;
            let look = if looks == 3 { Look::Done(looks) } else { Look::NotYet("few".into()) };
            Ok(look)
        })
        .await;
        assert_eq!(found.expect("comes true"), 3);
    }

    #[tokio::test]
    async fn a_deadline_tells_what_was_seen() {
        let error =
            until::<()>("the moon", Duration::ZERO, async || Ok(Look::NotYet("clouds".into())))
                .await
                .expect_err("never comes true");
        let timed_out = error.downcast_ref::<TimedOut>().expect("a timeout");
        assert_eq!((timed_out.what.as_str(), timed_out.seen.as_str()), ("the moon", "clouds"));
    }

    #[test]
    fn only_what_asking_again_does_not_mend_ends_a_wait_for_the_masters() {
        let look = |answer| answered(answer, Look::Done);
        assert!(matches!(look(Ok(7)), Ok(Look::Done(7))));
        let (detail, waited) = ("nobody leads".to_owned(), Duration::ZERO);
        let error = MasterError::NoQuorum { detail, waited, outcome_unknown: false };
        let seen = look(Err(error)).expect("is transient");
        assert!(matches!(seen, Look::NotYet(seen) if seen.contains("nobody leads")));
        look(Err(MasterError::NoMasters)).expect_err("there is nobody to ask");
    }

    #[tokio::test]
    async fn an_error_ends_the_wait() {
        let error =
            until::<()>("it", Duration::from_secs(60), async || Err(anyhow::anyhow!("broken")))
                .await
                .expect_err("broken");
        assert!(!error.is::<TimedOut>());
    }
}
