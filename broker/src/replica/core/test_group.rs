//! For tests: the cores of one group, and messages between them that arrive at once unless a replica is cut off.
//!
//! Owns: a disk and a journal for each. Never: threads, or time of its own.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::batch::{BatchBuilder, BatchHeader, Compression};
use highwater_proto::internal::Quiesce;
use highwater_proto::v1::Acks;
use highwater_storage::{Disk, DiskReserve, HardStateJournal, LogOptions, SimDisk};
use raft::eraftpb::{Message, MessageType};

use super::{Answer, Birth, Core, CoreConfig, Effects, Proposal, ProposalBody};
use crate::error::BrokerError;
use crate::replica::convert;

pub(super) const GROUP: u64 = 7;
const DIR: &str = "/data/groups/7";

pub(super) struct Member {
    pub(super) core: Core,
    disk: SimDisk,
    journal: HardStateJournal,
}

/// Replicas of one group, each on a node of its own with the same number; messages arrive at once unless a replica is cut off.
pub(super) struct Group {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) cut: BTreeSet<u64>,
    pub(super) answers: HashMap<u64, Result<Answer, BrokerError>>,
    tokens: u64,
    /// Batches that were acknowledged.
    pub(super) acknowledged: u64,
    /// Messages of this kind are lost.
    pub(super) lose: Option<MessageType>,
    /// Messages that were sent.
    pub(super) sent: Vec<MessageType>,
    /// Restarts so far.
    boots: u64,
    quiet_ticks: u32,
}

/// What one replica says to another.
enum Packet {
    Raft(Box<Message>),
    Quiesce(Quiesce),
}

impl Group {
    /// Replicas 1, 2 and 3; replica 1 leads.
    pub(super) fn new() -> Self {
        Self::of(3, 0)
    }

    /// So many replicas, of which the first leads, and which sleep after so many ticks in which nothing happens.
    pub(super) fn of(replicas: u64, quiet_ticks: u32) -> Self {
        let mut group = Self {
            members: BTreeMap::new(),
            cut: BTreeSet::new(),
            answers: HashMap::new(),
            tokens: 0,
            acknowledged: 0,
            lose: None,
            sent: Vec::new(),
            boots: 0,
            quiet_ticks,
        };
        for replica in 1..=replicas {
            group.create(replica, (1..=replicas).map(|id| (id, id)).collect());
        }
        group.run(|group| group.leader() == Some(1));
        group
    }

    /// A replica that is to join.
    pub(super) fn join(&mut self, replica: u64) {
        self.create(replica, BTreeMap::new());
    }

    pub(super) fn create(&mut self, replica: u64, voters: BTreeMap<u64, u64>) {
        let disk = SimDisk::new(replica);
        disk.create_dir_all(Path::new("/data/groups")).unwrap();
        for dir in ["/", "/data"] {
            disk.sync_dir(Path::new(dir)).unwrap();
        }
        let birth = Birth {
            group: GROUP,
            replica,
            topic_id: "topic".into(),
            partition: 0,
            voters,
            learners: BTreeMap::new(),
            image: Bytes::new(),
            preferred: replica == 1,
        };
        let core = Core::create(config(&disk, replica, self.quiet_ticks), birth).unwrap();
        self.start(replica, disk, core);
    }

    fn start(&mut self, replica: u64, disk: SimDisk, core: Core) {
        let (journal, _) =
            HardStateJournal::open(Arc::new(disk.clone()), Path::new("/data")).unwrap();
        self.members.insert(replica, Member { core, disk, journal });
        self.call(replica, Core::begin);
    }

    /// The power fails for one replica, and comes back.
    pub(super) fn crash(&mut self, replica: u64) {
        let member = self.members.remove(&replica).unwrap();
        let (disk, key) = (member.disk.clone(), member.core.journal_key());
        drop(member);
        disk.crash();
        let (_, saved) =
            HardStateJournal::open(Arc::new(disk.clone()), Path::new("/data")).unwrap();
        // With the same election timeouts at every start, the same replica would be elected for ever.
        self.boots += 1;
        let config = config(&disk, replica + 100 * self.boots, self.quiet_ticks);
        let core = Core::open(config, saved.get(&key).copied()).unwrap().unwrap();
        self.start(replica, disk, core);
    }

    /// Calls a core and carries out everything that follows, at once.
    pub(super) fn call(&mut self, replica: u64, call: impl FnOnce(&mut Core, &mut Effects)) {
        let mut effects = Effects::default();
        call(&mut self.members.get_mut(&replica).unwrap().core, &mut effects);
        let mut packets = self.carry_out(replica, effects);
        while let Some((from, to, packet)) = packets.pop_front() {
            if self.cut.contains(&from) || self.cut.contains(&to) {
                continue;
            }
            let Some(member) = self.members.get_mut(&to) else { continue };
            let mut effects = Effects::default();
            member.core.hear(from, from).unwrap();
            match packet {
                Packet::Raft(message) if self.lose == Some(message.get_msg_type()) => {}
                Packet::Raft(message) => {
                    let message = convert::from_wire(convert::to_wire(*message)).unwrap();
                    let _ = member.core.step(message, false, &mut effects);
                }
                Packet::Quiesce(heard) => member.core.step_quiesce(&heard, &mut effects),
            }
            packets.extend(self.carry_out(to, effects));
        }
    }

    /// Answers what is to be sent, with who sends it to whom.
    fn carry_out(&mut self, replica: u64, mut effects: Effects) -> VecDeque<(u64, u64, Packet)> {
        let Member { core, journal, .. } = self.members.get_mut(&replica).unwrap();
        while let Some(persist) = effects.persist.take() {
            if let Some(hard_state) = persist.hard_state {
                journal.put(&[(core.journal_key(), hard_state)]).unwrap();
                journal.sync_point().sync().unwrap();
            }
            persist.point.sync().unwrap();
            core.persisted(persist.number, &persist.point, &mut effects);
        }
        for checkpoint in effects.checkpoints {
            core.files().store_checkpoint(&checkpoint).unwrap();
        }
        assert_eq!(core.broken(), None, "replica {replica}");
        self.answers.extend(effects.answers);
        let mut packets = VecDeque::new();
        for outbound in effects.messages {
            let to = outbound.message.to;
            if core.node_of(to).is_some() {
                self.sent.push(outbound.message.get_msg_type());
                packets.push_back((replica, to, Packet::Raft(Box::new(outbound.message))));
            }
        }
        let quiesces = effects.quiesces.into_iter();
        packets.extend(quiesces.map(|said| (replica, said.to_replica, Packet::Quiesce(said))));
        packets
    }

    pub(super) fn run(&mut self, mut until: impl FnMut(&Self) -> bool) {
        for _ in 0..2_000 {
            if until(self) {
                return;
            }
            self.tick();
        }
        panic!("it did not come about: {:?}", self.states());
    }

    pub(super) fn tick(&mut self) {
        for replica in self.members.keys().copied().collect::<Vec<_>>() {
            let others = self.members.keys().filter(|id| **id != replica && !self.cut.contains(id));
            let live: BTreeSet<u64> = others.copied().collect();
            self.call(replica, |core, effects| core.tick(&live, effects));
        }
    }

    pub(super) fn ticks(&mut self, count: usize) {
        (0..count).for_each(|_| self.tick());
    }

    pub(super) fn states(&self) -> Vec<String> {
        let state = |(id, member): (&u64, &Member)| {
            format!("{id}: {:?} {:?}", member.core.visible(), member.core.members())
        };
        self.members.iter().map(state).collect()
    }

    pub(super) fn core(&self, replica: u64) -> &Core {
        &self.members[&replica].core
    }

    /// Who leads among those that are not cut off.
    pub(super) fn leader(&self) -> Option<u64> {
        let able = self.members.iter().filter(|(id, _)| !self.cut.contains(id));
        let mut leaders = able.filter(|(_, member)| member.core.visible().is_settled);
        leaders.next().map(|(id, _)| *id)
    }

    pub(super) fn propose(&mut self, replica: u64, body: ProposalBody) -> u64 {
        let token = self.next_token();
        let proposal = Proposal { token, body };
        self.call(replica, |core, effects| core.propose(vec![proposal], 1, effects));
        token
    }

    pub(super) fn next_token(&mut self) -> u64 {
        self.tokens += 1;
        self.tokens
    }

    pub(super) fn publish(&mut self, replica: u64, acks: Acks) -> u64 {
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(1, None, Some(&[7; 3_000]), &[]).unwrap();
        let batch = builder.build().unwrap();
        let header = BatchHeader::read(&batch).unwrap();
        let token =
            self.propose(replica, ProposalBody::Batch { batch, header, acks, only_in: None });
        if matches!(self.answers.get(&token), Some(Ok(_))) {
            self.acknowledged += 1;
        }
        token
    }
}

pub(super) fn config(disk: &SimDisk, seed: u64, quiet_ticks: u32) -> CoreConfig {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let reserve = DiskReserve::open(Arc::clone(&disk), Path::new("/data"), 1 << 20);
    CoreConfig {
        disk,
        dir: PathBuf::from(DIR),
        log: LogOptions { segment_bytes: 16 << 10, ..LogOptions::default() },
        reserve: Arc::new(reserve.unwrap()),
        settled: None,
        heartbeat_ticks: 2,
        election_ticks: 10,
        quiet_ticks,
        seed,
        machine: None,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    }
}
