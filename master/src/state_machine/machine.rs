//! The value that Raft replicates.

use std::collections::BTreeMap;

use openraft::EntryPayload;
use sbk_engine::authority::history::{History, Note};
use sbk_engine::authority::{Accepted, Command, Response, State};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::raft::{Entry, LogId, MemberId, StoredMembership};

/// What a log entry carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proposal {
    /// A command of the authority.
    Authority(Command),
    /// The same, with the time and the reason.
    Explained {
        /// What is proposed.
        command: Command,
        /// When and why.
        note: Note,
    },
    /// A member took part with this data directory. The first one stands: a member that comes
    /// with another directory has lost its vote and its log.
    Member {
        /// The member.
        member: MemberId,
        /// Drawn when its data directory was made.
        instance: Uuid,
    },
}

/// What applying an entry answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To a command of the authority, or to an entry without one.
    Authority(Box<Response>),
    /// To [`Proposal::Member`]: the directory that stands.
    Member(Uuid),
}

/// The replicated value, and how far the log is in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    /// The last entry in it.
    pub last: Option<LogId>,
    /// The quorum's members as of that entry.
    pub membership: StoredMembership,
    /// Volumes, nodes, configurations.
    pub authority: State,
    /// The data directory of each member that took part.
    pub instances: BTreeMap<MemberId, Uuid>,
    /// How the volumes came to their configurations, for people.
    #[serde(default)]
    pub history: History,
}

impl Applied {
    /// Takes one committed entry in.
    pub(crate) fn apply(&mut self, entry: Entry) -> Answer {
        self.last = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => Answer::nothing(),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Answer::nothing()
            }
            EntryPayload::Normal(Proposal::Authority(command)) => {
                self.command(&command, &Note::default())
            }
            EntryPayload::Normal(Proposal::Explained { command, note }) => {
                self.command(&command, &note)
            }
            EntryPayload::Normal(Proposal::Member { member, instance }) => {
                Answer::Member(*self.instances.entry(member).or_insert(instance))
            }
        }
    }
}

impl Applied {
    fn command(&mut self, command: &Command, note: &Note) -> Answer {
        let before = self.authority.revision();
        let response = self.authority.apply(command);
        self.history.note(&self.authority, before, note);
        Answer::Authority(Box::new(response))
    }
}

impl Answer {
    fn nothing() -> Self {
        Answer::Authority(Box::new(Ok(Accepted::Nothing)))
    }
}
