//! ProducerService: the unary way (structured records, any node) and the stream.
//!
//! Owns: spreading records over partitions and passing batches on to their leaders. Never: the order of a stream's answers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use futures::future::join_all;
use highwater_proto::batch::{BatchBuilder, Compression};
use highwater_proto::partitioner::partition_for_key;
use highwater_proto::v1::producer_service_server::{ProducerService, ProducerServiceServer};
use highwater_proto::{grpc, v1};
use tonic::{Request, Response, Status, Streaming};

use super::append::TIMEOUT_MS_DEFAULT;
use super::door::{Door, batch_limits, deadline, refuse_internal};
use super::in_flight::InFlight;
use super::incoming::Connection;
use super::lean::{self, LeanServer};
use super::status::CallError;
use super::{MESSAGE_BYTES_MAX, connection_of, produce_stream};
use crate::cluster::peer::PeerError;
use crate::cluster::topic_config::TopicConfig;
use crate::error::BrokerError;

/// ProducerService of one listener.
pub(super) struct Producers {
    pub(super) door: Door,
}

impl Producers {
    pub(super) fn server(self) -> LeanServer<ProducerServiceServer<Self>> {
        let handlers = Arc::new(self);
        let others = ProducerServiceServer::from_arc(Arc::clone(&handlers))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let lean = move |request| -> lean::Answer {
            let handlers = Arc::clone(&handlers);
            Box::pin(grpc::answer(request, MESSAGE_BYTES_MAX, async move |request| {
                handlers.produce_stream(request).await
            }))
        };
        LeanServer::new(grpc::PRODUCE_STREAM, lean, others)
    }
}

#[tonic::async_trait]
impl ProducerService for Producers {
    async fn produce(
        &self,
        request: Request<v1::ProduceRequest>,
    ) -> Result<Response<v1::ProduceResponse>, Status> {
        let Connection { in_flight } = connection_of(&request)?;
        let time_left = deadline(request.metadata());
        let mut request = request.into_inner();
        if let Some(time_left) = time_left.and_then(|left| u32::try_from(left.as_millis()).ok()) {
            let asked =
                if request.timeout_ms == 0 { TIMEOUT_MS_DEFAULT } else { request.timeout_ms };
            request.timeout_ms = asked.min(time_left.max(1));
        }
        let produced = self.door.produce(&in_flight, request).await;
        produced.map(Response::new).map_err(|error| self.door.status(&error))
    }

    type ProduceStreamStream =
        Pin<Box<dyn Stream<Item = Result<v1::ProduceStreamResponse, Status>> + Send>>;

    async fn produce_stream(
        &self,
        request: Request<Streaming<v1::ProduceStreamRequest>>,
    ) -> Result<Response<Self::ProduceStreamStream>, Status> {
        let Connection { in_flight } = connection_of(&request)?;
        let time_left = deadline(request.metadata());
        let door = self.door.clone();
        let answers = produce_stream::serve(door, in_flight, request.into_inner(), time_left);
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Door {
    /// Produces for a client: any partition, wherever its leader is.
    async fn produce(
        &self,
        in_flight: &InFlight,
        request: v1::ProduceRequest,
    ) -> Result<v1::ProduceResponse, CallError> {
        let batches = self.partitioned(&request).await?;
        let produced = batches.into_iter().map(|(partition, batch)| {
            let one = v1::ProduceRequest {
                topic: request.topic.clone(),
                partition: Some(partition),
                acks: request.acks,
                batch,
                timeout_ms: request.timeout_ms,
                ..v1::ProduceRequest::default()
            };
            async move { self.until_led(|| self.produce_at_leader(in_flight, one.clone())).await }
        });
        let mut acks = Vec::new();
        let mut failed = None;
        for outcome in join_all(produced).await {
            match outcome {
                Ok(response) => acks.extend(response.acks),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            None => Ok(v1::ProduceResponse { acks }),
            Some(error) => {
                if let CallError::Here(error) = &error {
                    self.metrics.produce_failed(error.reason());
                }
                if acks.is_empty() {
                    return Err(error);
                }
                let why = "some partitions took their records and others failed";
                Err(BrokerError::OutcomeUnknown { why }.into())
            }
        }
    }

    /// One batch for one partition: here, or passed on once.
    async fn produce_at_leader(
        &self,
        in_flight: &InFlight,
        request: v1::ProduceRequest,
    ) -> Result<v1::ProduceResponse, CallError> {
        let leader = match self.produce_here(in_flight, request.clone()).await {
            Err(BrokerError::NotLeader { leader: Some(leader) }) if leader != self.node.id() => {
                leader
            }
            outcome => return Ok(outcome?),
        };
        let address = self.internal_address_of(leader)?;
        match self.calls.forward_produce(&address, request).await {
            Ok(response) => Ok(response),
            Err(PeerError::Refused { reason, message, metadata, .. }) => {
                Err(CallError::There { reason, message, metadata })
            }
            // It may have arrived before the connection broke.
            Err(PeerError::Unreachable { .. }) => {
                let why = "the leader did not answer the call that was passed on to it";
                Err(BrokerError::OutcomeUnknown { why }.into())
            }
        }
    }

    /// One batch for one partition that this node leads; what other nodes pass on ends here.
    pub(super) async fn produce_here(
        &self,
        in_flight: &InFlight,
        request: v1::ProduceRequest,
    ) -> Result<v1::ProduceResponse, BrokerError> {
        let partition = request.partition.ok_or_else(|| BrokerError::InvalidArgument {
            field: "partition".to_owned(),
            why: "an encoded batch needs one".to_owned(),
        })?;
        let batch = v1::ProduceBatch {
            request_id: 0,
            topic: request.topic.clone(),
            topic_id: String::new(),
            partition,
            acks: request.acks,
            batch: request.batch,
            timeout_ms: request.timeout_ms,
        };
        let enqueued = self.append(in_flight, batch).await?;
        let ack = self.appended(enqueued, 0, request.topic, partition).await?;
        Ok(v1::ProduceResponse { acks: vec![ack] })
    }

    /// One encoded batch for each partition that gets records.
    async fn partitioned(
        &self,
        request: &v1::ProduceRequest,
    ) -> Result<BTreeMap<u32, Bytes>, BrokerError> {
        let refuse = |field: &str, why: &str| {
            Err(BrokerError::InvalidArgument { field: field.to_owned(), why: why.to_owned() })
        };
        match (request.batch.is_empty(), request.records.is_empty(), request.partition) {
            (true, true, _) => return refuse("records", "there is nothing to publish"),
            (false, false, _) => return refuse("batch", "give either records or a batch"),
            (false, true, None) => return refuse("partition", "an encoded batch needs one"),
            (false, true, Some(partition)) => {
                return Ok([(partition, request.batch.clone())].into());
            }
            (true, false, _) => {}
        }
        let Ok(compression) = v1::Compression::try_from(request.compression) else {
            return refuse("compression", "not a known codec");
        };
        refuse_internal(&request.topic)?;
        let topic = self.topic(&request.topic, true).await?;
        let any = self.any_partition(topic.partitions.len());
        let count = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        let config = TopicConfig::read(&topic.config);
        let codec = config.compression.unwrap_or_else(|| Compression::from(compression));
        let now_ms = self.clock.wall_ms();
        spread(&request.records, |record| match (request.partition, &record.key) {
            (Some(partition), _) => partition,
            (None, Some(key)) if count > 0 => partition_for_key(key, count),
            (None, _) => any,
        })
        .into_iter()
        .map(|(partition, records)| {
            let mut builder = BatchBuilder::new(codec);
            builder.set_limits(batch_limits(&config));
            records.into_iter().try_for_each(|record| record.push_to(&mut builder, now_ms))?;
            Ok((partition, builder.build()?))
        })
        .collect()
    }
}

/// Records by partition, in the order given.
fn spread(
    records: &[v1::Record],
    partition_of: impl Fn(&v1::Record) -> u32,
) -> BTreeMap<u32, Vec<&v1::Record>> {
    let mut all: BTreeMap<u32, Vec<&v1::Record>> = BTreeMap::new();
    for record in records {
        all.entry(partition_of(record)).or_default().push(record);
    }
    all
}

/// Bounds on what other nodes pass on: as one connection of this node's own.
pub(super) fn forwarded_in_flight(
    door: &Door,
    node: Arc<super::in_flight::ByteBudget>,
) -> InFlight {
    let bytes_max = door.config.limits.in_flight_bytes;
    InFlight::new(bytes_max, node, Arc::clone(&door.metrics))
}
