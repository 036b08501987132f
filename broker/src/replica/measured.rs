//! The cores of one group without threads, clocks or sockets, so that the instructions of a proposal can be counted.
//!
//! Owns: a disk folder and a journal for each replica, and the way of messages between them. Never: part of the broker; only
//! `broker/src/bin/instructions.rs` uses it, through the feature `instructions`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use highwater_proto::batch::BatchHeader;
use highwater_proto::v1::Acks;
use highwater_storage::{Disk, DiskReserve, HardStateJournal, LogOptions, RealDisk};
use raft::eraftpb::Message;

use super::convert;
use super::core::{Birth, Core, CoreConfig, Effects, Proposal, ProposalBody};
use super::partition_reader::PartitionReader;

const GROUP: u64 = 7;
const LEADER: u64 = 1;
/// Ticks within which the first replica leads, or never does.
const TICKS_MAX: usize = 1_000;

/// Whatever goes wrong ends the measurement.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

struct Member {
    core: Core,
    journal: HardStateJournal,
}

/// Replicas of one group on the disk, the first of which leads. A message arrives at once, and what must be durable is synced
/// before the next step.
pub struct MeasuredGroup {
    members: BTreeMap<u64, Member>,
    proposals: u64,
    answered: u64,
    reader: PartitionReader,
}

impl MeasuredGroup {
    /// So many replicas in `dir`, which must exist and be empty.
    pub fn new(dir: &Path, replicas: u64) -> Outcome<Self> {
        let mut members = BTreeMap::new();
        for replica in 1..=replicas {
            let voters = (1..=replicas).map(|id| (id, id)).collect();
            members.insert(replica, create(&dir.join(replica.to_string()), replica, voters)?);
        }
        let leader = members.get(&LEADER).ok_or("a group has at least one replica")?;
        let reader = leader.core.partition_reader();
        let mut group = Self { members, proposals: 0, answered: 0, reader };
        for replica in 1..=replicas {
            group.call(replica, Core::begin)?;
        }
        for _ in 0..TICKS_MAX {
            if group.leader()?.visible().is_settled {
                return Ok(group);
            }
            let everybody: BTreeSet<u64> = (1..=replicas).collect();
            group.call(LEADER, |core, effects| core.tick(&everybody, effects))?;
        }
        Err("the first replica was not elected".into())
    }

    /// Proposes a batch and carries out what follows until it is committed, applied and answered, durable on a majority.
    pub fn publish(&mut self, batch: &Bytes) -> Outcome<()> {
        let header = BatchHeader::read(batch)?;
        self.proposals += 1;
        let body = ProposalBody::Batch {
            batch: batch.clone(),
            header,
            acks: Acks::QuorumFsync,
            only_in: None,
        };
        let proposal = Proposal { token: self.proposals, body };
        self.call(LEADER, |core, effects| core.propose(vec![proposal], 1, effects))?;
        if self.answered == self.proposals {
            return Ok(());
        }
        Err(format!("proposal {} was not answered", self.proposals).into())
    }

    /// Reads what is committed from an offset on, as a fetch does: payload bytes, and where to go on.
    pub fn read(&self, from: u64, bytes_max: u64) -> Outcome<(usize, u64)> {
        let end = self.leader()?.visible().high_watermark;
        let stored = self.reader.read_offsets(from, end, bytes_max)?;
        Ok((stored.entries.iter().map(|entry| entry.payload.len()).sum(), stored.next_offset))
    }

    fn leader(&self) -> Outcome<&Core> {
        Ok(&self.members.get(&LEADER).ok_or("the leader is gone")?.core)
    }

    /// Calls a core, and then whoever hears of it.
    fn call(&mut self, replica: u64, call: impl FnOnce(&mut Core, &mut Effects)) -> Outcome<()> {
        let mut effects = Effects::default();
        call(&mut self.members.get_mut(&replica).ok_or("no such replica")?.core, &mut effects);
        let mut messages = VecDeque::from(self.carry_out(replica, effects)?);
        while let Some(message) = messages.pop_front() {
            let to = message.to;
            let message = convert::from_wire(convert::to_wire(message))?;
            let mut effects = Effects::default();
            let member = self.members.get_mut(&to).ok_or("a message to nobody")?;
            member.core.hear(message.from, message.from)?;
            member.core.step(message, false, &mut effects)?;
            messages.extend(self.carry_out(to, effects)?);
        }
        Ok(())
    }

    /// Makes durable and counts answers; answers what is to be sent.
    fn carry_out(&mut self, replica: u64, mut effects: Effects) -> Outcome<Vec<Message>> {
        let Member { core, journal } = self.members.get_mut(&replica).ok_or("no such replica")?;
        while let Some(persist) = effects.persist.take() {
            if let Some(hard_state) = persist.hard_state {
                journal.put(&[(core.journal_key(), hard_state)])?;
                journal.sync_point().sync()?;
            }
            persist.point.sync()?;
            core.persisted(persist.number, &persist.point, &mut effects);
        }
        if let Some(quarantine) = core.broken() {
            return Err(quarantine.why.clone().into());
        }
        for (_, answer) in effects.answers {
            answer?;
            self.answered += 1;
        }
        Ok(effects.messages.into_iter().map(|outbound| outbound.message).collect())
    }
}

fn create(dir: &Path, replica: u64, voters: BTreeMap<u64, u64>) -> Outcome<Member> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::new());
    disk.create_dir_all(&dir.join("groups"))?;
    let reserve = DiskReserve::open(Arc::clone(&disk), dir, 0)?;
    let config = CoreConfig {
        disk: Arc::clone(&disk),
        dir: dir.join("groups").join(GROUP.to_string()),
        log: LogOptions::default(),
        reserve: Arc::new(reserve),
        settled: None,
        heartbeat_ticks: 2,
        election_ticks: 10,
        quiet_ticks: 0,
        seed: replica,
        machine: None,
        logger: slog::Logger::root(slog::Discard, slog::o!()),
    };
    let birth = Birth {
        group: GROUP,
        replica,
        topic_id: "topic".into(),
        partition: 0,
        voters,
        learners: BTreeMap::new(),
        image: Bytes::new(),
        preferred: replica == LEADER,
    };
    let core = Core::create(config, birth)?;
    let (journal, _) = HardStateJournal::open(disk, dir)?;
    Ok(Member { core, journal })
}
