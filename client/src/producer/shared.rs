//! What a producer's handles and its driver share: lanes, the bound on unacknowledged bytes, the register of batches.
//!
//! Owns: admission. Never: sends anything; it only wakes the driver.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use highwater_proto::batch::BatchBuilder;
use highwater_proto::partitioner::partition_for_key;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, Semaphore, TryAcquireError};
use tokio::time::Instant;
use tonic::Code;

use crate::client::Client;
use crate::error::{Refusal, SendError, reason};
use crate::metadata::TopicView;
use crate::producer::Settings;
use crate::producer::completion::{Completion, Outcome, Ticket};
use crate::producer::gather::{Gathered, Lane, Limits, RECORD_OVERHEAD_BYTES, Take};
use crate::record::Record;

/// See the module.
///
/// Invariants: every batch that has not been resolved is in `register`; the bound's missing permits are the costs of the
/// events in those batches; once `closed` or `poisoned` is set and a lane has been locked since, nothing enters that lane.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) wake: Notify,
    /// By partition number; empty until the topic is known; grows only.
    lanes: RwLock<Vec<Mutex<Lane>>>,
    /// The topic's id when it was first seen: a topic of the same name created later is another topic.
    topic_id: OnceLock<String>,
    record_bytes_max: AtomicUsize,
    batch_bytes_max: AtomicUsize,
    bound: Semaphore,
    register: Mutex<BTreeMap<u64, Arc<Completion>>>,
    next_id: AtomicU64,
    /// Partitions that have got something to send.
    dirty: Mutex<Vec<u32>>,
    /// Where records without a key go at the moment.
    sticky: AtomicU32,
    closed: AtomicBool,
    poisoned: OnceLock<Refusal>,
    /// The first failure since the last flush.
    failed: Mutex<Option<SendError>>,
}

impl Shared {
    pub(crate) fn new(client: Client, settings: Settings) -> Self {
        let bound = settings.unacked_bytes_max.clamp(1, Semaphore::MAX_PERMITS);
        let batch_bytes_max = settings.batch_bytes_max;
        let sticky = client.shared.env.below(u32::MAX);
        Self {
            client,
            wake: Notify::new(),
            lanes: RwLock::default(),
            topic_id: OnceLock::new(),
            record_bytes_max: AtomicUsize::new(0),
            batch_bytes_max: AtomicUsize::new(batch_bytes_max),
            bound: Semaphore::new(bound),
            register: Mutex::default(),
            next_id: AtomicU64::new(0),
            dirty: Mutex::default(),
            sticky: AtomicU32::new(sticky),
            closed: AtomicBool::new(false),
            poisoned: OnceLock::new(),
            failed: Mutex::default(),
            settings,
        }
    }

    /// The id of the topic that this producer writes to; empty until it is known.
    pub(crate) fn topic_id(&self) -> &str {
        self.topic_id.get().map_or("", String::as_str)
    }

    /// Takes in what became known of the topic. False if it is another topic of the same name.
    pub(crate) fn learn(&self, view: &TopicView) -> bool {
        if self.topic_id.get_or_init(|| view.id.clone()) != &view.id {
            return false;
        }
        self.record_bytes_max.store(view.record_bytes_max, Ordering::Relaxed);
        if self.lanes.read().len() < view.leaders.len() {
            let mut lanes = self.lanes.write();
            while lanes.len() < view.leaders.len() {
                lanes.push(Mutex::default());
            }
        }
        true
    }

    /// Takes in the largest batch that a broker accepts.
    pub(crate) fn limit_batches(&self, bytes: usize) {
        if bytes > 0 {
            self.batch_bytes_max.fetch_min(bytes, Ordering::Relaxed);
        }
    }

    fn is_ready(&self) -> bool {
        !self.lanes.read().is_empty()
    }

    /// Learns about the topic, if that has not been done.
    pub(crate) async fn prepare(&self) -> Result<(), SendError> {
        if self.is_ready() {
            return Ok(());
        }
        let shared = &self.client.shared;
        let deadline = shared.env.now() + self.settings.delivery_timeout;
        let topic = &self.settings.topic;
        let view =
            shared.metadata.lookup(&shared.connections, &shared.config, topic, deadline).await;
        let view = view.map_err(|refusal| SendError::Unroutable(refusal.nothing_sent()))?;
        self.learn(&view);
        if view.leaders.is_empty() {
            let text = format!("topic '{topic}' has no partitions yet");
            let refusal = Refusal::local(reason::NOT_READY, Code::Unavailable, text);
            return Err(SendError::Unroutable(refusal));
        }
        Ok(())
    }

    /// What an event holds of the bound: never more than all of it, so that a large one is admitted alone.
    pub(crate) fn cost_of(&self, record: &Record) -> usize {
        let cost = record.payload_bytes() + RECORD_OVERHEAD_BYTES;
        cost.min(self.settings.unacked_bytes_max.max(1)).min(u32::MAX as usize)
    }

    /// Takes `cost` from the bound, waiting as long as an event may take to be delivered.
    pub(crate) async fn reserve(&self, cost: usize) -> Result<(), SendError> {
        match self.try_reserve(cost) {
            Err(SendError::Full) => {}
            done => return done,
        }
        let after = self.settings.delivery_timeout;
        let permits = u32::try_from(cost).unwrap_or(u32::MAX);
        match tokio::time::timeout(after, self.bound.acquire_many(permits)).await {
            Ok(Ok(permit)) => {
                permit.forget();
                Ok(())
            }
            Ok(Err(_closed)) => Err(SendError::Closed),
            Err(_late) => {
                Err(SendError::TimedOut { after, may_have_been_written: false, last: None })
            }
        }
    }

    /// Takes `cost` from the bound, if it is there.
    pub(crate) fn try_reserve(&self, cost: usize) -> Result<(), SendError> {
        let permits = u32::try_from(cost).unwrap_or(u32::MAX);
        match self.bound.try_acquire_many(permits) {
            Ok(permit) => {
                permit.forget();
                Ok(())
            }
            Err(TryAcquireError::Closed) => Err(SendError::Closed),
            Err(TryAcquireError::NoPermits) => Err(SendError::Full),
        }
    }

    /// Puts an event whose `cost` is reserved into its lane; on failure the reservation is given back.
    pub(crate) fn admit(&self, record: &Record, cost: usize) -> Result<Ticket, SendError> {
        let admitted = self.try_admit(record, cost);
        if admitted.is_err() {
            self.bound.add_permits(cost);
        }
        admitted
    }

    fn try_admit(&self, record: &Record, cost: usize) -> Result<Ticket, SendError> {
        let lanes = self.lanes.read();
        let count = u32::try_from(lanes.len()).unwrap_or(u32::MAX);
        if count == 0 {
            return Err(SendError::Full);
        }
        let partition = self.partition_of(record, count);
        let lane = lanes.get(partition as usize);
        let lane = lane.ok_or_else(|| self.no_such_partition(partition, count))?;
        let record_bytes_max = self.record_bytes_max.load(Ordering::Relaxed);
        let bytes = record.payload_bytes();
        if bytes > record_bytes_max {
            return Err(SendError::TooLarge { bytes, bytes_max: record_bytes_max });
        }
        let env = &self.client.shared.env;
        let timestamp_ms = record.timestamp_ms.unwrap_or_else(|| env.wall_ms());
        let limits = Limits {
            compression: self.settings.compression,
            batch_bytes_max: self.batch_bytes_max.load(Ordering::Relaxed),
            record_bytes_max,
        };
        let mut lane = lane.lock();
        // Looked at under the lane's lock: whoever closes locks each lane afterwards.
        self.check_open()?;
        let mut id = 0;
        let fresh = || {
            id = self.next_id.fetch_add(1, Ordering::Relaxed);
            (id, env.now())
        };
        let pushed = lane
            .push(record, timestamp_ms, cost, &limits, fresh)
            .map_err(|error| SendError::InvalidRecord { source: Arc::new(error) })?;
        if let Some(completion) = pushed.opened {
            self.register.lock().insert(id, completion);
        }
        drop(lane);
        if pushed.wake {
            self.dirty.lock().push(partition);
            self.wake.notify_one();
        }
        Ok(pushed.ticket)
    }

    fn check_open(&self) -> Result<(), SendError> {
        if let Some(refusal) = self.poisoned.get() {
            return Err(SendError::Unroutable(refusal.clone()));
        }
        if self.closed.load(Ordering::Acquire) { Err(SendError::Closed) } else { Ok(()) }
    }

    fn partition_of(&self, record: &Record, count: u32) -> u32 {
        match (record.partition.or(self.settings.partition), &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) => partition_for_key(key, count),
            (None, None) => self.sticky.load(Ordering::Relaxed) % count,
        }
    }

    fn no_such_partition(&self, partition: u32, count: u32) -> SendError {
        let topic = &self.settings.topic;
        let text = format!("topic '{topic}' has no partition {partition}: it has {count}, from 0");
        let refusal = Refusal::local(reason::UNKNOWN_PARTITION, Code::NotFound, text);
        SendError::Unroutable(refusal)
    }

    /// Records without a key go to the next partition from now on, if they went to this one.
    pub(crate) fn move_sticky(&self, partition: u32) {
        let count = u32::try_from(self.lanes.read().len()).unwrap_or(u32::MAX).max(1);
        let sticky = self.sticky.load(Ordering::Relaxed);
        if sticky % count == partition {
            let next = (partition + 1) % count;
            // Somebody else may have moved it: just as well.
            let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
            _ = self.sticky.compare_exchange(sticky, next, set, fetch);
        }
    }

    /// The next batch of a partition, see [`Lane::take`].
    pub(crate) fn take(&self, partition: u32, now: Instant, idle: bool) -> Take {
        let lanes = self.lanes.read();
        let Some(lane) = lanes.get(partition as usize) else { return Take::Nothing };
        lane.lock().take(now, self.settings.linger, idle)
    }

    /// Does something with the lane of a partition.
    pub(crate) fn with_lane<T>(
        &self,
        partition: u32,
        act: impl FnOnce(&mut Lane) -> T,
    ) -> Option<T> {
        self.lanes.read().get(partition as usize).map(|lane| act(&mut lane.lock()))
    }

    /// Gives a builder back to its partition.
    pub(crate) fn recycle(&self, partition: u32, builder: BatchBuilder) {
        self.with_lane(partition, |lane| lane.recycle(builder));
    }

    /// Partitions that have got something to send since the last call.
    pub(crate) fn take_dirty(&self) -> Vec<u32> {
        std::mem::take(&mut *self.dirty.lock())
    }

    /// Ends a batch: its tickets resolve, its bytes are free again.
    pub(crate) fn resolve(&self, id: u64, completion: &Completion, cost: usize, outcome: Outcome) {
        if let Err(error) = &outcome {
            self.failed.lock().get_or_insert_with(|| error.clone());
        }
        // The bytes are free before anybody is told, and nobody misses the batch in the register before all are told.
        self.bound.add_permits(cost);
        completion.complete(outcome);
        self.register.lock().remove(&id);
    }

    /// Ends batches that were never sent.
    pub(crate) fn fail_gathered(&self, batches: Vec<Gathered>, error: &SendError) {
        for Gathered { id, completion, cost, .. } in batches {
            self.resolve(id, &completion, cost, Err(error.clone()));
        }
    }

    /// Makes every later `send` fail, and fails what has not been sent.
    pub(crate) fn poison(&self, refusal: &Refusal) {
        _ = self.poisoned.set(refusal.clone());
        let count = u32::try_from(self.lanes.read().len()).unwrap_or(u32::MAX);
        for partition in 0..count {
            let batches = self.with_lane(partition, Lane::take_all).unwrap_or_default();
            self.fail_gathered(batches, &SendError::Unroutable(refusal.clone()));
        }
    }

    /// Ends every batch there is: the driver is gone and nobody else would.
    pub(crate) fn abandon(&self) {
        self.closed.store(true, Ordering::Release);
        self.bound.close();
        let count = u32::try_from(self.lanes.read().len()).unwrap_or(u32::MAX);
        for partition in 0..count {
            let batches = self.with_lane(partition, Lane::take_all).unwrap_or_default();
            self.fail_gathered(batches, &SendError::Closed);
        }
        let left = std::mem::take(&mut *self.register.lock());
        for completion in left.into_values() {
            let refusal = Refusal::connection("the client's runtime stopped");
            completion.complete(Err(SendError::Refused { refusal, may_have_been_written: true }));
        }
    }

    /// Admits nothing more. What was admitted is sent without lingering.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.bound.close();
        self.seal_all();
        self.wake.notify_one();
    }

    /// Whether nothing more comes and everything is resolved.
    pub(crate) fn is_finished(&self) -> bool {
        self.closed.load(Ordering::Acquire) && self.register.lock().is_empty()
    }

    fn seal_all(&self) {
        let lanes = self.lanes.read();
        for (lane, partition) in lanes.iter().zip(0..) {
            if lane.lock().seal() {
                self.dirty.lock().push(partition);
            }
        }
        drop(lanes);
        self.wake.notify_one();
    }

    /// Waits until everything admitted so far is resolved; the first failure since the last flush.
    pub(crate) async fn flush(&self) -> Result<(), SendError> {
        self.seal_all();
        let admitted: Vec<_> = self.register.lock().values().cloned().collect();
        for completion in admitted {
            _ = completion.wait().await;
        }
        self.failed.lock().take().map_or(Ok(()), Err)
    }

    /// Bytes admitted and not resolved.
    pub(crate) fn unacked_bytes(&self) -> usize {
        let bound = self.settings.unacked_bytes_max.clamp(1, Semaphore::MAX_PERMITS);
        bound.saturating_sub(self.bound.available_permits())
    }
}
