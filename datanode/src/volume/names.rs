//! Stable names of inputs and outputs, for the counters.

use sbk_engine::replication::IgnoredReason;
use sbk_engine::replication::io::{Input, Output};
use sbk_engine::replication::message::{ToPrimary, ToReplica};

pub(super) fn input(input: &Input) -> &'static str {
    match input {
        Input::Assignment(_) => "assignment",
        Input::Wish(_) => "wish",
        Input::Resign => "resign",
        Input::Deleted => "deleted",
        Input::FromPrimary { message, .. } => match message {
            ToReplica::Probe { .. } => "probe",
            ToReplica::Fence { .. } => "fence",
            ToReplica::Cut { .. } => "cut",
            ToReplica::Fetch { .. } => "fetch",
            ToReplica::ReadBlocks { .. } => "read_blocks",
            ToReplica::Append(_) => "append",
            ToReplica::BeginRebuild { .. } => "begin_rebuild",
            ToReplica::Close { .. } => "close",
        },
        Input::FromReplica { message, .. } => match message {
            ToPrimary::Alive { .. } => "alive",
            ToPrimary::Facts { .. } => "facts",
            ToPrimary::CutDone { .. } => "cut_done",
            ToPrimary::Entries { .. } => "entries",
            ToPrimary::Blocks { .. } => "blocks",
            ToPrimary::Ack { .. } => "ack",
            ToPrimary::Gap { .. } => "gap",
            ToPrimary::RebuildStarted { .. } => "rebuild_started",
            ToPrimary::Closed { .. } => "closed",
            ToPrimary::SessionFailed { .. } => "session_failed",
            ToPrimary::Refused { .. } => "refused",
        },
        Input::Unreachable { .. } => "unreachable",
        Input::FeedFailed { .. } => "feed_failed",
        Input::BaseProgress { .. } => "base_progress",
        Input::BaseSent { .. } => "base_sent",
        Input::BaseFailed { .. } => "base_failed",
        Input::Durable { .. } => "durable",
        Input::Written { .. } => "written",
        Input::Stand { .. } => "stand",
        Input::Checkpointed { .. } => "checkpointed",
        Input::StoreFailed { .. } => "store_failed",
        Input::Answered { .. } => "answered",
        Input::OpenStream(_) => "open_stream",
        Input::CloseStream { .. } => "close_stream",
        Input::Request { .. } => "request",
        Input::ReadDone { .. } => "read_done",
        Input::Rotten { .. } => "rotten",
        Input::DataFound { .. } => "data_found",
        Input::Scrub { .. } => "scrub",
        Input::Space(_) => "space",
        Input::HolesFound { .. } => "holes_found",
        Input::Tick => "tick",
    }
}

pub(super) fn output(output: &Output) -> &'static str {
    match output {
        Output::Persist(_) => "persist",
        Output::Cut { .. } => "cut",
        Output::Wipe { .. } => "wipe",
        Output::FinishRebuild { .. } => "finish_rebuild",
        Output::Append { .. } => "append",
        Output::FindData { .. } => "find_data",
        Output::LookForHoles { .. } => "look_for_holes",
        Output::Committed(_) => "committed",
        Output::Checkpoint { .. } => "checkpoint",
        Output::Pin { .. } => "pin",
        Output::Unpin { .. } => "unpin",
        Output::Read { .. } => "read",
        Output::ToReplica { .. } => "to_replica",
        Output::SendEntries { .. } => "send_entries",
        Output::ResetFeed { .. } => "reset_feed",
        Output::ToPrimary { .. } => "to_primary",
        Output::StartBase { .. } => "start_base",
        Output::StopBase { .. } => "stop_base",
        Output::SendFetched { .. } => "send_fetched",
        Output::SendBlocks { .. } => "send_blocks",
        Output::Scrubbed { .. } => "scrubbed",
        Output::Propose(_) => "propose",
        Output::StreamOpened { .. } => "stream_opened",
        Output::StreamEnded { .. } => "stream_ended",
        Output::Answer { .. } => "answer",
        Output::Trace(_) => "trace",
    }
}

pub(super) fn ignored(reason: IgnoredReason) -> &'static str {
    match reason {
        IgnoredReason::WrongReplica => "wrong_replica",
        IgnoredReason::Stood => "stood",
        IgnoredReason::StaleIncarnation => "stale_incarnation",
        IgnoredReason::StaleEpoch => "stale_epoch",
        IgnoredReason::KnownConfig => "known_config",
        IgnoredReason::OtherIncarnation => "other_incarnation",
        IgnoredReason::NotThePrimary => "not_the_primary",
        IgnoredReason::NotReconciled => "not_reconciled",
        IgnoredReason::Incomplete => "incomplete",
        IgnoredReason::ListedInSync => "listed_in_sync",
        IgnoredReason::CutBelowCommitted => "cut_below_committed",
        IgnoredReason::LateCopy => "late_copy",
        IgnoredReason::UnknownReplica => "unknown_replica",
        IgnoredReason::UnknownSession => "unknown_session",
        IgnoredReason::UnknownStream => "unknown_stream",
        IgnoredReason::Malformed => "malformed",
        IgnoredReason::WrongRole => "wrong_role",
        IgnoredReason::OldGeneration => "old_generation",
        IgnoredReason::Stopped => "stopped",
    }
}
