//! Ports of this machine for processes that are killed and come back: those of a development cluster, and
//! those that tests start.
//!
//! A port that the kernel gave and that was closed again is nobody's: the next connection that goes
//! out, of any process, may get it, and then the process it was meant for can't listen. So ports are
//! taken from below the kernel's range, and reserved among those who ask here.

use std::collections::BTreeMap;
use std::net::{TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, bail};
use uuid::Uuid;

/// Ports are taken from below the range from which the kernel takes those of outgoing
/// connections: a process that was killed must find its port free when it comes back.
const LOWEST: u16 = 12_000;

/// Ports that are kept as long as this lives: those of a process that was killed too, and those of one
/// that is about to be started. Another cluster that looks for free ports at that time leaves them
/// alone, for the UDP ports of the same numbers, which nothing here uses, are taken. The kernel frees
/// them with this process, whatever way it ends.
#[derive(Debug, Default)]
pub struct Reserved(BTreeMap<u16, UdpSocket>);

impl Reserved {
    /// Takes `count` ports of 127.0.0.1 that nobody listens on and nobody has reserved.
    ///
    /// # Errors
    /// If there are not so many.
    pub fn free(&mut self, count: usize) -> anyhow::Result<Vec<u16>> {
        let end = ephemeral_start().max(LOWEST + 1000);
        let span = u32::from(end - LOWEST);
        // Two clusters that start at the same time look at different places.
        let offset = (Uuid::new_v4().as_u128() % u128::from(span)) as u32;
        let mut found = Vec::with_capacity(count);
        for step in 0..span {
            if found.len() == count {
                break;
            }
            let port = LOWEST + ((offset + step) % span) as u16;
            if let Ok(reservation) = UdpSocket::bind(("127.0.0.1", port))
                && TcpListener::bind(("127.0.0.1", port)).is_ok()
            {
                self.0.insert(port, reservation);
                found.push(port);
            }
        }
        if found.len() < count {
            bail!("only {} of {count} ports from {LOWEST} to {end} are free", found.len());
        }
        Ok(found)
    }

    /// Reserves `addr`, which was chosen before.
    ///
    /// # Errors
    /// If somebody listens on it.
    pub fn take(&mut self, addr: &str, whose: &str) -> anyhow::Result<()> {
        let listener = TcpListener::bind(addr).with_context(|| {
            format!(
                "{whose} was to listen on {addr}, which is in use; stop what listens there (a \
                 cluster that was not stopped?), or use another --dir or --base-port"
            )
        })?;
        let at = listener.local_addr().context("asking for a listener's address")?;
        // Somebody may use the UDP port for what it is: that is in nobody's way.
        if !self.0.contains_key(&at.port())
            && let Ok(reservation) = UdpSocket::bind(at)
        {
            self.0.insert(at.port(), reservation);
        }
        Ok(())
    }
}

/// Takes `count` ports that this process keeps until it ends: what tests start listens on them.
///
/// # Panics
/// If there are not so many.
#[must_use]
pub fn kept(count: usize) -> Vec<u16> {
    static KEPT: Mutex<Option<Reserved>> = Mutex::new(None);
    let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    match kept.get_or_insert_default().free(count) {
        Ok(ports) => ports,
        Err(error) => panic!("{error:#}"),
    }
}

/// Where the kernel's own ports begin.
fn ephemeral_start() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let start = range.ok().and_then(|r| r.split_whitespace().next()?.parse().ok());
    start.unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_distinct_can_be_used_and_are_given_once() {
        let mut reserved = Reserved::default();
        let ports = reserved.free(20).expect("ports");
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 20);
        for port in &ports {
            assert!(*port >= LOWEST);
            reserved.take(&format!("127.0.0.1:{port}"), "master 1").expect("nobody listens yet");
            // What another cluster asks first.
            UdpSocket::bind(("127.0.0.1", *port)).expect_err("is reserved");
        }
        drop(reserved);
        UdpSocket::bind(("127.0.0.1", ports[0])).expect("is free again");
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr").to_string();
        let error = Reserved::default().take(&addr, "master 1").expect_err("in use").to_string();
        assert!(error.contains(&addr) && error.contains("master 1"), "{error}");
    }
}
