//! Command lines that are written down somewhere, checked against the real parsers.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory};

use crate::markdown::{Block, Page};

/// One call of one of the project's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// `sbkctl`, `sbk-master` or `sbk-datanode`.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Whether it is a whole command line rather than a mention of one.
    pub whole: bool,
}

/// The parser of one of the programs; `None` if it is not one of ours.
pub fn parser(program: &str) -> Option<Command> {
    let mut command = match program {
        "sbkctl" => sbk_cli::args::Cli::command(),
        "sbk-master" => sbk_master::Args::command(),
        "sbk-datanode" => sbk_datanode::Args::command(),
        _ => return None,
    };
    // Hands the global options down to the subcommands, and adds --help and --version.
    command.build();
    Some(command)
}

/// Every long option of every program, with its dashes.
pub fn all_flags() -> BTreeSet<String> {
    fn collect(command: &Command, flags: &mut BTreeSet<String>) {
        flags
            .extend(command.get_arguments().filter_map(|a| a.get_long()).map(|l| format!("--{l}")));
        command.get_subcommands().for_each(|sub| collect(sub, flags));
    }
    let mut flags = BTreeSet::new();
    for program in ["sbkctl", "sbk-master", "sbk-datanode"] {
        collect(&parser(program).expect("ours"), &mut flags);
    }
    flags
}

/// Every environment variable that a program takes an option from.
pub fn all_variables() -> BTreeSet<String> {
    let mut variables = BTreeSet::new();
    for program in ["sbk-master", "sbk-datanode"] {
        let command = parser(program).expect("ours");
        let names = command.get_arguments().filter_map(|arg| arg.get_env());
        variables.extend(names.map(|name| name.to_str().expect("UTF-8").to_owned()));
    }
    variables
}

impl Call {
    /// What is wrong with it, if anything: a subcommand or an option that is not there, and, if it
    /// is whole and nothing in it is left to a shell, whatever the parser says.
    pub fn problem(&self) -> Option<String> {
        let parser = parser(&self.program).expect("one of ours");
        if let Some(problem) = self.unknown(&parser) {
            return Some(problem);
        }
        if !self.whole || self.args.iter().any(|arg| arg.contains('$') || arg == "...") {
            return None;
        }
        let words = std::iter::once(self.program.clone()).chain(self.args.iter().cloned());
        let error = parser.try_get_matches_from(words).err()?;
        match error.kind() {
            clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => None,
            _ => Some(error.to_string()),
        }
    }

    fn unknown(&self, parser: &Command) -> Option<String> {
        let mut command = parser.clone();
        let mut args = self.args.iter();
        while let Some(word) = args.next() {
            let (flag, given) = match word.split_once('=') {
                Some((flag, _)) => (flag, true),
                None => (word.as_str(), false),
            };
            if word.starts_with('-') && word.len() > 1 {
                let is = |arg: &&clap::Arg| match flag.strip_prefix("--") {
                    Some(long) => arg.get_long() == Some(long),
                    None => arg.get_short() == flag.chars().nth(1),
                };
                let Some(arg) = command.get_arguments().find(is) else {
                    return Some(format!("`{}` has no option {flag}", command.get_name()));
                };
                if !given && arg.get_action().takes_values() {
                    args.next();
                }
            } else if command.has_subcommands() && word != "..." {
                let Some(sub) = command.find_subcommand(word) else {
                    return Some(format!("`{}` has no command {word}", command.get_name()));
                };
                command = sub.clone();
            }
        }
        None
    }
}

/// The calls in a page: whole ones in its blocks, mentions in its inline code. A block marked
/// `text` is a picture or output.
pub fn on_page(page: &Page) -> Vec<(usize, Call)> {
    let mut calls = Vec::new();
    for block in page.blocks().iter().filter(|block| block.language != "text") {
        calls.extend(in_block(block));
    }
    for span in page.spans() {
        let found = calls_in(&span.text).into_iter();
        calls.extend(found.map(|call| (span.line, Call { whole: false, ..call })));
    }
    calls
}

/// The calls in a block. Where a prompt is shown, only what follows one is a command.
fn in_block(block: &Block) -> Vec<(usize, Call)> {
    let prompts = block.text.lines().any(|line| prompt(line).is_some());
    let mut calls = Vec::new();
    let mut lines = block.text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(command) = (if prompts { prompt(line) } else { Some(line) }) else { continue };
        let mut command = command.to_owned();
        while let Some(begun) = command.strip_suffix('\\') {
            let Some((_, next)) = lines.next() else { break };
            command = format!("{begun} {}", next.trim_start());
        }
        calls.extend(calls_in(&command).into_iter().map(|call| (block.line + index, call)));
    }
    calls
}

fn prompt(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("$ ")
}

/// The calls of the project's programs in a line of shell.
pub fn calls_in(line: &str) -> Vec<Call> {
    simple_commands(line).into_iter().filter_map(|words| call(&words)).collect()
}

fn call(words: &[String]) -> Option<Call> {
    let assigns = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        })
    };
    let before = ["sudo", "exec", "do", "time", "then"];
    let mut words = words.iter().skip_while(|w| assigns(w) || before.contains(&w.as_str()));
    let mut program = words.next()?.rsplit('/').next()?.to_owned();
    if program == "cargo" {
        // `cargo run --release --bin sbkctl -- dev`
        let cargo: Vec<_> = words.by_ref().take_while(|word| *word != "--").collect();
        let bin = cargo.iter().position(|word| *word == "--bin")?;
        program = (*cargo.get(bin + 1)?).clone();
    }
    parser(&program)?;
    Some(Call { program, args: words.cloned().collect(), whole: true })
}

/// Splits a line of shell at what separates commands, and each into words.
fn simple_commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '>' | '<') if word.as_ref().is_none_or(|w| w.parse::<u8>().is_ok()) => {
                // A redirection ends what is checked of this command.
                word = None;
                while chars.peek().is_some_and(|c| !"|;&".contains(*c)) {
                    chars.next();
                }
            }
            (None, '|' | ';' | '&' | '(' | ')') => {
                commands.last_mut().expect("one").extend(word.take());
                commands.push(Vec::new());
            }
            (None, c) if c.is_whitespace() => {
                commands.last_mut().expect("one").extend(word.take());
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    commands.last_mut().expect("one").extend(word);
    commands
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(line: &str) -> Call {
        let mut calls = calls_in(line);
        assert_eq!(calls.len(), 1, "{line}: {calls:?}");
        calls.remove(0)
    }

    #[test]
    fn calls_are_found_in_shell() {
        let call = only("SBK_ID=1 sudo target/release/sbkctl volume show 'a b' -o json | jq . # x");
        assert_eq!((call.program.as_str(), call.args.len()), ("sbkctl", 5));
        assert_eq!(call.args[2], "a b");
        assert_eq!(only("cargo run --release --bin sbkctl -- dev").args, ["dev"]);
        assert_eq!(only("  sbk-master --id $i > log 2>&1 &").args, ["--id", "$i"]);
        assert_eq!(calls_in("ls sbkctl; echo sbkctl"), []);
    }

    #[test]
    fn what_is_not_there_is_found() {
        for (line, problem) in [
            ("sbkctl volume creat db", "no command creat"),
            ("sbkctl volume create db --sise 1GiB", "no option --sise"),
            ("sbkctl volume create db --size big", "big"),
            ("sbkctl volume create db", "--size"),
            ("sbk-master --nbd 127.0.0.1:1", "no option --nbd"),
            ("sbk-datanode --listen everywhere", "everywhere"),
        ] {
            let found = only(line).problem().unwrap_or_else(|| panic!("{line} is accepted"));
            assert!(found.contains(problem), "{line}: {found}");
        }
    }

    #[test]
    fn what_is_there_is_accepted() {
        for line in [
            "sbkctl --masters 10.0.0.1:7101,10.0.0.2:7101 volume create db --size 10GiB -o json",
            "sbkctl volume explain db --follow --dir /tmp/x",
            "sbkctl dev --help",
            "sbk-master --id $i --cluster $CLUSTER",
        ] {
            assert_eq!(only(line).problem(), None, "{line}");
        }
        let mention = Call { whole: false, ..only("sbkctl volume create") };
        assert_eq!(mention.problem(), None);
    }

    #[test]
    fn a_block_with_prompts_has_output_too() {
        let text = "$ sbkctl cluster \\\n    status\nsbkctl is told here\n$ ls\n".to_owned();
        let block = Block { line: 10, language: "console".into(), text };
        let calls = in_block(&block);
        assert_eq!(calls.len(), 1);
        assert_eq!(
            (calls[0].0, calls[0].1.args.as_slice()),
            (10, &["cluster".into(), "status".into()][..])
        );
    }
}
