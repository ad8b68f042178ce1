//! Commands, options and environment variables.

use sbk_process_tests::commands::{all_flags, all_variables, on_page};
use sbk_process_tests::markdown::pages;

/// Options of other programs that stand alone in the text.
const OTHERS: [&str; 8] = [
    "--record",
    "--coverage",
    "--bin",
    "--release",
    "--connections",
    "--trace",
    "--regressions",
    "--marks",
];

#[test]
fn every_command_parses() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for (line, call) in on_page(&page) {
            seen += 1;
            if let Some(problem) = call.problem() {
                wrong.push(format!("{}: {problem}", page.at(line)));
            }
        }
    }
    assert!(seen > 40, "only {seen} commands were found");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn options_that_are_mentioned_exist() {
    let known = all_flags();
    let mut wrong = Vec::new();
    for page in pages() {
        for span in page.spans() {
            let Some(flag) = span.text.split([' ', '=']).next().filter(|w| w.starts_with("--"))
            else {
                continue;
            };
            let is_option = flag.len() > 2 && flag.chars().nth(2) != Some('-');
            if is_option && !known.contains(flag) && !OTHERS.contains(&flag) {
                wrong.push(format!("{}: {flag}", page.at(span.line)));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn environment_variables_that_are_mentioned_exist() {
    let known = all_variables();
    let mut wrong = Vec::new();
    for page in pages() {
        for (index, line) in page.text.lines().enumerate() {
            for word in line.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
                if word.starts_with("SBK_") && word.len() > 4 && !known.contains(word) {
                    wrong.push(format!("{}: {word}", page.at(index + 1)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// `docs/operating.md` has every option of both daemons in a table, with its variable, and no other.
#[test]
fn every_option_of_the_daemons_is_documented() {
    let page = sbk_process_tests::markdown::Page::read("docs/operating.md");
    let mut documented = std::collections::BTreeSet::new();
    for (_, cells) in page.rows() {
        let (Some(first), Some(second)) = (cells.first(), cells.get(1)) else { continue };
        let code = sbk_process_tests::markdown::code_in(first);
        if let Some(flag) = code.first().filter(|flag| flag.starts_with("--")) {
            let variable = sbk_process_tests::markdown::code_in(second).first().cloned();
            documented.insert((flag.clone(), variable.unwrap_or_default()));
        }
    }
    let mut real = std::collections::BTreeSet::new();
    for program in ["sbk-master", "sbk-datanode"] {
        let command = sbk_process_tests::commands::parser(program).expect("ours");
        for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
            let Some(variable) = arg.get_env().and_then(|v| v.to_str()) else { continue };
            let long = arg.get_long().expect("every option is long");
            real.insert((format!("--{long}"), variable.to_owned()));
        }
    }
    assert_eq!(documented, real);
}
