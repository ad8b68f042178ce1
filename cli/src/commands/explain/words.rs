//! A trace as a story: replicas are called by their nodes, times are told from the start, and what
//! repeats itself becomes one line.

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
        let node = id_text(&m.node);
        let on = format!("the replica on {}", short(&node));
        // A node's own id is told as short as it stands in its replica's name.
        [(id_text(&m.replica), on), (node.clone(), short(&node).to_owned())]
    };
    info.members.iter().flat_map(name).collect()
}

/// A text with replicas and nodes called by their names.
pub(super) fn renamed(text: &str, names: &Names) -> String {
    names.iter().fold(text.to_owned(), |text, (id, name)| text.replace(id, name))
}

/// A text that begins a sentence.
pub(super) fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
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
    /// Tells times as seconds since `start`, in milliseconds since 1970.
    pub fn new(start: u64, names: Names) -> Self {
        Self { start, names, told: VecDeque::new(), repeated: 0 }
    }

    /// The line for a decision; `None` if it only repeats one that was told just before.
    pub fn tell(&mut self, decision: &Decision) -> Option<String> {
        let Decision { node, epoch, what, .. } = decision;
        let why = renamed(&decision.why, &self.names);
        let line = format!("{}  epoch {epoch:<4} {what:<18} {why}", short(node));
        if self.told.contains(&line) {
            self.repeated += 1;
            return None;
        }
        if self.told.len() == REMEMBERED {
            self.told.pop_front();
        }
        let since = decision.time_ms.saturating_sub(self.start) as f64 / 1000.0;
        let mut text = format!("{since:>10.3}  {line}");
        if self.repeated > 0 {
            text = format!("{:>10}  ({} more like those above)\n{text}", "...", self.repeated);
            self.repeated = 0;
        }
        self.told.push_back(line);
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(at: u64, what: &str, why: &str) -> Decision {
        Decision {
            node: "0123456789".into(),
            at,
            time_ms: at,
            number: 1,
            epoch: 3,
            what: what.into(),
            why: why.into(),
        }
    }

    #[test]
    fn replicas_are_called_by_their_nodes() {
        let names = Names::from([("r-1".into(), "the replica on 01234567".into())]);
        let told = renamed("r-1 is healthy, r-2 is not", &names);
        assert_eq!(told, "the replica on 01234567 is healthy, r-2 is not");
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
