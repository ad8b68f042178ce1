//! What a run found to be wrong.

use std::cell::Cell;
use std::panic::PanicHookInfo;

use serde::{Deserialize, Serialize};

/// What a run found to be wrong: by whom, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The id of what does not hold, as in `I5`, or the file of an assertion without one.
    pub checker: String,
    /// The file whose assertion it is.
    pub file: String,
    /// Simulated milliseconds.
    pub time: u64,
    /// The assertion's message.
    pub text: String,
}

thread_local! {
    static TIME: Cell<u64> = const { Cell::new(0) };
}

/// It is `now` in the world that this thread simulates.
pub(crate) fn is_now(now: u64) {
    TIME.set(now);
}

impl Violation {
    /// The violation that a panic in this thread tells of.
    pub fn of(panic: &PanicHookInfo<'_>) -> Self {
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let place = panic.location().map_or("", |place| place.file());
        let file = place.rsplit('/').next().unwrap_or_default().to_owned();
        let checker = id_in(&text).unwrap_or(&file).to_owned();
        Self { checker, file, time: TIME.get(), text }
    }
}

/// The id that begins a message or, where two values were compared, follows their introduction.
fn id_in(text: &str) -> Option<&str> {
    let line = text.lines().next()?;
    let start = line.strip_prefix("assertion `").and_then(|rest| rest.split_once("failed: "));
    let (id, _) = start.map_or(line, |(_, message)| message).split_once(": ")?;
    let digits = id.strip_prefix(|c: char| c.is_ascii_uppercase())?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_in_both_forms_of_a_message() {
        assert_eq!(id_in("I5: durable 3 was never logged"), Some("I5"));
        let compared = "assertion `left == right` failed: I4: the images differ\n  left: 1";
        assert_eq!(id_in(compared), Some("I4"));
        for no in ["a log", "A log: bad", "assertion failed: x: y", ""] {
            assert_eq!(id_in(no), None, "{no}");
        }
    }
}
