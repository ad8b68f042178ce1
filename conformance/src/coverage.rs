//! Which of the engine's words occurred in cases that passed.

use std::collections::BTreeMap;
use std::fmt;

use sbk_engine::recovery::{Command, Event, FailureKind, IgnoredReason, Verdict};

use crate::case::Expected;

/// The words of an enum: the list of all and the word of a value, from one list. The match has no
/// wildcard, so a variant that is added to the engine must be added here to compile, and is then
/// missing from the cases until one shows it.
macro_rules! vocabulary {
    ($all:ident, $word:ident, $type:ident { $($variant:ident => $name:literal,)* }) => {
        const $all: &[&str] = &[$($name),*];

        fn $word(value: &$type) -> &'static str {
            match value {
                $($type::$variant { .. } => $name,)*
            }
        }
    };
}

vocabulary!(EVENTS, event_word, Event {
    Assignment => "assignment",
    Endpoint => "endpoint",
    Removal => "removal",
    ProbeSucceeded => "probe_succeeded",
    ProbeFailed => "probe_failed",
    RecoveryFacts => "recovery_facts",
    DurableAck => "durable_ack",
    SessionDeferred => "session_deferred",
    SessionPrepared => "session_prepared",
    SessionStarted => "session_started",
    SessionProgress => "session_progress",
    SessionClosedCompleted => "session_closed_completed",
    SessionClosedFailed => "session_closed_failed",
    SessionInvalidated => "session_invalidated",
    FenceCompleted => "fence_completed",
    FenceFailed => "fence_failed",
    Tick => "tick",
});

vocabulary!(COMMANDS, command_word, Command {
    Probe => "probe",
    StartCatchUp => "start_catch_up",
    StartDelta => "start_delta",
    StartRebuild => "start_rebuild",
    InvalidateSession => "invalidate_session",
    FenceAtEpoch => "fence_at_epoch",
    PublishHealthy => "publish_healthy",
    PublishDegraded => "publish_degraded",
});

vocabulary!(REASONS, reason_word, IgnoredReason {
    StaleEpoch => "stale_epoch",
    UnknownEpoch => "unknown_epoch",
    UnknownReplica => "unknown_replica",
    StaleEndpoint => "stale_endpoint",
    StaleTransport => "stale_transport",
    OldSession => "old_session",
    UnknownSession => "unknown_session",
    NotExpected => "not_expected",
    Duplicate => "duplicate",
    Malformed => "malformed",
});

vocabulary!(FAILURES, failure_word, FailureKind {
    WalRecycled => "wal_recycled",
    Transport => "transport",
    StoreIo => "store_io",
    StartTimeout => "start_timeout",
    Invalidated => "invalidated",
    PinLost => "pin_lost",
    Stalled => "stalled",
    Unsettled => "unsettled",
    NoSpace => "no_space",
});

/// How often each event, command, ignored reason and failure kind occurred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    events: BTreeMap<&'static str, u64>,
    commands: BTreeMap<&'static str, u64>,
    reasons: BTreeMap<&'static str, u64>,
    failures: BTreeMap<&'static str, u64>,
}

impl Coverage {
    pub(crate) fn note(&mut self, event: &Event, outcome: &Expected) {
        count(&mut self.events, event_word(event), 1);
        if let Event::SessionClosedFailed { kind, .. } = event {
            count(&mut self.failures, failure_word(kind), 1);
        }
        for command in &outcome.commands {
            count(&mut self.commands, command_word(command), 1);
        }
        if let Verdict::Ignored(reason) = &outcome.verdict {
            count(&mut self.reasons, reason_word(reason), 1);
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        let pairs = [
            (&mut self.events, &other.events),
            (&mut self.commands, &other.commands),
            (&mut self.reasons, &other.reasons),
            (&mut self.failures, &other.failures),
        ];
        for (mine, theirs) in pairs {
            theirs.iter().for_each(|(word, times)| count(mine, word, *times));
        }
    }

    /// What never occurred, as `kind word`, such as `event tick`.
    pub fn missing(&self) -> Vec<String> {
        let counted = self.sections().into_iter().flat_map(|(kind, all, seen)| {
            let unseen = all.iter().filter(move |word| !seen.contains_key(*word));
            unseen.map(move |word| format!("{kind} {word}"))
        });
        counted.collect()
    }

    /// Every word that there is, as `(kind, word)`.
    pub fn words() -> Vec<(&'static str, &'static str)> {
        let sections = Self::default();
        let words = sections.sections().map(|(kind, all, _)| all.iter().map(move |w| (kind, *w)));
        words.into_iter().flatten().collect()
    }

    #[allow(clippy::type_complexity, reason = "four rows of one table")]
    fn sections(
        &self,
    ) -> [(&'static str, &'static [&'static str], &BTreeMap<&'static str, u64>); 4] {
        [
            ("event", EVENTS, &self.events),
            ("command", COMMANDS, &self.commands),
            ("ignored reason", REASONS, &self.reasons),
            ("failure kind", FAILURES, &self.failures),
        ]
    }
}

fn count(words: &mut BTreeMap<&'static str, u64>, word: &'static str, times: u64) {
    *words.entry(word).or_default() += times;
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, all, seen) in self.sections() {
            writeln!(f, "{kind}")?;
            for word in all {
                writeln!(f, "  {word:<28}{:>6}", seen.get(word).copied().unwrap_or(0))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_cases() {
        let reason = serde_json::to_value(IgnoredReason::StaleTransport);
        assert_eq!(reason.expect("plain data"), reason_word(&IgnoredReason::StaleTransport));
        for word in EVENTS.iter().chain(COMMANDS) {
            let known = |error: serde_json::Error| !error.to_string().contains("unknown variant");
            let shape = serde_json::json!({ *word: {} });
            let event = serde_json::from_value::<Event>(shape.clone()).map_or_else(known, |_| true);
            let command = serde_json::from_value::<Command>(shape).map_or_else(known, |_| true);
            assert!(event || command, "`{word}` is no word of the engine's");
        }
        for (word, value) in REASONS.iter().map(|w| (w, serde_json::json!(w))) {
            assert!(serde_json::from_value::<IgnoredReason>(value).is_ok(), "{word}");
        }
        for (word, value) in FAILURES.iter().map(|w| (w, serde_json::json!(w))) {
            assert!(serde_json::from_value::<FailureKind>(value).is_ok(), "{word}");
        }
    }

    #[test]
    fn nothing_seen_is_all_missing() {
        let all = EVENTS.len() + COMMANDS.len() + REASONS.len() + FAILURES.len();
        assert_eq!(Coverage::default().missing().len(), all);
    }
}
