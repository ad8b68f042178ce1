//! Why a call to the masters failed.

use std::time::Duration;

use tonic::Status;

/// Why a call to the masters failed.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The masters' answer is no. Asking again changes nothing.
    #[error("{message}")]
    Refused {
        /// The stable word for programs, as in `name-taken`.
        word: String,
        /// The text for people.
        message: String,
    },
    /// Masters answer, but none of them leads a majority.
    #[error(
        "the masters have no quorum or no leader ({detail}); {}waited {}. \
         What runs goes on; start the missing masters, then try again",
        unknown(*.outcome_unknown), seconds(.waited)
    )]
    NoQuorum {
        /// The last answer of a master.
        detail: String,
        /// How long the client tried.
        waited: Duration,
        /// An attempt may have been committed.
        outcome_unknown: bool,
    },
    /// No master answers at all.
    #[error(
        "none of the masters {} can be reached ({detail}); {}waited {}. \
         Check that they run and that the addresses are right",
        .masters.join(", "), unknown(*.outcome_unknown), seconds(.waited)
    )]
    Unreachable {
        /// The addresses that were tried.
        masters: Vec<String>,
        /// The last failure.
        detail: String,
        /// How long the client tried.
        waited: Duration,
        /// An attempt may have been committed.
        outcome_unknown: bool,
    },
    /// A leader was there but did not answer in time. The call may have been done.
    #[error(
        "the masters did not answer within {} ({detail}). \
         The request may or may not have been done; asking again is safe",
        seconds(.waited)
    )]
    TimedOut {
        /// The last failure.
        detail: String,
        /// How long the client tried.
        waited: Duration,
    },
    /// An address that is none.
    #[error("'{addr}' is not an address of a master (host:port): {source}")]
    BadAddress {
        /// What was given.
        addr: String,
        /// Why it can't be used.
        source: tonic::transport::Error,
    },
    /// The client was made with no address.
    #[error("no master address is given; pass --masters host:port[,host:port...]")]
    NoMasters,
    /// Any other answer: an old or foreign server, a message over the limit, a bug.
    #[error("a master answered with an error: {0}")]
    Rpc(#[source] Box<Status>),
}

fn unknown(outcome_unknown: bool) -> &'static str {
    if outcome_unknown { "the request may or may not have been done; " } else { "" }
}

/// An error with all its causes, in one line. A cause that the text before it quotes is not told
/// twice.
pub fn in_one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn seconds(waited: &Duration) -> String {
    format!("{:.1} s", waited.as_secs_f64())
}

impl MasterError {
    /// The exit code that a command line tool ends with: 1 refused or failed, 2 usage, 3 no
    /// quorum or no leader, 4 timed out.
    pub fn exit_code(&self) -> u8 {
        match self {
            MasterError::Refused { .. } | MasterError::Rpc(_) => 1,
            MasterError::BadAddress { .. } | MasterError::NoMasters => 2,
            MasterError::NoQuorum { .. } | MasterError::Unreachable { .. } => 3,
            MasterError::TimedOut { .. } => 4,
        }
    }

    /// The refusal's word, if this is a refusal.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            MasterError::Refused { word, .. } => Some(word),
            _ => None,
        }
    }

    /// Whether the call may succeed if it is made again.
    pub fn is_transient(&self) -> bool {
        match self {
            MasterError::NoQuorum { .. }
            | MasterError::Unreachable { .. }
            | MasterError::TimedOut { .. } => true,
            MasterError::Refused { .. }
            | MasterError::BadAddress { .. }
            | MasterError::NoMasters
            | MasterError::Rpc(_) => false,
        }
    }
}
