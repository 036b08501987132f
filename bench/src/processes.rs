//! What the brokers and this process cost: processor time and memory, from `/proc`.
//!
//! Owns: finding the brokers' processes and reading their counters. Never: fails a measurement because it cannot see them.

use std::collections::{BTreeSet, HashSet};
use std::fs;

use highwater_client::Client;
use serde::Serialize;

/// The brokers' processes on this machine.
#[derive(Debug)]
pub(crate) struct Processes {
    pids: Vec<u32>,
}

/// A process at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    pub(crate) pid: u32,
    /// User and system time since it began.
    pub(crate) cpu_seconds: f64,
    /// Resident memory, mapped files included.
    pub(crate) rss_bytes: u64,
    /// Resident memory that is its own: not pages of mapped files, which the system takes back when it needs them.
    pub(crate) rss_anonymous_bytes: u64,
}

impl Processes {
    /// Those given, else those that listen on the cluster's ports on this machine.
    pub(crate) async fn find(client: &Client, given: &[u32]) -> Self {
        if !given.is_empty() {
            return Self { pids: given.to_vec() };
        }
        let nodes = client.admin().metadata(&[]).await.map(|metadata| metadata.nodes);
        let ports: HashSet<u16> =
            nodes.unwrap_or_default().iter().filter_map(|node| local_port(&node.address)).collect();
        let inodes = listening_inodes(&ports);
        let pids: BTreeSet<u32> = if inodes.is_empty() { BTreeSet::new() } else { owners(&inodes) };
        Self { pids: pids.into_iter().collect() }
    }

    /// Those given.
    #[cfg(feature = "compare")]
    pub(crate) fn of(pids: &[u32]) -> Self {
        Self { pids: pids.to_vec() }
    }

    /// Their counters now; processes that are gone or hidden are left out.
    pub(crate) fn sample(&self) -> Vec<Sample> {
        self.pids.iter().filter_map(|pid| sample(*pid)).collect()
    }
}

/// Processor time of this process so far.
pub(crate) fn own_cpu_seconds() -> f64 {
    sample(std::process::id()).map_or(0.0, |sample| sample.cpu_seconds)
}

fn local_port(address: &str) -> Option<u16> {
    let (host, port) = address.rsplit_once(':')?;
    let local = host == "localhost" || host == "[::1]" || host.starts_with("127.");
    port.parse().ok().filter(|_| local)
}

/// Inodes of the sockets that listen on these ports.
fn listening_inodes(ports: &HashSet<u16>) -> HashSet<u64> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let text: String = tables.iter().filter_map(|table| fs::read_to_string(table).ok()).collect();
    text.lines().filter_map(|line| listening_inode(line, ports)).collect()
}

fn listening_inode(line: &str, ports: &HashSet<u16>) -> Option<u64> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    (ports.contains(&port) && *fields.get(3)? == LISTEN).then(|| fields.get(9)?.parse().ok())?
}

/// Processes that hold one of these sockets.
fn owners(inodes: &HashSet<u64>) -> BTreeSet<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return BTreeSet::new() };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
            files.filter_map(Result::ok).any(|file| {
                let target = fs::read_link(file.path()).unwrap_or_default();
                let inode = target.to_str().and_then(|text| {
                    text.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
                });
                inode.is_some_and(|inode| inodes.contains(&inode))
            })
        })
        .collect()
}

fn sample(pid: u32) -> Option<Sample> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    Some(Sample {
        pid,
        cpu_seconds: cpu_ticks(&stat)? as f64 / ticks_per_second,
        rss_bytes: status_bytes(&status, "VmRSS:").unwrap_or(0),
        rss_anonymous_bytes: status_bytes(&status, "RssAnon:").unwrap_or(0),
    })
}

/// User and system ticks. The name before them may hold blanks and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = behind_name.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn status_bytes(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found_by_a_port_it_listens_on() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let inodes = listening_inodes(&HashSet::from([port]));
        assert!(!inodes.is_empty());
        assert!(owners(&inodes).contains(&std::process::id()));
    }

    #[test]
    fn this_process_has_memory_and_its_counters_are_read() {
        let found = sample(std::process::id()).unwrap();
        assert!(found.rss_bytes >= found.rss_anonymous_bytes && found.rss_anonymous_bytes > 0);
        assert_eq!(sample(u32::MAX), None);
    }

    #[test]
    fn names_with_blanks_and_parentheses_do_not_shift_the_counters() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0";
        assert_eq!(cpu_ticks(stat), Some(200));
    }

    #[test]
    fn only_local_addresses_have_local_ports() {
        assert_eq!(local_port("127.0.0.1:7420"), Some(7420));
        assert_eq!(local_port("localhost:7420"), Some(7420));
        assert_eq!(local_port("node1:7423"), None);
    }
}
