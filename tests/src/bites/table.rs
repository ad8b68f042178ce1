//! The table of what was found, in `docs/testing.md`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use sbk_engine::bugs::Bug;

use super::{Finding, Place};

const BEGIN: &str = "<!-- bites: begin -->";
const END: &str = "<!-- bites: end -->";

/// The page with the table.
pub fn page() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/testing.md"))
}

/// The text before the table, the table, the text after it.
///
/// # Errors
/// If the page has not the two marks.
pub fn split(page: &str) -> Result<(&str, &str, &str), String> {
    let missing = |mark| format!("docs/testing.md: the mark {mark} is missing");
    let (before, rest) = page.split_once(BEGIN).ok_or_else(|| missing(BEGIN))?;
    let (table, after) = rest.split_once(END).ok_or_else(|| missing(END))?;
    Ok((before, table, after))
}

/// The page with another table.
///
/// # Errors
/// If the page has not the two marks.
pub fn replace(page: &str, table: &str) -> Result<String, String> {
    let (before, _, after) = split(page)?;
    Ok(format!("{before}{BEGIN}\n{table}{END}{after}"))
}

/// Where each bug was found.
///
/// # Errors
/// If a row can't be read.
pub fn read(table: &str) -> Result<BTreeMap<String, Place>, String> {
    let mut places = BTreeMap::new();
    for line in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let bad = || format!("docs/testing.md: not a row of the table of bugs: {line}");
        let [name, _, place, _, _] = cells.as_slice() else { return Err(bad()) };
        let (family, at) = place.split_once(' ').ok_or_else(bad)?;
        let place = Place { family: family.to_owned(), at: at.to_owned() };
        if places.insert(name.trim_matches('`').to_owned(), place).is_some() {
            return Err(bad());
        }
    }
    Ok(places)
}

const GAPS: &str = "Not noticed by what was searched: ";

/// The bugs that nothing found.
pub fn gaps(table: &str) -> Vec<String> {
    let line = table.lines().find_map(|line| line.strip_prefix(GAPS)).unwrap_or_default();
    line.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The table and the list of the bugs that nothing found. The rows of bugs that were not searched for
/// stay as they are in `old`.
pub fn render(old: &str, searched: &[Bug], found: &BTreeMap<Bug, (String, Finding)>) -> String {
    let mut out = String::from(
        "| bug | the rule that is taken out [what goes wrong] | finder, seed or world | after | found by |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    let mut missing = Vec::new();
    for bug in Bug::ALL {
        let begin = format!("| `{}` |", bug.name());
        let kept = old.lines().find(|line| line.starts_with(&begin));
        let row = match found.get(bug) {
            Some((family, finding)) => Some(row(*bug, family, finding)),
            None => kept.filter(|_| !searched.contains(bug)).map(|line| format!("{line}\n")),
        };
        match row {
            Some(row) => out.push_str(&row),
            None => missing.push(format!("`{}`", bug.name())),
        }
    }
    if missing.is_empty() { out } else { format!("{out}\n{GAPS}{}.\n", missing.join(", ")) }
}

fn row(bug: Bug, family: &str, Finding { at, after, violation }: &Finding) -> String {
    let (name, text) = (bug.name(), bug.text());
    let by = match violation.checker == violation.file {
        true => format!("`{}`", violation.file),
        false => format!("{}, `{}`", violation.checker, violation.file),
    };
    format!("| `{name}` | {text} | {family} {at} | {after} | {by} |\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Violation;

    #[test]
    fn what_is_written_is_read_again() {
        let violation = Violation {
            checker: "I2".to_owned(),
            file: "truth.rs".to_owned(),
            time: 1_234,
            text: "I2: lost".to_owned(),
        };
        let (at, after) = ("7".to_owned(), "1.2 s".to_owned());
        let finding = Finding { at, after, violation };
        let found = BTreeMap::from([(Bug::SkipCut, ("coups".to_owned(), finding))]);
        let page = format!("above\n{BEGIN}\nold\n{END}\nbelow\n");
        let old = "| `AckBeforeMember` | text | coups 1 | 2.0 s | I2 |\n";
        let table = render(old, &[Bug::SkipCut], &found);
        let page = replace(&page, &table).expect("the marks are there");
        assert!(page.starts_with("above\n") && page.ends_with("\nbelow\n"), "{page}");
        let (_, table, _) = split(&page).expect("the marks are there");
        assert!(table.contains("| 1.2 s | I2, `truth.rs` |"), "{table}");
        let place = Place { family: "coups".to_owned(), at: "7".to_owned() };
        let rows = read(table).expect("rows");
        assert_eq!(rows.keys().collect::<Vec<_>>(), ["AckBeforeMember", "SkipCut"]);
        assert_eq!(rows["SkipCut"], place);
        assert_eq!(gaps(table).len() + 2, Bug::ALL.len());
        // One that was searched for and not found loses its row.
        let table = render(old, &[Bug::AckBeforeMember], &found);
        assert_eq!(read(&table).expect("rows").len(), 1, "{table}");
        assert!(split("no marks").is_err());
        let world = read("| `SkipCut` | text | explore healthy | 9 steps | I2 |").expect("a row");
        assert_eq!(world["SkipCut"].at, "healthy");
        assert!(read("| `SkipCut` | text | coups | 1 s | I2 |").is_err());
    }
}
