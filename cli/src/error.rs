//! How failures end the process.

use sbk_master_client::MasterError;

use crate::wait::TimedOut;

/// The command was called wrongly. Exit code 2, as for what the argument parser finds.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The masters answer, but can't decide. Exit code 3.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoQuorum(pub String);

/// The exit code for an error: 1 refused or failed, 2 usage, 3 no quorum or no leader, 4 timed out
/// waiting. The cause decides, wherever in the chain it stands.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(master) = cause.downcast_ref::<MasterError>() {
            return master.exit_code();
        }
        if cause.is::<NoQuorum>() {
            return 3;
        }
        if cause.is::<TimedOut>() {
            return 4;
        }
        if cause.is::<Usage>() {
            return 2;
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::Context;

    use super::*;

    #[test]
    fn the_cause_decides_the_exit_code() {
        let no_quorum: anyhow::Error = MasterError::NoQuorum {
            detail: "1 of 3".into(),
            waited: Duration::from_secs(1),
            outcome_unknown: false,
        }
        .into();
        assert_eq!(exit_code(&no_quorum.context("creating a volume")), 3);
        let refused: anyhow::Error =
            MasterError::Refused { word: "name-taken".into(), message: "taken".into() }.into();
        assert_eq!(exit_code(&refused), 1);
        let late: anyhow::Error =
            TimedOut { what: "w".into(), seen: "s".into(), waited: Duration::ZERO }.into();
        assert_eq!(exit_code(&late.context("creating a volume")), 4);
        assert_eq!(exit_code(&NoQuorum("none".into()).into()), 3);
        let usage: Result<(), _> = Err(Usage("wrong".into()));
        assert_eq!(exit_code(&usage.context("x").expect_err("usage")), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("anything else")), 1);
    }
}
