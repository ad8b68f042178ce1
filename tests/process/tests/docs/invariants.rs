//! `docs/invariants.md`: every id is asserted where it says, and tried by tests that exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sbk_process_tests::markdown::{Page, code_in};
use sbk_process_tests::{files, relative};

/// `I7` of `I7: the fenced epoch ...`.
fn id_of(message: &str) -> Option<&str> {
    let (id, _) = message.split_once(": ")?;
    let digits = id.strip_prefix(|c: char| c.is_ascii_uppercase())?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())).then_some(id)
}

/// How far before its message an assertion may begin, in characters.
const LONGEST: usize = 500;

/// The ids with which messages of assertions begin, and the files.
fn asserted() -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::<String, BTreeSet<String>>::new();
    let simulator = files("tests/src", "rs").into_iter().filter(|path| !is_a_test(path));
    for path in files("engine", "rs").into_iter().chain(simulator) {
        let text = std::fs::read_to_string(&path).expect("reads");
        // What is asserted of an example of a message is not asserted of the product.
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (at, _) in text.match_indices('"') {
            let Some(id) = id_of(&text[at + 1..]) else { continue };
            let before: String = text[..at].chars().rev().take(LONGEST).collect();
            let before: String = before.chars().rev().collect();
            let asserts = ["assert!(", "assert_eq!(", "assert_ne!(", "panic!("];
            assert!(asserts.iter().any(|a| before.contains(a)), "{}: {id}", path.display());
            found.entry(id.to_owned()).or_default().insert(relative(&path));
        }
    }
    found
}

fn is_a_test(path: &Path) -> bool {
    path.file_stem().is_some_and(|name| name.to_string_lossy().ends_with("_tests"))
}

/// The names of all test functions.
fn tests() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let of = ["engine", "datanode", "tests/src", "tests/tests"].map(|dir| files(dir, "rs"));
    for path in of.into_iter().flatten() {
        let text = std::fs::read_to_string(&path).expect("reads");
        let mut marked = false;
        for line in text.lines().map(str::trim) {
            if line == "#[test]" {
                marked = true;
            } else if let Some(rest) = line.strip_prefix("fn ").filter(|_| marked) {
                names.insert(rest.split('(').next().unwrap_or_default().to_owned());
                marked = false;
            }
        }
    }
    names
}

#[test]
fn invariants_are_asserted_and_tried() {
    let page = Page::read("docs/invariants.md");
    let (asserted, tests) = (asserted(), tests());
    let mut documented = BTreeMap::new();
    for (line, cells) in page.rows() {
        let at = page.at(line);
        let [id, sentence, places, tried] = cells.as_slice() else { panic!("{at}: four columns") };
        if id == "id" || id.starts_with("--") {
            continue;
        }
        assert!(!sentence.is_empty(), "{at}: no sentence");
        let places: BTreeSet<_> = code_in(places).into_iter().collect();
        assert!(documented.insert(id.clone(), places).is_none(), "{at}: {id} is there twice");
        let tried = code_in(tried);
        assert!(!tried.is_empty(), "{at}: nothing tries {id}");
        for name in tried {
            assert!(tests.contains(&name), "{at}: there is no test {name}");
        }
    }
    assert_eq!(documented, asserted, "left: docs/invariants.md, right: engine/, tests/src/");
}

#[test]
fn an_id_is_a_letter_and_a_number() {
    assert_eq!(id_of("I12: the epoch"), Some("I12"));
    for no in ["I: the", "12: x", "I1 x", "Id1: x", "no such: x", ": x"] {
        assert_eq!(id_of(no), None, "{no}");
    }
}
