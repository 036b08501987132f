//! Publishers, who send until they know, and consumers, who read what they are given.
//!
//! Owns: what clients remember. Never: trusts an answer; the oracle judges each.

use std::collections::BTreeMap;

use bytes::Bytes;
use highwater_proto::batch::{BatchBuilder, BatchHeader, Compression};
use highwater_proto::v1::Acks;
use highwater_storage::StorageError;
use rand::Rng;

use super::World;
use super::ledger;
use super::machine::{Machine, SLICE_MS};
use super::plan::{Kind, Plant};
use crate::error::BrokerError;
use crate::replica::core::{Answer, Proposal, ProposalBody};

/// A publisher with one batch (or command) in flight, which it sends again until it is acknowledged as synced.
#[derive(Debug)]
pub(super) struct Producer {
    id: i64,
    sequence: i32,
    body: Option<Bytes>,
    attempts: u32,
    next_at: u64,
    /// Who led when it last asked.
    leader: Option<u64>,
    /// The last batch that was acknowledged, and its offset.
    last: Option<(Bytes, u64)>,
    /// Batches acknowledged since the world began to heal.
    pub(super) since_healing: u64,
}

/// An attempt that has not been answered.
#[derive(Debug)]
struct Attempt {
    at: usize,
    sequence: i32,
    body: Bytes,
    acks: Acks,
    node: u64,
}

#[derive(Debug)]
struct Consumer {
    position: u64,
    next_at: u64,
}

#[derive(Debug)]
pub(super) struct Clients {
    pub(super) producers: Vec<Producer>,
    consumers: Vec<Consumer>,
    /// By token.
    attempts: BTreeMap<u64, Attempt>,
    next_token: u64,
    /// Nobody sends anything new any more.
    pub(super) quiet: bool,
}

impl Clients {
    pub(super) fn new() -> Self {
        let producer = |id| Producer {
            id,
            sequence: 0,
            body: None,
            attempts: 0,
            next_at: 100,
            leader: None,
            last: None,
            since_healing: 0,
        };
        Self {
            producers: (1..=3).map(producer).collect(),
            consumers: (0..2).map(|_| Consumer { position: 0, next_at: 0 }).collect(),
            attempts: BTreeMap::new(),
            next_token: 1,
            quiet: false,
        }
    }

    /// Everything that was ever sent is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.producers.iter().all(|producer| producer.body.is_none())
    }
}

impl World {
    /// Each producer whose time has come sends its next batch, or the last one again, to whoever leads.
    pub(super) fn produce(&mut self) {
        for at in 0..self.clients.producers.len() {
            let producer = &self.clients.producers[at];
            let is_quiet = self.clients.quiet || self.quiet_until.is_some();
            if producer.next_at <= self.now && (producer.body.is_some() || !is_quiet) {
                self.send_next(at);
            }
        }
    }

    fn send_next(&mut self, at: usize) {
        let known = self.clients.producers[at].leader.take();
        let Some(node) = known.or_else(|| self.whom_to_ask()) else { return };
        // Most are small; some are larger than a segment.
        let bytes = match self.random.random_range(0..100) {
            0 => self.random.random_range(1_000..20_000usize),
            _ => self.random.random_range(1..1_200usize),
        };
        let kind = self.setting.kind;
        let producer = &mut self.clients.producers[at];
        let (id, sequence) = (producer.id, producer.sequence);
        let body = producer.body.get_or_insert_with(|| match kind {
            Kind::Partition => batch(id, sequence, bytes),
            Kind::Machine => {
                ledger::command(id.unsigned_abs(), sequence.unsigned_abs().into(), bytes)
            }
        });
        let body = body.clone();
        producer.attempts += 1;
        // As a client that gives up on an answer and asks again.
        producer.next_at = self.now + self.random.random_range(100..250);
        if producer.attempts > 1 {
            self.tally.count("sent again");
        }
        // Weaker promises are for the first attempts only: in the end each batch is acknowledged as synced.
        let acks = match self.random.random_range(0..10) {
            0 | 1 if producer.attempts < 3 => Acks::Quorum,
            2 | 3 if producer.attempts < 3 => Acks::Leader,
            _ => Acks::QuorumFsync,
        };
        self.propose(at, sequence, node, acks, body);
    }

    fn propose(&mut self, at: usize, sequence: i32, node: u64, acks: Acks, body: Bytes) {
        let token = self.clients.next_token;
        self.clients.next_token += 1;
        let asked = match (self.setting.plant, acks) {
            (Some(Plant::AckAtAppend), _) => Acks::Leader,
            (_, acks) => acks,
        };
        let proposal = match self.setting.kind {
            Kind::Partition => {
                let header = BatchHeader::read(&body).expect("our own batch reads");
                ProposalBody::Batch { batch: body.clone(), header, acks: asked, only_in: None }
            }
            Kind::Machine => ProposalBody::Command(body.clone()),
        };
        let attempt = Attempt { at, sequence, body, acks, node };
        self.clients.attempts.insert(token, attempt);
        let machine = self.machine(node);
        machine.proposals.push(Proposal { token, body: proposal });
    }

    /// Mostly the newest leader; now and then another that still believes it leads, or anybody.
    fn whom_to_ask(&mut self) -> Option<u64> {
        let up = |machine: &&Machine| machine.running.is_some();
        let term = |machine: &Machine| {
            machine.running.as_ref().map_or(0, |running| running.core.visible().term)
        };
        let leaders = self.machines.values().filter(up).filter(|machine| machine.leads());
        let newest = leaders.clone().max_by_key(|machine| term(machine)).map(|m| m.node);
        let any: Vec<u64> = match self.random.random_range(0..20) {
            0 => self.machines.values().filter(up).map(|machine| machine.node).collect(),
            1 | 2 => leaders.map(|machine| machine.node).collect(),
            _ => return newest,
        };
        (!any.is_empty()).then(|| any[self.random.random_range(0..any.len())])
    }

    pub(super) fn answered(&mut self, token: u64, answer: Result<Answer, BrokerError>) {
        if self.proved(token, &answer) || self.told_end(token, &answer) {
            return;
        }
        let Some(attempt) = self.clients.attempts.remove(&token) else { return };
        let Attempt { at, sequence, body, acks, node } = attempt;
        let id = self.clients.producers[at].id;
        match answer {
            Ok(Answer::Appended(appended)) => {
                let running = self.machines[&node].running.as_ref().expect("it answers");
                let by = (running.core.replica(), &running.view);
                self.oracle.acknowledged(by, (id, sequence), acks, &appended, &body);
                if appended.duplicate {
                    self.tally.count("duplicates recognised");
                }
                self.note(format_args!(
                    "ack {id}:{sequence} {acks:?} at {} of {}",
                    appended.base_offset, appended.leader_epoch
                ));
                self.tally.count(match acks {
                    Acks::Leader => "acknowledged: appended by the leader",
                    Acks::Quorum => "acknowledged: appended by a majority",
                    _ => "acknowledged: synced by a majority",
                });
                if acks == Acks::QuorumFsync {
                    self.done(at, sequence, node, body, appended.base_offset);
                } else if self.clients.producers[at].sequence == sequence {
                    self.clients.producers[at].next_at = self.now + 5;
                }
            }
            Ok(Answer::Applied(outcome)) => {
                let number = u64::from_le_bytes(outcome[..].try_into().expect("a number"));
                self.oracle.answered(id.unsigned_abs(), sequence.unsigned_abs().into(), number);
                self.tally.count("commands applied");
                self.done(at, sequence, node, body, number);
            }
            Ok(other) => panic!("{other:?} answers a batch"),
            Err(error) => self.refused(at, sequence, node, &error),
        }
    }

    fn done(&mut self, at: usize, sequence: i32, node: u64, body: Bytes, offset: u64) {
        let pause = self.random.random_range(5..100);
        let producer = &mut self.clients.producers[at];
        if producer.sequence == sequence {
            producer.leader = Some(node);
            producer.last = Some((body, offset));
            producer.body = None;
            producer.sequence += 1;
            producer.attempts = 0;
            producer.next_at = self.now + pause;
            producer.since_healing += 1;
        }
    }

    fn refused(&mut self, at: usize, sequence: i32, node: u64, error: &BrokerError) {
        let reason = error.reason();
        self.note(format_args!("{}:{sequence} refused by {node}: {reason}", at + 1));
        match error {
            BrokerError::DiskFull => self.tally.count("refused by a full disk"),
            BrokerError::UnknownProducer { .. } | BrokerError::OutOfOrderSequence { .. } => {
                // Only a leader that has been deposed and does not know it may have missed what was acknowledged.
                let running = self.machines[&node].running.as_ref();
                let term = running.map_or(0, |running| running.core.visible().term);
                let current = self.clients.producers[at].sequence == sequence;
                assert!(!current || term < self.newest_term, "node {node}: {error}");
                self.tally.count("refused by a deposed leader");
            }
            _ => self.tally.count("refused: not the leader, or lost the leadership"),
        }
        let pause = self.random.random_range(5..60);
        let producer = &mut self.clients.producers[at];
        if producer.sequence == sequence {
            producer.next_at = producer.next_at.min(self.now + pause);
        }
    }

    /// Consumers read from any replica, as far as that one says.
    pub(super) fn consume(&mut self) {
        for at in 0..self.clients.consumers.len() {
            if self.clients.consumers[at].next_at > self.now {
                continue;
            }
            let pause = self.random.random_range(10..200);
            let node = self.random.random_range(1..=self.machines.len() as u64);
            let consumer = &mut self.clients.consumers[at];
            consumer.next_at = self.now + pause;
            let Some(running) = &self.machines[&node].running else { continue };
            let visible = running.core.visible();
            consumer.position = consumer.position.max(visible.log_start_offset);
            let to = match self.setting.plant {
                Some(Plant::ReadAhead) => visible.log_end_offset,
                _ => visible.high_watermark,
            };
            let from = consumer.position;
            if from >= to {
                continue;
            }
            match running.core.reader().read_offsets(from, to, 8 << 10) {
                Ok(stored) => {
                    for entry in &stored {
                        self.oracle.read(entry, consumer.position);
                        consumer.position = entry.end_offset();
                    }
                    self.tally.add("reads by consumers", stored.len() as u64);
                }
                Err(StorageError::Compacted { .. }) => panic!("{from} is said to be readable"),
                Err(error) => panic!("a consumer of node {node}: {error}"),
            }
        }
    }

    /// Each producer sends its last batch once more, as if the answer had been lost.
    pub(super) fn send_last_again(&mut self) {
        let Some(leader) = self.machines.values().find(|machine| machine.leads()) else { return };
        let node = leader.node;
        for at in 0..self.clients.producers.len() {
            let producer = &mut self.clients.producers[at];
            if let Some((body, _)) = producer.last.clone() {
                producer.sequence -= 1;
                let sequence = producer.sequence;
                producer.body = Some(body.clone());
                producer.next_at = self.now + 500;
                self.propose(at, sequence, node, Acks::QuorumFsync, body);
            }
        }
    }

    /// Mean time between a producer's batches is far below this.
    pub(super) const SERVICE_SLICES: u64 = 20_000 / SLICE_MS as u64;
}

fn batch(id: i64, sequence: i32, bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_producer(id, 0, sequence);
    let value = format!("{id}:{sequence}:{}", "x".repeat(bytes));
    builder.push(0, None, Some(value.as_bytes()), &[]).expect("a record fits");
    builder.build().expect("a batch builds")
}
