//! Connections to the masters, and what is known of their leader.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::error::MasterError;

/// A master that moved is one of few; addresses beyond this are forgotten, oldest name first.
const MAX_CHANNELS: usize = 32;

/// Lazily opened connections, by address. tonic opens them again by itself after a failure.
#[derive(Debug)]
pub(crate) struct Pool {
    masters: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    channels: BTreeMap<String, Channel>,
    leader: Option<String>,
    /// The configured master that is asked next if no leader is known.
    turn: usize,
}

impl Pool {
    pub(crate) fn new(masters: Vec<String>) -> Self {
        Self { masters, state: Mutex::default() }
    }

    pub(crate) fn masters(&self) -> &[String] {
        &self.masters
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every update leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The address to ask: the leader, or the masters in turn.
    pub(crate) fn target(&self) -> Result<String, MasterError> {
        if self.masters.is_empty() {
            return Err(MasterError::NoMasters);
        }
        let mut state = self.state();
        if let Some(leader) = &state.leader {
            return Ok(leader.clone());
        }
        let addr = self.masters[state.turn % self.masters.len()].clone();
        state.turn = (state.turn + 1) % self.masters.len();
        Ok(addr)
    }

    /// The leader as last heard.
    pub(crate) fn leader(&self) -> Option<String> {
        self.state().leader.clone()
    }

    /// `addr` answered as leader, or was named as leader.
    pub(crate) fn set_leader(&self, addr: &str) {
        self.state().leader = Some(addr.to_owned());
    }

    /// `addr` failed, or says that it does not lead.
    pub(crate) fn not_leader(&self, addr: &str) {
        let mut state = self.state();
        if state.leader.as_deref() == Some(addr) {
            state.leader = None;
        }
    }

    /// The connection to `addr`.
    pub(crate) fn channel(&self, addr: &str) -> Result<Channel, MasterError> {
        let mut state = self.state();
        if let Some(channel) = state.channels.get(addr) {
            return Ok(channel.clone());
        }
        let channel = endpoint(addr)?.connect_lazy();
        if state.channels.len() >= MAX_CHANNELS {
            state.channels.pop_first();
        }
        state.channels.insert(addr.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// A partition leaves a connection open that carries nothing; the keepalive ends it, so that
/// calls fail over and the connection is made anew once the network is whole. An attempt
/// (`ATTEMPT`) on a connection that was well when it began gives up before that: which of both is first is
/// told in different words, and must be no chance.
fn endpoint(addr: &str) -> Result<Endpoint, MasterError> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|source| MasterError::BadAddress { addr: addr.to_owned(), source })?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20))
}
