//! A deterministic simulation: the replicas of one partition over a simulated network, clock and disk, all from one seed.
//!
//! Owns: the world around the cores (delivery, time, syncs, crashes) and the oracle. Never: threads, sockets, the machine's clock; the
//! same seed gives the same trace, byte for byte.

mod oracle;
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::batch::{BatchBuilder, BatchHeader, Compression};
use highwater_proto::internal::{AppendedAck, RaftMessage};
use highwater_proto::v1::Acks;
use highwater_storage::{Disk, DiskReserve, HardStateJournal, LogOptions, SimDisk, sync_group};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use self::oracle::Oracle;
use super::convert;
use super::core::{Answer, Birth, Core, CoreConfig, Effects, Persist, Proposal, ProposalBody};

const GROUP: u64 = 7;
const DIR: &str = "/data/groups/7";
const DATA_DIR: &str = "/data";
const ELECTION_TICKS: u32 = 10;

/// What goes wrong in a run, in parts of a thousand for each chance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    pub(super) lose: u32,
    pub(super) duplicate: u32,
    pub(super) crash: u32,
    pub(super) cut: u32,
    /// Skip a sync and say that it was done: a planted bug that the oracle must find.
    pub(super) skip_sync: bool,
}

impl Faults {
    pub(super) const NONE: Self =
        Self { lose: 0, duplicate: 0, crash: 0, cut: 0, skip_sync: false };
    pub(super) const ALL: Self =
        Self { lose: 20, duplicate: 10, crash: 4, cut: 4, skip_sync: false };
}

/// One simulated machine.
struct Machine {
    disk: SimDisk,
    /// `None` while it is down.
    running: Option<Running>,
    /// Step at which it starts again.
    restart_at: u64,
    boots: u64,
}

struct Running {
    core: Core,
    journal: HardStateJournal,
    /// What the syncer holds, oldest first; the hard states are in the journal already.
    syncing: VecDeque<Persist>,
}

/// A message on its way.
enum Packet {
    Raft { message: Box<RaftMessage>, wants_appended: bool },
    Appended(AppendedAck),
}

/// A producer with one batch in flight, which it sends again until it is acknowledged.
struct Producer {
    id: i64,
    sequence: i32,
    batch: Option<Bytes>,
    token: Option<u64>,
    retry_at: u64,
}

/// What happened in a run, to show that none of it is rare.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) acknowledged: u64,
    pub(super) duplicates: u64,
    pub(super) crashes: u64,
    pub(super) cuts: u64,
    pub(super) terms: u64,
}

/// The world of one run.
pub(super) struct World {
    random: SmallRng,
    faults: Faults,
    now: u64,
    machines: BTreeMap<u64, Machine>,
    /// By arrival and then by number, so that the order is total.
    network: BTreeMap<(u64, u64), (u64, Packet)>,
    packets: u64,
    /// A node that hears and is heard by no other, until this step.
    cut: Option<(u64, u64)>,
    producers: Vec<Producer>,
    /// Token to producer.
    waiting: BTreeMap<u64, usize>,
    next_token: u64,
    oracle: Oracle,
    /// Producers have stopped.
    quiet: bool,
    pub(super) totals: Totals,
    pub(super) trace: String,
}

impl World {
    pub(super) fn new(seed: u64, nodes: u64, faults: Faults) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let machines = (1..=nodes)
            .map(|node| {
                let disk = SimDisk::new(random.random());
                (node, Machine { disk, running: None, restart_at: 0, boots: 0 })
            })
            .collect();
        let producers =
            (1..=3).map(|id| Producer { id, sequence: 0, batch: None, token: None, retry_at: 0 });
        let mut world = Self {
            random,
            faults,
            now: 0,
            machines,
            network: BTreeMap::new(),
            packets: 0,
            cut: None,
            producers: producers.collect(),
            waiting: BTreeMap::new(),
            next_token: 1,
            oracle: Oracle::default(),
            quiet: false,
            totals: Totals::default(),
            trace: String::new(),
        };
        for node in 1..=nodes {
            world.start(node);
        }
        world
    }

    /// Runs `steps` with faults, then lets everything heal and checks that it did.
    pub(super) fn run(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step();
        }
        self.faults = Faults { skip_sync: self.faults.skip_sync, ..Faults::NONE };
        self.cut = None;
        for left in (0..400).rev() {
            self.quiet = left < 200;
            self.step();
        }
        self.oracle.check_end(self.machines.values().map(|machine| {
            &machine.running.as_ref().expect("every machine is up after healing").core
        }));
    }

    fn chance(&mut self, per_thousand: u32) -> bool {
        per_thousand > 0 && self.random.random_range(0..1000) < per_thousand
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.trace, "{:>6} {what}", self.now);
    }

    /// One step is a tick of every machine, with deliveries, syncs, proposals and accidents between them.
    fn step(&mut self) {
        self.now += 1;
        self.accidents();
        for node in self.nodes() {
            if self.machines[&node].running.is_none() && self.machines[&node].restart_at <= self.now
            {
                self.start(node);
            }
            self.with(node, |core, effects| core.tick(effects));
        }
        for _ in 0..4 {
            self.deliver();
            self.sync_some();
            self.produce();
        }
        for machine in self.machines.values() {
            if let Some(running) = &machine.running {
                self.oracle.check_core(&running.core);
            }
        }
    }

    fn nodes(&self) -> Vec<u64> {
        self.machines.keys().copied().collect()
    }

    fn accidents(&mut self) {
        if self.chance(self.faults.crash) {
            let nodes = self.nodes();
            let node = nodes[self.random.random_range(0..nodes.len())];
            // Now and then the power fails for all of them at once.
            let condemned = if self.chance(150) { nodes } else { vec![node] };
            for node in condemned {
                self.crash(node);
            }
        }
        if self.cut.is_some_and(|(_, until)| until <= self.now) {
            self.cut = None;
        }
        if self.cut.is_none() && self.chance(self.faults.cut) {
            let nodes = self.nodes();
            let node = nodes[self.random.random_range(0..nodes.len())];
            let until = self.now + self.random.random_range(10..150);
            self.totals.cuts += 1;
            self.note(format_args!("cut {node} until {until}"));
            self.cut = Some((node, until));
        }
    }

    fn crash(&mut self, node: u64) {
        let restart_at = self.now + self.random.random_range(5..100);
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if machine.running.take().is_some() {
            machine.disk.crash();
            machine.restart_at = restart_at;
            self.totals.crashes += 1;
            self.note(format_args!("crash {node}, back at {restart_at}"));
        }
    }

    fn start(&mut self, node: u64) {
        let seed = self.random.random();
        let members: BTreeMap<u64, u64> = self.machines.keys().map(|id| (id + 100, *id)).collect();
        let Some(machine) = self.machines.get_mut(&node) else { return };
        machine.boots += 1;
        let disk: Arc<dyn Disk> = Arc::new(machine.disk.clone());
        disk.create_dir_all("/data/groups".as_ref()).expect("a directory is made");
        for dir in ["/", DATA_DIR] {
            disk.sync_dir(dir.as_ref()).expect("a directory syncs");
        }
        let (journal, saved) = HardStateJournal::open(Arc::clone(&disk), DATA_DIR.as_ref())
            .expect("the journal opens");
        let config = |disk: &Arc<dyn Disk>| CoreConfig {
            disk: Arc::clone(disk),
            dir: PathBuf::from(DIR),
            log: LogOptions { segment_bytes: 16 << 10, ..LogOptions::default() },
            reserve: Arc::new(DiskReserve::open(Arc::clone(disk), DATA_DIR.as_ref(), 0).unwrap()),
            heartbeat_ticks: 2,
            election_ticks: ELECTION_TICKS,
            seed,
            machine: None,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
        };
        let saved = saved.get(&GROUP).copied();
        let core = match Core::open(config(&disk), saved).expect("the replica opens") {
            Some(core) => core,
            None => {
                assert_eq!(machine.boots, 1, "a replica that was created durably has vanished");
                let birth = Birth {
                    group: GROUP,
                    replica: node + 100,
                    topic_id: "topic".into(),
                    partition: 0,
                    voters: members,
                    learners: BTreeMap::new(),
                    image: Bytes::new(),
                    preferred: node == 1,
                };
                Core::create(config(&disk), birth).expect("the replica is created")
            }
        };
        machine.running = Some(Running { core, journal, syncing: VecDeque::new() });
        self.note(format_args!("start {node}"));
        self.with(node, Core::begin);
    }

    /// Calls a core that is up and carries out what it asks for.
    fn with(&mut self, node: u64, call: impl FnOnce(&mut Core, &mut Effects)) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let Some(running) = &mut machine.running else { return };
        let mut effects = Effects::default();
        call(&mut running.core, &mut effects);
        let Effects { persist, checkpoints, messages, appended, answers, .. } = effects;
        if let Some(persist) = persist {
            if let Some(hard_state) = persist.hard_state {
                running.journal.put(&[(GROUP, hard_state)]).expect("the journal takes it");
            }
            running.syncing.push_back(persist);
        }
        for checkpoint in checkpoints {
            running.core.files().store_checkpoint(&checkpoint).expect("a checkpoint is written");
        }
        if let Some(why) = running.core.broken() {
            panic!("replica on node {node} quarantined: {why:?}\n{}", self.trace);
        }
        for outbound in messages {
            let (to, wants_appended) = (outbound.message.to - 100, outbound.wants_appended);
            let message = Box::new(convert::to_wire(outbound.message));
            self.send(node, to, Packet::Raft { message, wants_appended });
        }
        for ack in appended {
            self.send(node, ack.to_replica - 100, Packet::Appended(ack));
        }
        for (token, answer) in answers {
            self.answered(token, answer);
        }
    }

    fn send(&mut self, from: u64, to: u64, packet: Packet) {
        let is_cut = self.cut.is_some_and(|(node, _)| node == from || node == to);
        if is_cut || self.chance(self.faults.lose) {
            return;
        }
        if self.chance(self.faults.duplicate)
            && let Packet::Raft { message, wants_appended } = &packet
        {
            let copy = Packet::Raft { message: message.clone(), wants_appended: *wants_appended };
            self.enqueue(to, copy);
        }
        self.enqueue(to, packet);
    }

    fn enqueue(&mut self, to: u64, packet: Packet) {
        // Most arrive at once, some late and out of order.
        let delay = if self.chance(100) { self.random.random_range(1..8) } else { 0 };
        self.packets += 1;
        self.network.insert((self.now + delay, self.packets), (to, packet));
    }

    fn deliver(&mut self) {
        for _ in 0..64 {
            let Some(entry) = self.network.first_entry() else { return };
            if entry.key().0 > self.now {
                return;
            }
            let (to, packet) = entry.remove();
            if self.cut.is_some_and(|(node, _)| node == to) {
                continue;
            }
            match packet {
                Packet::Raft { message, wants_appended } => {
                    let message = convert::from_wire(*message).expect("peers send what is valid");
                    self.with(to, |core, effects| {
                        // A refusal is an answer too: messages for a past membership, for example.
                        let _ = core.step(message, wants_appended, effects);
                    });
                }
                Packet::Appended(ack) => {
                    self.with(to, |core, effects| core.peer_appended(&ack, effects));
                }
            }
        }
    }

    /// Disks are slow: each machine finishes what it syncs after a while, all of it at once.
    fn sync_some(&mut self) {
        for node in self.nodes() {
            if !self.chance(600) {
                continue;
            }
            let skip = self.faults.skip_sync;
            let Some(running) =
                self.machines.get_mut(&node).and_then(|machine| machine.running.as_mut())
            else {
                continue;
            };
            let points: Vec<Persist> = running.syncing.drain(..).collect();
            let Some(last) = points.last() else { continue };
            if !skip {
                running.journal.sync_point().sync().expect("the journal syncs");
                let files: Vec<_> = points.iter().map(|persist| persist.point.clone()).collect();
                sync_group(&files).expect("the log syncs");
            }
            let (number, point) = (last.number, last.point.clone());
            self.with(node, |core, effects| core.persisted(number, &point, effects));
        }
    }

    /// Each producer sends its next batch, or the last one again, to whoever leads.
    fn produce(&mut self) {
        let leaders: Vec<u64> = self
            .machines
            .iter()
            .filter(|(_, m)| m.running.as_ref().is_some_and(|r| r.core.is_leader()))
            .map(|(node, _)| *node)
            .collect();
        if leaders.is_empty() || self.quiet || !self.chance(100) {
            return;
        }
        for at in 0..self.producers.len() {
            // A second leader, of an older term, is as good as any for a client with old metadata.
            let leader = leaders[self.random.random_range(0..leaders.len())];
            if self.producers[at].token.is_some() && self.producers[at].retry_at > self.now {
                continue;
            }
            let bytes = self.random.random_range(1..1_000usize);
            let producer = &mut self.producers[at];
            let batch = producer.batch.get_or_insert_with(|| {
                let mut builder = BatchBuilder::new(Compression::None);
                builder.set_producer(producer.id, 0, producer.sequence);
                let value = format!("{}:{}:{}", producer.id, producer.sequence, "x".repeat(bytes));
                builder.push(0, None, Some(value.as_bytes()), &[]).expect("a record fits");
                builder.build().expect("a batch builds")
            });
            let batch = batch.clone();
            let header = BatchHeader::read(&batch).expect("our own batch reads");
            let token = self.next_token;
            self.next_token += 1;
            // Whatever the earlier attempt comes to is ignored: as a client that gave up on its answer.
            producer.token = Some(token);
            producer.retry_at = self.now + 60;
            self.waiting.insert(token, at);
            let body = ProposalBody::Batch { batch, header, acks: Acks::QuorumFsync };
            let now_ms = i64::try_from(self.now).unwrap_or(0) * 50;
            self.with(leader, |core, effects| {
                core.propose(vec![Proposal { token, body }], now_ms, effects);
            });
        }
    }

    fn answered(&mut self, token: u64, answer: Result<Answer, crate::error::BrokerError>) {
        let Some(at) = self.waiting.remove(&token) else { return };
        let producer = &mut self.producers[at];
        if producer.token != Some(token) {
            return;
        }
        producer.token = None;
        match answer {
            Ok(Answer::Appended(appended)) => {
                let batch = producer.batch.take().expect("what is acknowledged was sent");
                let (id, sequence) = (producer.id, producer.sequence);
                producer.sequence += 1;
                self.totals.acknowledged += 1;
                self.totals.duplicates += u64::from(appended.duplicate);
                self.oracle.acknowledged(id, sequence, &appended, &batch);
                self.note(format_args!("ack {id}:{sequence} at {}", appended.base_offset));
            }
            Ok(other) => panic!("{other:?} answers a batch"),
            Err(error) => {
                producer.retry_at = self.now + 3;
                producer.token = Some(0);
                self.note(format_args!("refused {}", error.reason()));
            }
        }
    }

    /// The highest term any machine has seen.
    pub(super) fn terms(&self) -> u64 {
        let running = self.machines.values().filter_map(|machine| machine.running.as_ref());
        running.map(|running| running.core.visible().term).max().unwrap_or(0)
    }
}
