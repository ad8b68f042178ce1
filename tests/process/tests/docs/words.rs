//! Words that programs write and `docs/operating.md` explains.

use std::collections::BTreeSet;

use sbk_process_tests::files;
use sbk_process_tests::markdown::{Page, code_in};

/// The first words of what the replication engine traces.
fn traced() -> BTreeSet<String> {
    let mut words = BTreeSet::new();
    for path in files("engine/src/replication", "rs") {
        let text = std::fs::read_to_string(&path).expect("reads");
        for call in text.split(".trace(").skip(1) {
            let Some(literal) = call.trim_start().strip_prefix('"') else { continue };
            words.insert(literal.split('"').next().unwrap_or_default().to_owned());
        }
    }
    words
}

#[test]
fn every_word_of_the_trace_is_explained() {
    let rows = Page::read("docs/operating.md").rows();
    let begin = rows.iter().position(|(_, cells)| cells[0] == "word").expect("the table of words");
    let table = rows[begin + 2..].windows(2).scan(true, |on, pair| {
        let goes_on = std::mem::replace(on, pair[1].0 == pair[0].0 + 1);
        goes_on.then(|| pair[0].1[0].clone())
    });
    let explained: BTreeSet<_> = table.flat_map(|cell| code_in(&cell)).collect();
    assert_eq!(explained, traced(), "left: docs/operating.md, right: engine/src/replication");
}
