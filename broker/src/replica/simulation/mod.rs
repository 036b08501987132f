//! A deterministic simulation: the replicas of one group over a simulated network, clock and disk, all from one seed.
//!
//! Owns: the world around the cores, and what goes wrong in it. Never: threads, sockets, the machine's clock; the same seed gives
//! the same trace, byte for byte.

mod clients;
mod ends;
mod ledger;
mod machine;
mod members;
mod network;
mod oracle;
mod plan;
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::clients::Clients;
use self::ends::Ends;
use self::machine::{Machine, Outcome, SLICES_PER_TICK, Setting};
use self::members::Placement;
use self::network::{Network, Packet};
use self::oracle::{Oracle, is_quorum};
use self::plan::{Accident, Faults, Kind, Tally};
use super::engine::PartitionSettings;

/// Slices of a second of simulated time.
const SLICES_PER_SECOND: u64 = 100;
/// Machines beyond those with the first replicas.
const SPARE_MACHINES: u64 = 3;
/// Ticks between two steps of a membership change.
const TICKS_PER_STEP: u64 = 4;
/// Lines of the trace that a failure shows.
const TRACE_LINES: usize = 80;

/// The world of one run.
pub(super) struct World {
    random: SmallRng,
    setting: Setting,
    faults: Faults,
    /// In slices.
    now: u64,
    next_accident: u64,
    machines: BTreeMap<u64, Machine>,
    placement: Placement,
    network: Network,
    clients: Clients,
    ends: Ends,
    oracle: Oracle,
    /// A handover that was begun: to whom, and in which term.
    transfer: Option<(u64, u64)>,
    /// Since when these nodes, a majority, are healthy and hear one another.
    healthy: (u64, u64),
    last_progress: u64,
    /// The newest term in which there was a leader; it may be down by now.
    newest_term: u64,
    /// When a quiet time ends, with an accident.
    quiet_until: Option<u64>,
    /// Over every message that arrived.
    digest: u64,
    tally: Tally,
    trace: String,
}

impl World {
    /// A world as its seed decides, with the bug planted in it.
    fn new(seed: u64, faults: impl FnOnce(&mut SmallRng) -> Faults) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let nodes = [3, 3, 5, 2, 3][random.random_range(0..5)];
        let kind = if random.random_range(0..4) == 0 { Kind::Machine } else { Kind::Partition };
        let faults = faults(&mut random);
        let segment_bytes = [4 << 10, 8 << 10, 16 << 10][random.random_range(0..3)];
        let partition = PartitionSettings {
            retention_ms: [None, Some(20_000), Some(3_600_000)][random.random_range(0..3)],
            retention_bytes: [None, Some(3 * segment_bytes)][random.random_range(0..2)],
            segment_bytes,
            segment_ms: [None, Some(15_000)][random.random_range(0..2)],
            ..PartitionSettings::default()
        };
        let setting = Setting { kind, nodes, partition, plant: faults.plant };
        let all = 1..=nodes + SPARE_MACHINES;
        let machines = all.map(|node| (node, Machine::new(node, random.random())));
        let mut machines: BTreeMap<u64, Machine> = machines.collect();
        let placement = Placement::founded(nodes);
        for (replica, node) in &placement.replicas {
            machines.get_mut(node).expect("a known node").replica = Some(*replica);
        }
        let mut world = Self {
            random,
            faults,
            now: 0,
            next_accident: 500,
            machines,
            placement,
            network: Network::default(),
            clients: Clients::new(),
            ends: Ends::default(),
            oracle: Oracle::new(),
            transfer: None,
            healthy: (0, 0),
            last_progress: 0,
            newest_term: 0,
            quiet_until: None,
            digest: 0,
            tally: Tally::default(),
            trace: String::new(),
            setting,
        };
        world.note(format_args!("{:?} {:?}", world.setting.clone(), faults));
        for node in 1..=nodes {
            world.start(node);
        }
        world
    }

    /// Runs for so long with faults, then lets everything heal and checks that it did.
    fn run(&mut self, seconds: u64) {
        while self.now < seconds * SLICES_PER_SECOND {
            self.slice();
        }
        self.heal();
        let until = self.now + Self::SERVICE_SLICES;
        while self.clients.producers.iter().any(|producer| producer.since_healing < 2) {
            assert!(self.now < until, "a producer was not served after everything had healed");
            self.slice();
        }
        self.clients.quiet = true;
        self.settle();
        self.send_last_again();
        self.settle();
        let members = self.machines.values().filter(|machine| machine.replica.is_some());
        let cores = members.map(|machine| {
            &machine.running.as_ref().expect("every machine is up after healing").core
        });
        self.oracle.check_end(cores, &mut self.tally);
        self.tally.count("runs");
        self.tally.add("simulated seconds", self.now / SLICES_PER_SECOND);
    }

    fn heal(&mut self) {
        self.note(format_args!("healing"));
        self.faults = Faults { plant: self.faults.plant, ..Faults::NONE };
        self.network.mend_all();
        self.quiet_until = None;
        for machine in self.machines.values_mut() {
            machine.disk.set_capacity(None);
            let now = self.now;
            for until in [
                &mut machine.restart_at,
                &mut machine.paused_until,
                &mut machine.slow_until,
                &mut machine.full_until,
            ] {
                *until = now.min(*until);
            }
        }
        for producer in &mut self.clients.producers {
            producer.since_healing = 0;
        }
    }

    /// Lets everything that is under way come to its end, on every replica.
    fn settle(&mut self) {
        let until = self.now + Self::SERVICE_SLICES;
        while !self.clients.is_idle() || !self.ends.is_empty() || !self.is_level() {
            assert!(
                self.now < until,
                "the replicas do not become equal, or leave questions open: {:?}",
                self.ends
            );
            self.slice();
        }
    }

    fn is_level(&self) -> bool {
        if !self.is_settled() {
            return false;
        }
        let members = self.machines.values().filter(|machine| machine.replica.is_some());
        let ends = members.map(|machine| {
            let core = &machine.running.as_ref()?.core;
            (core.committed() == core.reader().last_index())
                .then(|| (core.committed(), core.visible().log_start_offset))
        });
        let ends: Vec<_> = ends.collect();
        ends[0].is_some() && ends.windows(2).all(|pair| pair[0] == pair[1])
    }

    fn chance(&mut self, per_thousand: u32) -> bool {
        per_thousand > 0 && self.random.random_range(0..1000) < per_thousand
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.trace, "{:>6} {what}", self.now);
    }

    /// The end of the trace, for whoever looks for what went wrong.
    fn last_words(&self) -> String {
        let lines: Vec<&str> = self.trace.lines().collect();
        let last = lines[lines.len().saturating_sub(TRACE_LINES)..].join("\n");
        format!("{:?}\n{last}", self.setting)
    }

    fn nodes(&self) -> Vec<u64> {
        self.machines.keys().copied().collect()
    }

    /// A node to have an accident: every other time the one that leads.
    fn any_node(&mut self) -> u64 {
        let leader = self.machines.values().find(|machine| machine.leads()).map(|m| m.node);
        match leader {
            Some(leader) if self.random.random_range(0..2) == 0 => leader,
            _ => {
                let held = self.machines.values().filter(|machine| machine.replica.is_some());
                let held: Vec<u64> = held.map(|machine| machine.node).collect();
                held[self.random.random_range(0..held.len())]
            }
        }
    }

    /// One slice of time: what arrives, what is due, and what goes wrong.
    fn slice(&mut self) {
        self.now += 1;
        self.network.mend(self.now);
        self.accidents();
        self.end_quiet_time();
        while let Some((to, packet)) = self.network.arrive(self.now) {
            self.deliver(to, packet);
        }
        self.produce();
        self.consume();
        self.ask_for_ends();
        if self.now.is_multiple_of(SLICES_PER_TICK) {
            self.reconcile();
        }
        if self.now.is_multiple_of(SLICES_PER_TICK * TICKS_PER_STEP) {
            self.move_members();
        }
        for node in self.nodes() {
            let machine = self.machines.get_mut(&node).expect("a known node");
            if machine.full_until != 0 && machine.full_until <= self.now {
                machine.full_until = 0;
                machine.disk.set_capacity(None);
            }
            let is_due = machine.replica.is_some() && machine.restart_at <= self.now;
            if machine.running.is_none() && is_due {
                self.start(node);
            } else {
                self.burst(node, false);
            }
        }
        if self.now.is_multiple_of(SLICES_PER_TICK) {
            self.watch_service();
        }
    }

    fn deliver(&mut self, to: u64, packet: Packet) {
        let mut hasher = DefaultHasher::new();
        (self.digest, self.now, to).hash(&mut hasher);
        if let Packet::Raft { message, .. } = &packet {
            (message.msg_type, message.from, message.term).hash(&mut hasher);
            (message.index, message.commit, message.entries.len()).hash(&mut hasher);
        }
        self.digest = hasher.finish();
        let machine = self.machines.get_mut(&to).expect("a known node");
        if machine.running.is_some() {
            machine.inbox.push(packet);
        }
    }

    /// Service is back within a bounded time wherever a majority is healthy and hears one another.
    fn watch_service(&mut self) {
        let healthy: Vec<u64> =
            self.machines.values().filter(|m| m.is_healthy(self.now)).map(|m| m.node).collect();
        let open = |a: u64, b: u64| self.network.is_open(a, b) && self.network.is_open(b, a);
        // Those that hear one another: grown from each node in turn, which for five nodes finds one where there is one.
        let mut found = 0;
        for first in &healthy {
            let mut group = vec![*first];
            for other in &healthy {
                if other != first && group.iter().all(|member| open(*member, *other)) {
                    group.push(*other);
                }
            }
            if self.can_decide(&group) {
                let bits = group.iter().fold(0, |bits, node| bits | 1 << node);
                found = if bits == self.healthy.1 || found == 0 { bits } else { found };
            }
        }
        if found == 0 || found & self.healthy.1 != self.healthy.1 {
            self.healthy = (self.now, found);
        }
        let since = self.healthy.0.max(self.last_progress);
        let is_quiet = self.clients.quiet || self.quiet_until.is_some();
        let is_served = found == 0 || is_quiet || self.now - since < Self::SERVICE_SLICES;
        assert!(is_served, "nodes {found:b} are healthy, and nothing was committed since {since}");
    }

    /// Whether these nodes have a majority by whatever any running replica takes for the members.
    fn can_decide(&self, nodes: &[u64]) -> bool {
        let running = || self.machines.values().filter_map(|machine| machine.running.as_ref());
        let there: Vec<u64> = nodes
            .iter()
            .filter_map(|node| Some(self.machines[node].running.as_ref()?.core.replica()))
            .collect();
        let views = running().map(|running| running.view.members());
        let mut known = views.filter(|members| !members.voters.is_empty()).peekable();
        known.peek().is_some() && known.all(|members| is_quorum(members, |id| there.contains(&id)))
    }

    /// Lets a machine do what there is to do, and carries out what follows from it.
    fn burst(&mut self, node: u64, begin: bool) {
        let Self { machines, setting, random, tally, oracle, .. } = self;
        let machine = machines.get_mut(&node).expect("a known node");
        let Some(outcome) = machine.burst(self.now, begin, setting, random, tally) else { return };
        let Some(running) = &mut machine.running else { return };
        if running.view.note_members(running.core.take_changed_members())
            && running.core.is_leader()
        {
            tally.count("joint configurations");
        }
        let noticed = match running.core.broken() {
            Some(_) => Default::default(),
            None => oracle.observe(&running.core, &mut running.view),
        };
        if setting.kind == Kind::Machine {
            oracle.applied(&running.ledger.0.lock());
        }
        if noticed.truncated && !outcome.installed {
            self.tally.count("truncations of a suffix");
        }
        if noticed.log_start_moved {
            self.tally.count("log starts moved");
        }
        if noticed.progress {
            self.last_progress = self.now;
        }
        if let Some(term) = noticed.elected {
            self.newest_term = self.newest_term.max(term);
            self.tally.count("leaders elected");
            self.note(format_args!("leader {node} in {term}"));
            if self.transfer.take_if(|(_, from)| *from < term).is_some_and(|(to, _)| to == node) {
                self.tally.count("leaderships transferred");
            }
        }
        self.carry_out(node, outcome);
    }

    fn carry_out(&mut self, node: u64, outcome: Outcome) {
        if outcome.installed {
            self.tally.count("snapshots installed");
            self.note(format_args!("snapshot on {node}"));
        }
        if let Some((to, term)) = outcome.transferee {
            self.transfer = Some((to, term));
        }
        if outcome.beats {
            for to in self.nodes().into_iter().filter(|to| *to != node) {
                let Self { network, faults, random, tally, .. } = self;
                let boots = self.machines[&node].boots;
                let beat = Packet::Beat { from_node: node, boots };
                network.send((node, to), beat, self.now, faults, random, tally);
            }
        }
        for (to, packet) in outcome.packets {
            let up = self.machines[&to].running.is_some();
            let Self { network, faults, random, tally, .. } = self;
            let sent = network.send((node, to), packet, self.now, faults, random, tally);
            if (!sent || !up) && self.chance(300) {
                let machine = self.machines.get_mut(&node).expect("a known node");
                machine.unreachable.push(to);
            }
        }
        for (token, answer) in outcome.answers {
            self.answered(token, answer);
        }
        if let Some(why) = outcome.stopped {
            panic!("node {node} stops: {why}");
        }
    }

    fn start(&mut self, node: u64) {
        let seed = self.random.random();
        let machine = self.machines.get_mut(&node).expect("a known node");
        if let Err(error) = machine.start(&self.setting, seed) {
            assert!(
                error.is_disk_full() && machine.full_until > 0,
                "node {node}: {error}; checkpoints: {:?}",
                machine.checkpoints()
            );
            machine.restart_at = self.now + 50;
            self.tally.count("kept from starting by a full disk");
            return;
        }
        self.tally.count("starts");
        let elections = self.machines[&node].boots;
        self.note(format_args!("start {node}, number {elections}"));
        self.burst(node, true);
    }

    fn accidents(&mut self) {
        let Some(mean) = self.faults.accident_slices else { return };
        if self.next_accident > self.now {
            return;
        }
        self.next_accident = self.now + self.random.random_range(1..2 * mean);
        let drawn = Accident::draw(&mut self.random);
        let accident = self.faults.only.unwrap_or(drawn);
        let node = self.any_node();
        let until = self.now + self.random.random_range(50..1_500);
        self.note(format_args!("{accident:?} {node} until {until}"));
        match accident {
            Accident::Crash => self.crash(node),
            Accident::CrashAll => {
                self.tally.count("power losses of all machines");
                self.nodes().into_iter().for_each(|node| self.crash(node));
            }
            Accident::Kill => self.kill(node),
            Accident::Cut => {
                let others = self.nodes().into_iter().filter(|other| *other != node).collect();
                let (kind, links) = self.network.cut(node, others, until, &mut self.random);
                self.tally.count(kind);
                self.note(format_args!("{kind}: {links:?}"));
            }
            Accident::Pause => {
                self.tally.count("pauses");
                self.machine(node).paused_until = until;
            }
            Accident::SlowDisk => {
                self.tally.count("slow disks");
                self.machine(node).slow_until = until;
            }
            Accident::FullDisk => {
                let room = self.random.random_range(0..30_000);
                if self.machine(node).fill_disk(until, room) {
                    self.tally.count("full disks");
                }
            }
            Accident::ClockJump => {
                self.tally.count("clocks that jumped");
                let jump = self.random.random_range(-3_600_000..3_600_000);
                self.machine(node).clock_offset_ms += jump;
            }
            Accident::Transfer => {
                for machine in self.machines.values_mut() {
                    machine.transfer = machine.leads().then_some(None);
                }
            }
            Accident::Trim => self.trim(),
            Accident::Quiet => {
                let until = self.now + self.random.random_range(100..600);
                // Not before the one before has shown whether there was service after it.
                if self.machines.values().all(|machine| machine.paused_until <= self.now) {
                    self.quiet_until.get_or_insert(until);
                }
            }
            Accident::Members => self.reassign(),
        }
    }

    /// The users come back, and find that their leader does not answer.
    fn end_quiet_time(&mut self) {
        if self.quiet_until.is_none_or(|until| until > self.now) {
            return;
        }
        self.quiet_until = None;
        self.last_progress = self.now;
        if let Some(leader) = self.machines.values_mut().find(|machine| machine.leads()) {
            // Longer than it may take until there is another one.
            leader.paused_until = self.now + Self::SERVICE_SLICES * 3 / 2;
            self.tally.count("leaders that stood still after a quiet time");
        }
    }

    fn machine(&mut self, node: u64) -> &mut Machine {
        self.machines.get_mut(&node).expect("a known node")
    }

    fn crash(&mut self, node: u64) {
        let restart_at = self.now + self.random.random_range(20..800);
        let machine = self.machines.get_mut(&node).expect("a known node");
        if machine.running.is_none() {
            return;
        }
        machine.restart_at = restart_at;
        machine.stop(self.now);
        let lost = machine.disk.crash();
        if let Some(replica) = machine.replica {
            self.oracle.power_lost(replica);
        }
        self.tally.count("power losses");
        if lost > 0 {
            self.tally.count("power losses with lost pages");
        }
        self.note(format_args!("{node} loses {lost} pages, back at {restart_at}"));
    }

    fn kill(&mut self, node: u64) {
        let restart_at = self.now + self.random.random_range(20..400);
        let is_orderly = self.chance(500);
        let machine = self.machines.get_mut(&node).expect("a known node");
        if machine.running.is_some() {
            if is_orderly {
                machine.save_hard_state();
            }
            machine.restart_at = restart_at;
            machine.stop(self.now);
            self.tally.count("processes killed");
        }
    }

    /// A user moves the start of the log up.
    fn trim(&mut self) {
        if self.setting.kind == Kind::Machine {
            return;
        }
        let Some(leader) = self.machines.values().find(|machine| machine.leads()) else { return };
        let (node, Some(running)) = (leader.node, leader.running.as_ref()) else { return };
        let visible = running.core.visible();
        let to = self.random.random_range(visible.log_start_offset..=visible.high_watermark);
        let body = super::core::ProposalBody::AdvanceLogStart(to);
        self.machine(node).proposals.push(super::core::Proposal { token: 0, body });
        self.tally.count("trims");
    }
}
