//! Ports for the processes of a development cluster.

use std::net::TcpListener;

use anyhow::{Context, bail};
use uuid::Uuid;

/// Ports are taken from below the range from which the kernel takes those of outgoing
/// connections: a process that was killed must find its port free when it comes back.
const LOWEST: u16 = 12_000;

/// Takes `count` ports of 127.0.0.1 that nobody listens on.
///
/// # Errors
/// If there are not so many.
pub(super) fn free(count: usize) -> anyhow::Result<Vec<u16>> {
    let end = ephemeral_start().max(LOWEST + 1000);
    let span = u32::from(end - LOWEST);
    // Two clusters that start at the same time look at different places.
    let offset = (Uuid::new_v4().as_u128() % u128::from(span)) as u32;
    let mut held = Vec::with_capacity(count);
    for step in 0..span {
        if held.len() == count {
            break;
        }
        let port = LOWEST + ((offset + step) % span) as u16;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            held.push((port, listener));
        }
    }
    if held.len() < count {
        bail!("only {} of {count} ports from {LOWEST} to {end} are free", held.len());
    }
    Ok(held.into_iter().map(|(port, _)| port).collect())
}

/// Where the kernel's own ports begin.
fn ephemeral_start() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let start = range.ok().and_then(|r| r.split_whitespace().next()?.parse().ok());
    start.unwrap_or(32_768)
}

/// Checks that nobody listens on `addr`.
pub(super) fn check_free(addr: &str, whose: &str) -> anyhow::Result<()> {
    TcpListener::bind(addr).map(drop).with_context(|| {
        format!(
            "{whose} was to listen on {addr}, which is in use; stop what listens there (a cluster \
             that was not stopped?), or use another --dir or --base-port"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_distinct_and_can_be_used() {
        let ports = free(20).expect("ports");
        let distinct: std::collections::BTreeSet<_> = ports.iter().collect();
        assert_eq!(distinct.len(), 20);
        assert!(ports.iter().all(|p| *p >= LOWEST));
    }

    #[test]
    fn a_port_in_use_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let addr = listener.local_addr().expect("addr").to_string();
        let error = check_free(&addr, "master 1").expect_err("in use").to_string();
        assert!(error.contains(&addr) && error.contains("master 1"), "{error}");
    }
}
