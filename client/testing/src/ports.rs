//! Ports for what a test starts, stops and starts again.
//!
//! Owns: which ports were given away. Never: a socket.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, Ordering};

/// First and last port that is given: below those that the system gives to outgoing connections, so that a node that comes
/// back finds its port free.
const PORTS: Range<u16> = 12_000..32_000;

/// A loopback address whose port nothing is bound to, and that nobody else in this process gets. A service or a broker that is stopped
/// and started again finds it free.
pub fn free_address() -> String {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    // Another run of tests at the same time starts elsewhere.
    let begin = std::process::id().wrapping_mul(97) % u32::from(count);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = (begin + u32::from(step)) % u32::from(count);
        let port = PORTS.start + u16::try_from(place).expect("there are fewer ports than that");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return format!("127.0.0.1:{port}");
        }
    }
}
