//! As much of Markdown as the project's documentation uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::{files, relative, root};

/// A page of the documentation.
#[derive(Clone, Debug)]
pub struct Page {
    /// Relative to the repository.
    pub path: String,
    /// All of it.
    pub text: String,
}

/// Something on a page, with the number of its line from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its line.
    pub line: usize,
    /// What stands there.
    pub text: String,
}

/// A fenced block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The line of its first line of text.
    pub line: usize,
    /// What follows the fence, `console` or `toml` and the like.
    pub language: String,
    /// The text between the fences.
    pub text: String,
}

/// Every page: the ones at the top, all of `docs/` and of `deploy/`.
pub fn pages() -> Vec<Page> {
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root().join(name));
    let mut paths: Vec<PathBuf> = top.to_vec();
    paths.extend(files("docs", "md"));
    if root().join("deploy").exists() {
        paths.extend(files("deploy", "md"));
    }
    paths.into_iter().map(|path| Page::read(&relative(&path))).collect()
}

impl Page {
    /// Reads a page by its path in the repository.
    ///
    /// # Panics
    /// If there is none.
    pub fn read(path: &str) -> Self {
        let text = std::fs::read_to_string(root().join(path));
        Self { path: path.to_owned(), text: text.unwrap_or_else(|e| panic!("{path}: {e}")) }
    }

    /// `path:line`, to find it by.
    pub fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path)
    }

    /// The fenced blocks.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for (index, line) in self.text.lines().enumerate() {
            match (line.trim_start().strip_prefix("```"), &mut open) {
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(language), None) => {
                    let language = language.trim().to_owned();
                    open = Some(Block { line: index + 2, language, text: String::new() });
                }
                (None, Some(block)) => {
                    block.text += line;
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a fence is not closed", self.path);
        blocks
    }

    /// The lines outside fenced blocks; those inside are empty.
    fn prose(&self) -> Vec<&str> {
        let mut inside = false;
        let mut keep = |line: &'_ str| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !fence && !inside
        };
        self.text.lines().map(|line| if keep(line) { line } else { "" }).collect()
    }

    /// Inline code, also where it goes over the end of a line.
    pub fn spans(&self) -> Vec<Found> {
        self.split().0
    }

    /// Inline code, and the prose around it with the code blanked.
    fn split(&self) -> (Vec<Found>, String) {
        let text = self.prose().join("\n");
        let (mut spans, mut rest) = (Vec::new(), String::new());
        let mut line = 1;
        let mut parts = text.split('`');
        rest += parts.next().unwrap_or_default();
        line += rest.matches('\n').count();
        while let Some(code) = parts.next() {
            assert!(!code.contains("\n\n"), "{}: a backtick is not closed", self.at(line));
            let code_line = line;
            line += code.matches('\n').count();
            let text = code.split_whitespace().collect::<Vec<_>>().join(" ");
            spans.push(Found { line: code_line, text });
            rest += &"\n".repeat(code.matches('\n').count());
            let between =
                parts.next().unwrap_or_else(|| panic!("{}: an odd backtick", self.at(code_line)));
            line += between.matches('\n').count();
            rest += between;
        }
        (spans, rest)
    }

    /// Targets of links.
    pub fn links(&self) -> Vec<Found> {
        let prose = self.split().1;
        let mut links = Vec::new();
        for (start, _) in prose.match_indices("](") {
            let line = 1 + prose[..start].matches('\n').count();
            let target = &prose[start + 2..];
            let end = target.find(')').unwrap_or_else(|| panic!("{}: a link", self.at(line)));
            links.push(Found { line, text: target[..end].trim().to_owned() });
        }
        links
    }

    /// Anchors of headings, made as GitHub makes them.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut seen = BTreeMap::<String, usize>::new();
        let mut anchors = BTreeSet::new();
        for line in self.prose() {
            let level = line.bytes().take_while(|b| *b == b'#').count();
            let Some(title) = line.get(level..).filter(|_| (1..=6).contains(&level)) else {
                continue;
            };
            let Some(title) = title.strip_prefix(' ') else { continue };
            let anchor = slug(title.trim());
            let before = seen.entry(anchor.clone()).or_default();
            anchors.insert(match *before {
                0 => anchor,
                n => format!("{anchor}-{n}"),
            });
            *before += 1;
        }
        anchors
    }

    /// The rows of all tables, each as its cells; rulers and headings are not told apart from rows
    /// by anything but their text.
    pub fn rows(&self) -> Vec<(usize, Vec<String>)> {
        let mut rows = Vec::new();
        for (index, line) in self.prose().iter().enumerate() {
            let line = line.trim();
            let Some(inner) = line.strip_prefix('|').and_then(|l| l.strip_suffix('|')) else {
                continue;
            };
            rows.push((index + 1, inner.split('|').map(|cell| cell.trim().to_owned()).collect()));
        }
        rows
    }
}

/// What is between backticks in a cell or a sentence.
pub fn code_in(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn slug(title: &str) -> String {
    let kept = title.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(text: &str) -> Page {
        Page { path: "x.md".into(), text: text.into() }
    }

    fn found(line: usize, text: &str) -> Found {
        Found { line, text: text.into() }
    }

    #[test]
    fn code_is_told_from_prose() {
        let page =
            page("a `b` [c](d.md) `[no](e)`\n```toml\n[n](o)\n`\n```\n`two\nlines` [f](#g)\n");
        let block = Block { line: 3, language: "toml".into(), text: "[n](o)\n`\n".into() };
        assert_eq!(page.blocks(), [block]);
        assert_eq!(page.spans(), [found(1, "b"), found(1, "[no](e)"), found(6, "two lines")]);
        assert_eq!(page.links(), [found(1, "d.md"), found(7, "#g")]);
    }

    #[test]
    fn headings_have_anchors() {
        let page = page("# A `b` c: d!\n## Same\n### Same\n#hashtag\n```\n# no\n```\n");
        let anchors: Vec<_> = page.anchors().into_iter().collect();
        assert_eq!(anchors, ["a-b-c-d", "same", "same-1"]);
    }

    #[test]
    fn tables_have_rows() {
        let page = page("| a | `b`, `c` |\n| --- | --- |\ntext | no\n");
        let rows = page.rows();
        assert_eq!(rows[0], (1, vec!["a".into(), "`b`, `c`".into()]));
        assert_eq!(rows.len(), 2);
        assert_eq!(code_in(&rows[0].1[1]), ["b", "c"]);
    }
}
