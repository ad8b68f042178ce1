//! A recording as a text: JSON, one document a line.
//!
//! The first line says what it is and holds the state, then comes a line for each step, and the
//! last one seals what is before it with a count and a checksum. Several recordings may follow each
//! other in one text: those of a volume's replicas, say.

use serde::{Deserialize, Serialize};

use super::{Recording, Step};
use crate::replication::Replica;
use crate::types::{NodeId, ReplicaRef, VolumeId};

/// The version of the format that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// Whose recording it is and why it was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The volume.
    pub volume: VolumeId,
    /// The replica, in its run.
    pub replica: ReplicaRef,
    /// The node that it is on.
    pub node: NodeId,
    /// Why it was kept, for people.
    pub why: String,
}

/// Why a text is no recording that can be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Nothing in it.
    #[error("it is empty; `sbkctl volume explain NAME --save FILE` makes a recording")]
    Empty,
    /// Something else.
    #[error(
        "line {line} begins no recording; `sbkctl volume explain NAME --save FILE` makes a recording"
    )]
    Foreign {
        /// Which, from 1.
        line: usize,
    },
    /// Of another version.
    #[error(
        "the recording at line {line} has format {found} and this program reads {VERSION}; replay \
         it with the version that wrote it, {program}"
    )]
    OtherFormat {
        /// Its first line, from 1.
        line: usize,
        /// What it says.
        found: u32,
        /// The version of the program that wrote it.
        program: String,
    },
    /// It was cut off.
    #[error("the recording at line {line} is cut off: its last line is missing")]
    CutOff {
        /// Its first line, from 1.
        line: usize,
    },
    /// The seal does not match.
    #[error(
        "the recording at line {line} is damaged: its checksum is {found:016x} and not {sealed}"
    )]
    Damaged {
        /// Its first line, from 1.
        line: usize,
        /// What is sealed.
        sealed: String,
        /// What was computed.
        found: u64,
    },
    /// It is whole, but its state or a step can't be understood.
    #[error(
        "line {line} is no state or step of this version, {}; replay it with the version that wrote \
         it, {program}",
        env!("CARGO_PKG_VERSION")
    )]
    Unreadable {
        /// Which, from 1.
        line: usize,
        /// The version of the program that wrote it.
        program: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The steps are not numbered one after the other.
    #[error("line {line} is step {found}, and {expected} was expected")]
    Gap {
        /// Which, from 1.
        line: usize,
        /// What was to come.
        expected: u64,
        /// What came.
        found: u64,
    },
}

/// What the first line of every version begins with.
#[derive(Deserialize)]
struct Magic {
    sbk_recording: u32,
    program: String,
}

#[derive(Serialize)]
struct Head<'a> {
    sbk_recording: u32,
    program: &'a str,
    about: &'a About,
    state: &'a Replica,
}

#[derive(Deserialize)]
struct ReadHead {
    about: About,
    state: Replica,
}

#[derive(Serialize, Deserialize)]
struct Seal {
    steps: usize,
    fnv1a: String,
}

#[derive(Serialize, Deserialize)]
struct Foot {
    sealed: Seal,
}

/// FNV-1a of 64 bits: for accidents, not against anybody.
fn fnv1a(hash: u64, text: &str) -> u64 {
    text.bytes().fold(hash, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// The recording as a text that ends in a line feed.
pub fn write(about: &About, recording: &Recording) -> String {
    let head = Head {
        sbk_recording: VERSION,
        program: env!("CARGO_PKG_VERSION"),
        about,
        state: &recording.state,
    };
    let mut text = line(&head);
    recording.steps.iter().for_each(|step| text.push_str(&line(step)));
    let fnv1a = format!("{:016x}", fnv1a(FNV_START, &text));
    let sealed = Seal { steps: recording.steps.len(), fnv1a };
    text + &line(&Foot { sealed })
}

fn line<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("the engine's types are plain data") + "\n"
}

/// The recordings in a text.
///
/// # Errors
/// It is none, is damaged, or another version wrote it.
pub fn read(text: &str) -> Result<Vec<(About, Recording)>, FileError> {
    let mut lines = text.split_inclusive('\n').enumerate();
    let mut recordings = Vec::new();
    while let Some((index, head)) = lines.next() {
        let line = index + 1;
        let magic: Magic =
            serde_json::from_str(head).map_err(|_not_json| FileError::Foreign { line })?;
        if magic.sbk_recording != VERSION {
            let (found, program) = (magic.sbk_recording, magic.program);
            return Err(FileError::OtherFormat { line, found, program });
        }
        let mut body = vec![(line, head)];
        let mut sum = fnv1a(FNV_START, head);
        let seal = loop {
            let (index, text) = lines.next().ok_or(FileError::CutOff { line })?;
            // No step begins so; a line without its end was cut off.
            if text.starts_with("{\"sealed\":")
                && text.ends_with('\n')
                && let Ok(Foot { sealed }) = serde_json::from_str(text)
            {
                break sealed;
            }
            sum = fnv1a(sum, text);
            body.push((index + 1, text));
        };
        if seal.fnv1a != format!("{sum:016x}") || seal.steps + 1 != body.len() {
            return Err(FileError::Damaged { line, sealed: seal.fnv1a, found: sum });
        }
        recordings.push(understand(&body, &magic.program)?);
    }
    if recordings.is_empty() { Err(FileError::Empty) } else { Ok(recordings) }
}

/// What lines say that were found whole.
fn understand(body: &[(usize, &str)], program: &str) -> Result<(About, Recording), FileError> {
    let unreadable = |line: usize| {
        let program = program.to_owned();
        move |source| FileError::Unreadable { line, program, source }
    };
    let (line, head) = body[0];
    let ReadHead { about, state } = serde_json::from_str(head).map_err(unreadable(line))?;
    let mut steps: Vec<Step> = Vec::with_capacity(body.len() - 1);
    for (line, text) in &body[1..] {
        let step: Step = serde_json::from_str(text).map_err(unreadable(*line))?;
        let expected = steps.last().map_or(step.number, |last| last.number + 1);
        if step.number != expected {
            return Err(FileError::Gap { line: *line, expected, found: step.number });
        }
        steps.push(step);
    }
    Ok((about, Recording { state, steps }))
}
