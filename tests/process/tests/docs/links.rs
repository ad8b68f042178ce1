//! Links, anchors, and words that have no place in documentation.

use std::path::{Component, Path, PathBuf};

use sbk_process_tests::markdown::{Page, pages};
use sbk_process_tests::root;

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    let mut followed = 0;
    for page in pages() {
        for link in page.links() {
            if link.text.contains("://") || link.text.starts_with("mailto:") {
                continue;
            }
            followed += 1;
            if let Some(problem) = problem(&page, &link.text) {
                wrong.push(format!("{}: {}: {problem}", page.at(link.line), link.text));
            }
        }
    }
    assert!(followed > 0, "no link was found at all");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn problem(page: &Page, target: &str) -> Option<String> {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (target, None),
    };
    let path = match path {
        "" => PathBuf::from(&page.path),
        path => resolve(Path::new(&page.path).parent()?, path),
    };
    if !root().join(&path).exists() {
        return Some(format!("there is no {}", path.display()));
    }
    let anchor = anchor?;
    let anchors = Page::read(path.to_str()?).anchors();
    (!anchors.contains(anchor)).then(|| format!("no heading is #{anchor}; there are {anchors:?}"))
}

/// `path` as seen from `dir`, without `..` in it.
fn resolve(dir: &Path, path: &str) -> PathBuf {
    let mut found = PathBuf::new();
    for part in dir.join(path).components() {
        match part {
            Component::ParentDir => {
                found.pop();
            }
            Component::CurDir => {}
            part => found.push(part),
        }
    }
    found
}

#[test]
fn the_readme_leads_to_every_page() {
    let pages = pages();
    let mut reached = vec!["README.md".to_owned()];
    let mut next = 0;
    while let Some(path) = reached.get(next).cloned() {
        next += 1;
        let page = Page::read(&path);
        for link in page.links().iter().filter(|link| !link.text.contains("://")) {
            let target = link.text.split('#').next().unwrap_or_default();
            let path = resolve(Path::new(&page.path).parent().expect("a file"), target);
            let path = path.to_str().expect("UTF-8").to_owned();
            // A link to a folder leads to all that is in it.
            let pages = pages.iter().map(|page| &page.path);
            let meant = pages.filter(|p| **p == path || p.starts_with(&format!("{path}/")));
            let new: Vec<_> = meant.filter(|p| !reached.contains(p)).cloned().collect();
            reached.extend(new);
        }
    }
    let lost: Vec<_> = pages.iter().map(|p| &p.path).filter(|p| !reached.contains(p)).collect();
    assert!(lost.is_empty(), "no link leads to {lost:?}");
}

#[test]
fn nothing_is_left_to_be_written() {
    let mut wrong = Vec::new();
    for page in pages() {
        for (index, line) in page.text.lines().enumerate() {
            let words = line.split(|c: char| !c.is_alphanumeric());
            let left =
                words.filter(|w| ["TODO", "FIXME", "XXX", "TBD", "HACK"].contains(w)).count();
            if left > 0 || line.to_lowercase().contains("coming soon") {
                wrong.push(format!("{}: {line}", page.at(index + 1)));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Files and folders of the repository that are named in code.
#[test]
fn paths_that_are_mentioned_exist() {
    let folders: Vec<String> = std::fs::read_dir(root())
        .expect("the repository")
        .filter_map(|entry| entry.ok().filter(|e| e.path().is_dir()))
        .map(|entry| format!("{}/", entry.file_name().to_string_lossy()))
        .filter(|name| name != "target/" && !name.starts_with('.'))
        .collect();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in pages() {
        for span in page.spans() {
            let path = span.text.split([' ', ':']).next().unwrap_or_default();
            if !folders.iter().any(|folder| path.starts_with(folder)) {
                continue;
            }
            seen += 1;
            if !root().join(path).exists() {
                wrong.push(format!("{}: {path}", page.at(span.line)));
            }
        }
    }
    assert!(seen > 20, "only {seen} paths were found");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
