//! The fake's two streams: produce and subscribe.
//!
//! Owns: what a node says on them, and the faults. Never: the model (`fake` has it).
#![expect(clippy::disallowed_methods, reason = "the fake is the outside that seams lead to")]

use std::collections::BTreeMap;

use highwater_proto::batch::BatchHeader;
use highwater_proto::v1;
use highwater_proto::v1::consumer_service_server::ConsumerService;
use highwater_proto::v1::position::At;
use highwater_proto::v1::produce_stream_request::Message as ProduceMessage;
use highwater_proto::v1::produce_stream_response::Message as ProduceAnswer;
use highwater_proto::v1::producer_service_server::ProducerService;
use highwater_proto::v1::subscribe_request::Message as SubscribeMessage;
use highwater_proto::v1::subscribe_response::Message as SubscribeAnswer;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{ConsumeFault, Node, ProduceFault, detail};

type Answers<T> = UnboundedReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl ProducerService for Node {
    async fn produce(
        &self,
        _: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    type ProduceStreamStream = Answers<v1::ProduceStreamResponse>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let (answers, outbound) = mpsc::unbounded_channel();
        let node = self.clone();
        tokio::spawn(async move {
            if let Err(status) = node.take_batches(request.into_inner(), &answers).await {
                _ = answers.send(Err(status));
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(outbound)))
    }
}

impl Node {
    async fn take_batches(
        &self,
        mut requests: Streaming<v1::ProduceStreamRequest>,
        answers: &mpsc::UnboundedSender<Result<v1::ProduceStreamResponse, Status>>,
    ) -> Result<(), Status> {
        let say = |answer| {
            _ = answers.send(Ok(v1::ProduceStreamResponse { message: Some(answer) }));
        };
        let mut later = None;
        while let Some(request) = requests.next().await {
            while self.fake.world.lock().held == Some(self.index) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            match request?.message {
                Some(ProduceMessage::Init(init)) => {
                    let mut world = self.fake.world.lock();
                    let mut producer_id = init.producer_id;
                    if init.idempotent && producer_id == 0 {
                        producer_id = world.next_producer_id;
                        world.next_producer_id += 1;
                    }
                    say(ProduceAnswer::Initialized(v1::ProduceInitialized {
                        producer_id,
                        batch_bytes_max: 4 << 20,
                        ..Default::default()
                    }));
                }
                Some(ProduceMessage::Batch(batch)) => {
                    let request_id = batch.request_id;
                    let answer = self.take_batch(batch)?;
                    let first_later = later.take();
                    match answer {
                        Taken::Say(answer) => say(answer),
                        Taken::Later(answer) => later = Some(answer),
                        Taken::Nothing => {}
                        Taken::Refuse(error) => {
                            let error = Some(error);
                            say(ProduceAnswer::Failure(v1::ProduceFailure { request_id, error }));
                        }
                    }
                    if let Some(answer) = first_later {
                        say(answer);
                    }
                }
                None => {}
            }
        }
        Ok(())
    }

    fn take_batch(&self, batch: v1::ProduceBatch) -> Result<Taken, Status> {
        let mut world = self.fake.world.lock();
        let header = BatchHeader::read(&batch.batch).unwrap();
        world.arrivals.push((batch.partition, header.base_sequence));
        let partition = batch.partition as usize;
        if batch.topic_id != world.topic_id {
            return Ok(Taken::Refuse(detail("TOPIC_ID_MISMATCH", false, false)));
        }
        if world.logs[partition].leader != self.index {
            return Ok(Taken::Refuse(world.not_leader(partition)));
        }
        let fault = world.produce_faults.pop_front().flatten();
        match fault {
            Some(ProduceFault::BreakBeforeWrite) => return Err(Status::unavailable("broken")),
            Some(ProduceFault::UnknownWithoutWrite) => {
                return Ok(Taken::Refuse(detail("OUTCOME_UNKNOWN", true, true)));
            }
            Some(ProduceFault::Overloaded) => {
                return Ok(Taken::Refuse(detail("OVERLOADED", true, false)));
            }
            Some(ProduceFault::Invalid) => {
                return Ok(Taken::Refuse(detail("INVALID_BATCH", false, false)));
            }
            _ => {}
        }
        let epoch = world.logs[partition].epoch;
        let (base_offset, duplicate) = match world.logs[partition].append(&batch.batch) {
            Ok(appended) => appended,
            Err(error) => return Ok(Taken::Refuse(error)),
        };
        drop(world);
        self.fake.changed.notify_waiters();
        let ack = ProduceAnswer::Ack(v1::ProduceAck {
            request_id: batch.request_id,
            topic: batch.topic,
            partition: batch.partition,
            base_offset,
            record_count: header.offset_span(),
            leader_epoch: epoch,
            duplicate,
            reached: batch.acks,
            append_time_ms: 1,
        });
        match fault {
            Some(ProduceFault::BreakAfterWrite) => Err(Status::unavailable("broken")),
            Some(ProduceFault::WriteThenUnknown) => {
                Ok(Taken::Refuse(detail("OUTCOME_UNKNOWN", true, true)))
            }
            Some(ProduceFault::Swallow) => Ok(Taken::Nothing),
            Some(ProduceFault::AnswerLater) => Ok(Taken::Later(ack)),
            _ => Ok(Taken::Say(ack)),
        }
    }
}

/// What follows from a batch.
enum Taken {
    Say(ProduceAnswer),
    Later(ProduceAnswer),
    Refuse(v1::ErrorDetail),
    Nothing,
}

#[tonic::async_trait]
impl ConsumerService for Node {
    async fn fetch(
        &self,
        _: Request<v1::FetchRequest>,
    ) -> Result<Response<v1::FetchResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    type SubscribeStream = Answers<v1::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<Streaming<v1::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let (answers, outbound) = mpsc::unbounded_channel();
        let node = self.clone();
        tokio::spawn(async move {
            node.fake.world.lock().open_subscriptions += 1;
            let ended = tokio::select! {
                ended = node.give_batches(request.into_inner(), &answers) => ended,
                () = answers.closed() => Ok(()),
            };
            node.fake.world.lock().open_subscriptions -= 1;
            if let Err(status) = ended {
                _ = answers.send(Err(status));
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(outbound)))
    }
}

impl Node {
    async fn give_batches(
        &self,
        mut requests: Streaming<v1::SubscribeRequest>,
        answers: &mpsc::UnboundedSender<Result<v1::SubscribeResponse, Status>>,
    ) -> Result<(), Status> {
        let say = |answer| {
            _ = answers.send(Ok(v1::SubscribeResponse { message: Some(answer) }));
        };
        let mut credit = 0i64;
        let mut cursors: BTreeMap<usize, i64> = BTreeMap::new();
        let heartbeat = self.fake.world.lock().heartbeat;
        loop {
            let changed = self.fake.changed.notified();
            while credit > 0 {
                match self.next_message(&mut cursors) {
                    Next::Say(answer, bytes) => {
                        credit -= bytes;
                        say(answer);
                    }
                    Next::Idle => break,
                    Next::Break => return Err(Status::unavailable("broken")),
                    Next::Silence => std::future::pending().await,
                }
            }
            tokio::select! {
                request = requests.next() => match request {
                    None => return Ok(()),
                    Some(request) => match request?.message {
                        Some(SubscribeMessage::Init(init)) => {
                            credit += i64::try_from(init.credit.unwrap().bytes).unwrap();
                            for asked in init.partitions {
                                say(self.assign(&mut cursors, &asked));
                            }
                        }
                        Some(SubscribeMessage::Credit(more)) => {
                            credit += i64::try_from(more.bytes).unwrap();
                        }
                        Some(SubscribeMessage::Seek(asked)) => say(self.assign(&mut cursors, &asked)),
                        _ => {}
                    },
                },
                () = changed => {}
                () = tokio::time::sleep(heartbeat) => {
                    say(SubscribeAnswer::Heartbeat(v1::Heartbeat {}));
                }
            }
        }
    }

    fn assign(
        &self,
        cursors: &mut BTreeMap<usize, i64>,
        asked: &v1::SubscribePartition,
    ) -> SubscribeAnswer {
        let world = self.fake.world.lock();
        let number = asked.partition as usize;
        let log = &world.logs[number];
        let (topic, partition) = (asked.topic.clone(), asked.partition);
        if asked.topic_id != world.topic_id {
            let error = Some(detail("TOPIC_ID_MISMATCH", false, false));
            return SubscribeAnswer::Revoked(v1::Revoked { topic, partition, error });
        }
        if log.leader != self.index {
            let leader_node_id = log.leader as u64 + 1;
            let leader_address = world.addresses[log.leader].to_string();
            return SubscribeAnswer::Redirect(v1::Redirect {
                topic,
                partition,
                leader_node_id,
                leader_address,
                to_replica: false,
            });
        }
        let offset = match asked.position.unwrap().at.unwrap() {
            At::Offset(offset) => offset,
            At::Start(_) => log.start,
            At::End(_) => log.next,
            At::TimestampMs(_) => log.start + 1,
        };
        if offset < log.start || offset > log.next {
            let error = Some(detail("OFFSET_OUT_OF_RANGE", false, false));
            return SubscribeAnswer::Revoked(v1::Revoked { topic, partition, error });
        }
        cursors.insert(number, offset);
        SubscribeAnswer::Assigned(v1::Assigned {
            topic,
            partition,
            offset,
            high_watermark: log.next,
            log_start_offset: log.start,
            ..Default::default()
        })
    }

    /// The next message of any partition, and what it costs.
    fn next_message(&self, cursors: &mut BTreeMap<usize, i64>) -> Next {
        let mut world = self.fake.world.lock();
        for (number, cursor) in cursors.clone() {
            let topic = crate::fake::TOPIC.to_owned();
            let partition = u32::try_from(number).unwrap();
            if world.logs[number].leader != self.index {
                cursors.remove(&number);
                let leader = world.logs[number].leader;
                let leader_address = world.addresses[leader].to_string();
                let leader_node_id = leader as u64 + 1;
                let redirect = v1::Redirect {
                    topic,
                    partition,
                    leader_node_id,
                    leader_address,
                    to_replica: false,
                };
                return Next::Say(SubscribeAnswer::Redirect(redirect), 0);
            }
            let log = &world.logs[number];
            let Some((base, _)) = log.batches.range(..=cursor).next_back() else { continue };
            if cursor >= log.next {
                continue;
            }
            let mut batches: Vec<_> =
                log.batches.range(base..).take(2).map(|(_, batch)| batch.clone()).collect();
            let (high_watermark, end) = (log.next, batches.last().unwrap());
            let end = BatchHeader::read(end).unwrap();
            let next_offset = end.base_offset + i64::from(end.offset_span());
            match world.consume_faults.pop_front().flatten() {
                None => {}
                Some(ConsumeFault::Break) => return Next::Break,
                Some(ConsumeFault::FallSilent) => return Next::Silence,
                Some(ConsumeFault::LeaveOut) => _ = batches.remove(0),
                Some(ConsumeFault::RedirectNowhere) => {
                    cursors.remove(&number);
                    let redirect = v1::Redirect { topic, partition, ..Default::default() };
                    return Next::Say(SubscribeAnswer::Redirect(redirect), 0);
                }
                Some(ConsumeFault::RevokeForNow) => {
                    cursors.remove(&number);
                    let error = Some(detail("QUARANTINED", true, false));
                    let revoked = v1::Revoked { topic, partition, error };
                    return Next::Say(SubscribeAnswer::Revoked(revoked), 0);
                }
            }
            cursors.insert(number, next_offset);
            let bytes: usize = batches.iter().map(|batch| batch.len()).sum();
            world.given_bytes += bytes;
            let message = v1::FetchedBatch {
                topic,
                partition,
                batches,
                next_offset,
                high_watermark,
                ..Default::default()
            };
            return Next::Say(SubscribeAnswer::Batch(message), i64::try_from(bytes).unwrap());
        }
        Next::Idle
    }
}

/// What a node does next.
enum Next {
    Say(SubscribeAnswer, i64),
    Idle,
    Break,
    Silence,
}
