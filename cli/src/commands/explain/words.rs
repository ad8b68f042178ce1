//! A trace in words. The engine writes its events and commands as programmers read them; here they
//! become sentences, and what repeats itself becomes one line.

use std::collections::{BTreeMap, VecDeque};

use sbk_proto::v1::{MemberInfo, VolumeInfo};

use super::Decision;
use crate::view::id_text;

/// Lines that a new one is compared with: a replica that is away is asked again and again, and
/// each time there are a question and an answer.
const REMEMBERED: usize = 6;

/// What replicas are called for people: by the node that they are on.
pub type Names = BTreeMap<String, String>;

/// The names of a volume's replicas.
pub fn names(info: &VolumeInfo) -> Names {
    let name = |m: &MemberInfo| {
        (id_text(&m.replica), format!("the replica on {}", short(&id_text(&m.node))))
    };
    info.members.iter().map(name).collect()
}

/// The first part of a UUID: enough to tell nodes apart.
fn short(id: &str) -> &str {
    id.get(..8).unwrap_or(id)
}

/// Tells decisions in order of time.
#[derive(Debug)]
pub struct Teller {
    start: u64,
    names: Names,
    told: VecDeque<String>,
    repeated: u64,
}

impl Teller {
    /// Tells times as seconds since `start`, in milliseconds on the nodes' clock.
    pub fn new(start: u64, names: Names) -> Self {
        Self { start, names, told: VecDeque::new(), repeated: 0 }
    }

    /// The line for a decision; `None` if it only repeats one that was told just before.
    pub fn tell(&mut self, decision: &Decision) -> Option<String> {
        let Decision { node, epoch, what, .. } = decision;
        let why = words(decision, &self.names);
        let line = format!("{}  epoch {epoch:<4} {what:<18} {why}", short(node));
        if self.told.contains(&line) {
            self.repeated += 1;
            return None;
        }
        if self.told.len() == REMEMBERED {
            self.told.pop_front();
        }
        let since = decision.at.saturating_sub(self.start) as f64 / 1000.0;
        let mut text = format!("{since:>10.3}  {line}");
        if self.repeated > 0 {
            text = format!("{:>10}  ({} more like those above)\n{text}", "...", self.repeated);
            self.repeated = 0;
        }
        self.told.push_back(line);
        Some(text)
    }
}

/// Why something was decided, in words.
fn words(decision: &Decision, names: &Names) -> String {
    let mut why = plain(&decision.why);
    for (replica, name) in names {
        why = why.replace(replica, name);
    }
    // The epoch stands in a column of its own.
    why = why.replace(&format!("epoch: {}, ", decision.epoch), "");
    match why.split_once(" -> ") {
        Some((event, outcome)) if decision.what == "recovery" => recovery(event, outcome),
        _ => why,
    }
}

/// An event of the recovery engine, with its verdict and commands.
fn recovery(event: &str, outcome: &str) -> String {
    let (verdict, commands) = outcome.split_once(", [").unwrap_or((outcome, ""));
    let commands = commands.strip_suffix(']').unwrap_or(commands);
    let seen = if event.is_empty() { "time passed".to_owned() } else { spaced(event) };
    let verdict = match verdict {
        "Applied" => String::new(),
        other => format!(" ({})", spaced(other)),
    };
    match commands {
        "" => format!("{seen}{verdict}"),
        commands => format!("{seen}{verdict}; so: {}", spaced(commands)),
    }
}

/// `ProbeFailed { endpoint: e }` is `probe failed (endpoint: e)`.
fn spaced(text: &str) -> String {
    let mut words = String::with_capacity(text.len() + 16);
    let text = text.replace(" { ", " (").replace(" }", ")").replace('_', " ");
    for c in text.chars() {
        if c.is_ascii_uppercase() {
            if words.ends_with(|before: char| before.is_ascii_lowercase()) {
                words.push(' ');
            }
            words.push(c.to_ascii_lowercase());
        } else {
            words.push(c);
        }
    }
    words
}

/// The engine's words without what only programmers want to see: `ReplicaId(5f0c..)` is `5f0c..`,
/// `Epoch(3)` is `3`.
fn plain(why: &str) -> String {
    const WRAPPERS: [&str; 8] = [
        "ReplicaId(",
        "VolumeId(",
        "SessionId(",
        "TransportEpoch(",
        "Epoch(",
        "Lsn(",
        "Millis(",
        "Some(",
    ];
    let mut text = String::with_capacity(why.len());
    let mut rest = why;
    // Of each parenthesis that is open: whether it is left out.
    let mut open = Vec::new();
    while let Some(first) = rest.chars().next() {
        let starts_word = !text.ends_with(|c: char| c.is_alphanumeric());
        if let Some(wrapper) = WRAPPERS.iter().find(|w| starts_word && rest.starts_with(**w)) {
            open.push(true);
            rest = &rest[wrapper.len()..];
            continue;
        }
        let left_out = match first {
            '(' => {
                open.push(false);
                false
            }
            ')' => open.pop().unwrap_or(false),
            _ => false,
        };
        if !left_out {
            text.push(first);
        }
        rest = &rest[first.len_utf8()..];
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(at: u64, what: &str, why: &str) -> Decision {
        Decision {
            node: "0123456789".into(),
            at,
            number: 1,
            epoch: 3,
            what: what.into(),
            why: why.into(),
        }
    }

    #[test]
    fn words_are_plain() {
        for (why, told) in [
            (
                "Probe { epoch: Epoch(3), replica: ReplicaId(5f0c-1), r: Some(Lsn(7)) }",
                "Probe { epoch: 3, replica: 5f0c-1, r: 7 }",
            ),
            ("promised (for 9 ms) to Lsn(4)", "promised (for 9 ms) to 4"),
            ("TransportEpoch(2), Ignored(Duplicate)", "2, Ignored(Duplicate)"),
            ("unbalanced ) and Lsn(5", "unbalanced ) and 5"),
            ("größer (ä)", "größer (ä)"),
        ] {
            assert_eq!(plain(why), told);
        }
    }

    #[test]
    fn the_recovery_engine_is_told_in_sentences() {
        let names = Names::from([("r-1".into(), "the replica on 01234567".into())]);
        for (why, told) in [
            (
                "ProbeFailed { epoch: Epoch(3), replica: ReplicaId(r-1), endpoint: \"e:1\" } -> \
                 Applied, [PublishDegraded { epoch: Epoch(3), replica: ReplicaId(r-1) }]",
                "probe failed (replica: the replica on 01234567, endpoint: \"e:1\"); so: publish \
                 degraded (replica: the replica on 01234567)",
            ),
            (" -> Applied, [Probe { epoch: Epoch(3) }]", "time passed; so: probe (epoch: 3)"),
            ("Removal { a: 1 } -> Ignored(Duplicate), []", "removal (a: 1) (ignored(duplicate))"),
        ] {
            assert_eq!(words(&decision(0, "recovery", why), &names), told);
        }
        assert_eq!(words(&decision(0, "cut", "from 5 -> 4"), &names), "from 5 -> 4");
    }

    #[test]
    fn what_repeats_itself_is_told_once() {
        let mut teller = Teller::new(1000, Names::new());
        let first = teller.tell(&decision(2500, "asked", "a")).expect("told");
        assert!(first.contains("1.500  01234567  epoch 3"), "{first}");
        assert!(teller.tell(&decision(2501, "silent", "a")).is_some());
        for at in 3000..3010 {
            assert_eq!(teller.tell(&decision(at, "asked", "a")), None);
            assert_eq!(teller.tell(&decision(at, "silent", "a")), None);
        }
        let next = teller.tell(&decision(4000, "answered", "a")).expect("told");
        assert!(next.contains("(20 more like those above)\n     3.000"), "{next}");
        let after = teller.tell(&decision(4001, "healthy", "a")).expect("told");
        assert!(!after.contains("more like"), "{after}");
    }
}
