//! A case: events with what each must give.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sbk_engine::recording::Tenure;
use sbk_engine::recovery::{Command, Event, Params, Verdict, VolumeState, step};
use sbk_engine::types::{Millis, ReplicaId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::flow::{flow, scalar};
use crate::names;

/// One case, read and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// What it shows, in one line.
    pub name: String,
    /// Why it has to be so.
    pub why: Option<String>,
    /// The engine's parameters.
    pub params: Params,
    /// What the engine knows before the first step; `None`: nothing. For cases from a recording
    /// that began in the middle.
    pub state: Option<VolumeState>,
    /// In order.
    pub steps: Vec<Step>,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// When it reaches the engine.
    pub at: Millis,
    /// What it is about, for people.
    pub note: Option<String>,
    /// The event.
    pub event: Event,
    /// What it must give; `None` in a draft that was not recorded yet.
    pub expected: Option<Expected>,
    /// What an operator must see after it: per replica the fields that matter, or `null` if the
    /// replica is unknown.
    pub view: BTreeMap<ReplicaId, Value>,
}

/// What an event must give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What becomes of it.
    pub verdict: Verdict,
    /// All there is to do, in order.
    pub commands: Vec<Command>,
}

/// Why a file is no case.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// The file or directory can't be read.
    #[error("can't read {path}: check that it exists and may be read")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is not the YAML that a case is made of.
    #[error("{path}, document {document}: not a case; docs/conformance.md shows one")]
    Yaml {
        /// Which file.
        path: PathBuf,
        /// Which of its documents, from 1.
        document: usize,
        /// The parser's reason, with the line.
        source: serde_yaml_ng::Error,
    },
    /// A step makes no sense.
    #[error("{path}, case `{case}`, step {step}: {what}")]
    Step {
        /// Which file.
        path: PathBuf,
        /// Which case.
        case: String,
        /// Which step, from 1; 0 for the case as a whole.
        step: usize,
        /// What is wrong, in words.
        what: String,
    },
    /// There is nothing to run.
    #[error("{path} holds no case: a case is a YAML document in a file that ends in .yaml")]
    Nothing {
        /// Where none was found.
        path: PathBuf,
    },
}

/// A case as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    case: String,
    why: Option<String>,
    #[serde(default)]
    params: Params,
    state: Option<serde_yaml_ng::Value>,
    steps: Vec<RawStep>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    at: Option<u64>,
    note: Option<String>,
    event: serde_yaml_ng::Value,
    verdict: Option<serde_yaml_ng::Value>,
    commands: Option<Vec<serde_yaml_ng::Value>>,
    #[serde(default)]
    view: BTreeMap<String, serde_yaml_ng::Value>,
}

/// The cases of a file, or of all `.yaml` files below a directory, in the order of their paths.
pub fn load(path: &Path) -> Result<Vec<(PathBuf, Case)>, CaseError> {
    let read = |source| CaseError::Read { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(read)?.is_dir() {
        let text = std::fs::read_to_string(path).map_err(read)?;
        let cases = parse(path, &text)?;
        return Ok(cases.into_iter().map(|case| (path.to_owned(), case)).collect());
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        entries.push(entry.map_err(read)?.path());
    }
    entries.sort();
    let mut cases = Vec::new();
    for entry in entries {
        if entry.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
            cases.extend(load(&entry)?);
        } else if entry.is_dir() && !entry.is_symlink() {
            match load(&entry) {
                Ok(found) => cases.extend(found),
                Err(CaseError::Nothing { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    if cases.is_empty() {
        return Err(CaseError::Nothing { path: path.to_owned() });
    }
    Ok(cases)
}

/// The cases of a text: one a YAML document. `path` is for the messages only.
pub fn parse(path: &Path, text: &str) -> Result<Vec<Case>, CaseError> {
    let mut cases = Vec::new();
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let raw = RawCase::deserialize(document).map_err(|source| CaseError::Yaml {
            path: path.to_owned(),
            document: index + 1,
            source,
        })?;
        let name = raw.case.clone();
        let case = check(raw).map_err(|(step, what)| CaseError::Step {
            path: path.to_owned(),
            case: name,
            step,
            what,
        })?;
        cases.push(case);
    }
    if cases.is_empty() {
        return Err(CaseError::Nothing { path: path.to_owned() });
    }
    Ok(cases)
}

fn check(raw: RawCase) -> Result<Case, (usize, String)> {
    if raw.steps.is_empty() {
        return Err((0, "a case without steps shows nothing".to_owned()));
    }
    let p = &raw.params;
    let times = [p.probe_timeout_ms, p.probe_backoff_ms, p.probe_backoff_max_ms]
        .into_iter()
        .chain([p.start_timeout_ms, p.fence_retry_ms, p.command_retry_ms])
        .chain([u64::from(p.catch_up_budget)]);
    if times.min() == Some(0) {
        return Err((0, "every parameter is 1 or more".to_owned()));
    }
    let state = raw.state.map(|state| understand_plain("the engine's state", state));
    let state: Option<VolumeState> = state.transpose().map_err(|what| (0, what))?;
    if state.as_ref().is_some_and(|state| *state.params() != raw.params) {
        return Err((0, "`params` are not those in `state`".to_owned()));
    }
    let mut now = Millis(0);
    let mut steps = Vec::new();
    for (index, step) in raw.steps.into_iter().enumerate() {
        let step = check_step(step, now).map_err(|what| (index + 1, what))?;
        now = step.at;
        steps.push(step);
    }
    Ok(Case { name: raw.case, why: raw.why, params: raw.params, state, steps })
}

fn check_step(raw: RawStep, before: Millis) -> Result<Step, String> {
    let at = raw.at.map_or(before, Millis);
    if at < before {
        return Err(format!("`at: {at}` is before the step before, which was at {before}"));
    }
    let expected = match (raw.verdict, raw.commands) {
        (None, None) => None,
        (Some(verdict), Some(commands)) => {
            let commands = commands.into_iter().map(|c| understand("a command", c));
            Some(Expected {
                verdict: understand("a verdict", verdict)?,
                commands: commands.collect::<Result<_, _>>()?,
            })
        }
        (Some(_), None) => {
            return Err("`commands` is missing; write `commands: []` for none".to_owned());
        }
        (None, Some(_)) => {
            return Err("`verdict` is missing: `applied` or `{ignored: REASON}`".to_owned());
        }
    };
    let mut view = BTreeMap::new();
    for (name, fields) in raw.view {
        view.insert(names::replica(&name)?, names::expand(json(fields)?)?);
    }
    Ok(Step { at, note: raw.note, event: understand("an event", raw.event)?, expected, view })
}

fn json(value: serde_yaml_ng::Value) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

/// Reads one of the engine's own types. A key that the type doesn't have is an error, or a typing
/// mistake in an optional one would pass for its absence.
fn understand<T: DeserializeOwned + Serialize>(
    what: &str,
    value: serde_yaml_ng::Value,
) -> Result<T, String> {
    let given = json(value)?;
    let shown = flow(&given);
    let given = names::expand(given).map_err(|error| format!("{shown}: {error}"))?;
    read(what, &shown, given)
}

/// As [`understand`], for a value that stands as the engine itself writes it.
fn understand_plain<T: DeserializeOwned + Serialize>(
    what: &str,
    value: serde_yaml_ng::Value,
) -> Result<T, String> {
    let given = json(value)?;
    let shown = flow(&given);
    read(what, &shown, given)
}

fn read<T: DeserializeOwned + Serialize>(
    what: &str,
    shown: &str,
    given: Value,
) -> Result<T, String> {
    let read: T = serde_json::from_value(given.clone())
        .map_err(|error| format!("{shown} is not {what}: {error}"))?;
    let back = serde_json::to_value(&read).map_err(|error| error.to_string())?;
    match not_understood(&given, &back) {
        Some(key) => Err(format!("{shown}: {what} has no `{key}` here")),
        None => Ok(read),
    }
}

/// A key that was given but not understood.
fn not_understood(given: &Value, back: &Value) -> Option<String> {
    match (given, back) {
        (Value::Object(given), Value::Object(back)) => {
            given.iter().find_map(|(key, value)| match back.get(key) {
                None => Some(key.clone()),
                Some(known) => not_understood(value, known),
            })
        }
        (Value::Array(given), Value::Array(back)) => {
            given.iter().zip(back).find_map(|(given, back)| not_understood(given, back))
        }
        _ => None,
    }
}

/// A value of the engine's as a case writes it.
pub(crate) fn written<T: Serialize>(value: &T) -> Value {
    names::shorten(serde_json::to_value(value).expect("the engine's types are plain data"))
}

impl Case {
    /// What the engine does with these events, as a case: how a trace becomes one.
    ///
    /// `events` are in order, their times never go back. `params` are 1 or more each.
    pub fn record(
        name: impl Into<String>,
        params: Params,
        events: impl IntoIterator<Item = (Millis, Event)>,
    ) -> Self {
        let steps = events.into_iter().map(|(at, event)| Step {
            at,
            note: None,
            event,
            expected: None,
            view: BTreeMap::new(),
        });
        let (name, steps) = (name.into(), steps.collect());
        Self { name, why: None, params, state: None, steps }.recorded()
    }

    /// A primary's tenure in a recorded run as a case that expects what was done. One that began
    /// within the recording begins at 0 ms and needs no state.
    pub fn of_tenure(name: impl Into<String>, why: Option<String>, tenure: &Tenure) -> Self {
        let begins = match (&tenure.state, tenure.steps.first()) {
            (None, Some((at, ..))) => *at,
            (Some(_), _) | (None, None) => Millis(0),
        };
        let steps = tenure.steps.iter().cloned().map(|(at, event, verdict, commands)| Step {
            at: Millis(at.since(begins)),
            note: None,
            event,
            expected: Some(Expected { verdict, commands }),
            view: BTreeMap::new(),
        });
        let (params, state) = (tenure.params.clone(), tenure.state.clone());
        Self { name: name.into(), why, params, state, steps: steps.collect() }
    }

    /// The engine before the first step.
    pub(crate) fn start(&self) -> VolumeState {
        self.state.clone().unwrap_or_else(|| VolumeState::new(self.params.clone()))
    }

    /// The same events with what the engine makes of them in place of what was expected.
    pub fn recorded(&self) -> Self {
        let mut state = self.start();
        let mut case = self.clone();
        for recorded in &mut case.steps {
            let (verdict, commands) = step(&mut state, recorded.at, recorded.event.clone());
            recorded.expected = Some(Expected { verdict, commands });
            for (replica, fields) in &mut recorded.view {
                let seen = state.view(*replica).map(|view| {
                    serde_json::to_value(view).expect("the engine's types are plain data")
                });
                *fields = match (&*fields, seen) {
                    (Value::Object(wanted), Some(Value::Object(seen))) => Value::Object(
                        seen.into_iter().filter(|(key, _)| wanted.contains_key(key)).collect(),
                    ),
                    (_, seen) => seen.unwrap_or(Value::Null),
                };
            }
        }
        case
    }

    /// The case as a YAML document, which [`parse`] reads back.
    pub fn to_yaml(&self) -> String {
        let mut out = String::from("---\n");
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        line(format!("case: {}", prose(&self.name)));
        if let Some(why) = &self.why {
            line("why: |".to_owned());
            why.trim_end().lines().for_each(|text| line(format!("  {text}").trim_end().to_owned()));
        }
        if let Some(params) = self.changed_params() {
            line(format!("params: {}", flow(&params)));
        }
        if let Some(state) = &self.state {
            let state = serde_json::to_value(state).expect("the engine's types are plain data");
            line(format!("state: {}", flow(&state)));
        }
        line("steps:".to_owned());
        let mut now = Millis(0);
        for step in &self.steps {
            let at = (step.at != now).then_some(step.at);
            now = step.at;
            step.write(at, &mut line);
        }
        out
    }

    fn changed_params(&self) -> Option<Value> {
        let default = serde_json::to_value(Params::default()).ok()?;
        let Ok(Value::Object(mut mine)) = serde_json::to_value(&self.params) else { return None };
        mine.retain(|key, value| default.get(key) != Some(value));
        (!mine.is_empty()).then_some(Value::Object(mine))
    }
}

impl Step {
    fn write(&self, at: Option<Millis>, line: &mut impl FnMut(String)) {
        let mut lines = Vec::new();
        lines.extend(at.map(|at| format!("at: {at}")));
        lines.extend(self.note.as_ref().map(|note| format!("note: {}", prose(note))));
        lines.push(format!("event: {}", flow(&written(&self.event))));
        if let Some(Expected { verdict, commands }) = &self.expected {
            lines.push(format!("verdict: {}", flow(&written(verdict))));
            lines.push(format!("commands:{}", if commands.is_empty() { " []" } else { "" }));
            lines.extend(commands.iter().map(|c| format!("  - {}", flow(&written(c)))));
        }
        if !self.view.is_empty() {
            lines.push("view:".to_owned());
        }
        for (replica, fields) in &self.view {
            let mut text = String::new();
            let fields = names::shorten(fields.clone());
            let _ = write!(text, "  {}: {}", scalar(&names::short(*replica)), flow(&fields));
            lines.push(text);
        }
        for (index, text) in lines.into_iter().enumerate() {
            line(format!("  {} {text}", if index == 0 { '-' } else { ' ' }));
        }
    }
}

/// A sentence: quoted only where YAML would read it otherwise.
fn prose(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && !text.contains([':', '#', '\n', '"', '\'', '{', '}', '[', ']'])
        && text.trim() == text
        && text.contains(' ');
    if plain { text.to_owned() } else { scalar(text) }
}
