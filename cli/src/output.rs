//! What the tool writes to its standard output: tables for people, JSON or YAML for programs.

use std::io::{self, Write};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns and sentences for people.
    #[default]
    Table,
    /// One JSON document; fields are only ever added.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Writes results in the format that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    format: Format,
}

impl Output {
    /// Results in `format`.
    pub fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether a person reads: notes beside the result are welcome then.
    pub fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// The result as text, as [`show`](Self::show) writes it.
    pub fn render<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<String> {
        let mut text = match self.format {
            Format::Table => table(value),
            Format::Json => serde_json::to_string_pretty(value).context("writing JSON")?,
            Format::Yaml => serde_yaml_ng::to_string(value).context("writing YAML")?,
        };
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        Ok(text)
    }

    /// Writes one result: `table` makes the text for people, the other formats follow `value`.
    pub fn show<T: Serialize>(
        &self,
        value: &T,
        table: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        write_out(&self.render(value, table)?)
    }

    /// Writes one item of a stream of results: a line for people, one JSON document per line, or
    /// a YAML document.
    pub fn item<T: Serialize>(
        &self,
        value: &T,
        line: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => line(value) + "\n",
            Format::Json => serde_json::to_string(value).context("writing JSON")? + "\n",
            Format::Yaml => {
                format!("---\n{}", serde_yaml_ng::to_string(value).context("writing YAML")?)
            }
        };
        write_out(&text)
    }

    /// A sentence for people; nothing in the other formats.
    pub fn note(&self, text: &str) -> anyhow::Result<()> {
        if self.is_table() { write_out(&format!("{text}\n")) } else { Ok(()) }
    }
}

/// The reader of a pipe may go away (`sbkctl volume list | head -1`). That ends the output, not
/// in an error.
pub(crate) fn write_out(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to standard output"),
    }
}

/// A table with a header and no frame, wrapped to the terminal.
pub fn table<R, C>(header: &[&str], rows: R) -> String
where
    R: IntoIterator<Item = C>,
    C: IntoIterator<Item = String>,
{
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|h| h.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// `key: value` lines, aligned.
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    rows.iter().map(|(key, value)| format!("{:<width$} {value}\n", format!("{key}:"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Thing {
        name: String,
        size: Option<u64>,
    }

    fn thing() -> Thing {
        Thing { name: "a".into(), size: None }
    }

    #[test]
    fn programs_get_documents() {
        let never = |_: &Thing| unreachable!("no table for programs");
        let json = Output::new(Format::Json).render(&thing(), never).expect("json");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).expect("parses"),
            serde_json::json!({"name": "a", "size": null})
        );
        let yaml = Output::new(Format::Yaml).render(&thing(), never).expect("yaml");
        assert_eq!(yaml, "name: a\nsize: null\n");
    }

    #[test]
    fn people_get_tables() {
        let text = table(
            &["name", "size"],
            [
                vec!["a".to_owned(), "1 GiB".to_owned()],
                vec!["longer".to_owned(), "4 KiB".to_owned()],
            ],
        );
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].starts_with("NAME"), "{text}");
        assert_eq!(lines[0].find("SIZE"), lines[2].find("4 KiB"), "{text}");
    }

    #[test]
    fn pairs_are_aligned() {
        assert_eq!(pairs(&[("a", "1".into()), ("long", "2".into())]), "a:    1\nlong: 2\n");
    }
}
