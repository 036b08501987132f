//! A member's stream: passes on what it says to its group's coordinator, and what it is told.
//!
//! Owns: the stream's first message, its end, and the way between messages and the coordinator's words. Never: what follows from
//! them, or any state that outlives the stream: membership does.

use std::time::Duration;

use futures::Stream;
use highwater_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use v1::join_request::Message as Request;
use v1::join_response::Message as Response;

use super::door::{Door, expired};
use super::screen::Call;
use super::status::CallError;
use super::turned_on;
use crate::error::BrokerError;
use crate::groups::{
    Activity, Gone, Heartbeat, JoinSpec, MemberLine, Owned, Report, ToMember, check_count,
};

/// Messages between the task and the connection.
const QUEUED_MAX: usize = 4;

/// Starts the task of a stream.
pub(super) fn serve(
    door: Door,
    inbound: Streaming<v1::JoinRequest>,
    deadline: Option<Duration>,
) -> impl Stream<Item = Result<v1::JoinResponse, Status>> {
    let (outbound, told) = mpsc::channel(QUEUED_MAX);
    let guard = door.metrics.stream_opened("group");
    let tasks = door.tasks.clone();
    let gone = outbound.clone();
    tasks.spawn(async move {
        let _guard = guard;
        let (line_out, mut line) = watch::channel(None);
        let ended = tokio::select! {
            // The connection dropped the other half: nobody listens any more.
            () = gone.closed() => Ended::Gone,
            () = expired(deadline) => {
                Ended::With(Status::deadline_exceeded("the stream's deadline has passed"))
            }
            ended = run(&door, inbound, &outbound, &line_out) => ended,
        };
        let line: Option<MemberLine> = line.borrow_and_update().clone();
        if let Some(line) = line {
            line.disconnected().await;
        }
        if let Ended::With(status) = ended {
            // If the client has left meanwhile, there is nobody to tell.
            let _ = gone.send(Err(status)).await;
        }
    });
    ReceiverStream::new(told)
}

/// How a stream ends.
enum Ended {
    /// With an error for the client.
    With(Status),
    /// The client has left.
    Gone,
}

type Outbound = mpsc::Sender<Result<v1::JoinResponse, Status>>;

async fn run(
    door: &Door,
    mut inbound: Streaming<v1::JoinRequest>,
    outbound: &Outbound,
    line_out: &watch::Sender<Option<MemberLine>>,
) -> Ended {
    let refuse = |error: BrokerError| Ended::With(door.status(&CallError::Here(error)));
    let init = match inbound.message().await {
        Ok(Some(v1::JoinRequest { message: Some(Request::Init(init)) })) => init,
        Ok(Some(_)) => {
            return Ended::With(Status::invalid_argument("the first message must be init"));
        }
        Ok(None) | Err(_) => return Ended::Gone,
    };
    let (group, returns) = (init.group.clone(), init.returns);
    let spec = spec(door, init);
    let (session_timeout, progress_timeout) = (spec.session_timeout, spec.progress_timeout);
    let (line, mut told) = match door.groups.join(&group, spec, returns).await {
        Ok(joined) => joined,
        Err(error) => return refuse(error),
    };
    line_out.send_replace(Some(line.clone()));
    let joined = Response::Joined(v1::Joined {
        broker: Some(door.broker_info()),
        session_timeout_ms: millis(session_timeout),
        progress_timeout_ms: millis(progress_timeout),
    });
    if send(outbound, joined).await.is_err() {
        return Ended::Gone;
    }
    let mut stopping = door.node.watch_stopping();
    loop {
        tokio::select! {
            request = inbound.message() => match request {
                Ok(Some(request)) => {
                    let refused = match took(door, &line, request).await {
                        Ok(refused) => refused,
                        Err(error) => return Ended::With(error.unwrap_or_else(|error| {
                            door.status(&CallError::Here(error))
                        })),
                    };
                    if let Some(refused) = refused && send(outbound, refused).await.is_err() {
                        return Ended::Gone;
                    }
                }
                // A member that says nothing any more has no use for the stream.
                Ok(None) | Err(_) => return Ended::Gone,
            },
            message = told.recv() => {
                let Some(message) = message else {
                    return refuse(BrokerError::NotCoordinator { leader: None });
                };
                let message = match response(door, message) {
                    Ok(message) => message,
                    Err(Some(fenced)) => return refuse(fenced),
                    // It left: the end of the stream says that it is done.
                    Err(None) => return Ended::Gone,
                };
                if send(outbound, message).await.is_err() {
                    return Ended::Gone;
                }
            }
            () = turned_on(&mut stopping) => {
                return refuse(BrokerError::NotCoordinator { leader: None });
            }
        }
    }
}

async fn send(outbound: &Outbound, message: Response) -> Result<(), ()> {
    let response = v1::JoinResponse { message: Some(message) };
    outbound.send(Ok(response)).await.map_err(|_| ())
}

fn spec(door: &Door, init: v1::JoinInit) -> JoinSpec {
    let options = door.groups.options();
    JoinSpec {
        session_timeout: options.session_timeout(init.session_timeout_ms),
        progress_timeout: options.progress_timeout(init.progress_timeout_ms),
        member_id: init.member_id,
        static_id: init.static_id,
        client_id: init.client.map(|client| client.client_id).unwrap_or_default(),
        topics: init.topics.into_iter().collect(),
    }
}

/// Passes on what a member says, or answers it where that is refused. The error is what its stream ends with.
async fn took(
    door: &Door,
    line: &MemberLine,
    request: v1::JoinRequest,
) -> Result<Option<Response>, Result<Status, BrokerError>> {
    match request.message {
        Some(Request::Init(_)) => {
            return Err(Ok(Status::invalid_argument("init may come only once")));
        }
        Some(Request::Heartbeat(heartbeat)) => {
            check_count(heartbeat.reports.len()).map_err(Err)?;
            let report = |it: v1::PartitionReport| Report {
                place: (it.topic, it.partition),
                activity: Activity(it.activity),
            };
            line.heartbeat(Heartbeat {
                sequence: heartbeat.sequence,
                has_progressed: heartbeat.has_progressed,
                extend: Duration::from_millis(heartbeat.extend_ms.into()),
                reports: heartbeat.reports.into_iter().map(report).collect(),
            })
            .await;
        }
        Some(Request::Release(release)) => {
            check_count(release.partitions.len()).map_err(Err)?;
            line.release(release.partitions.into_iter().map(owned).collect()).await;
        }
        Some(Request::Commit(commit)) => {
            check_count(commit.offsets.len()).map_err(Err)?;
            let mut topics = commit.offsets.iter().filter_map(|it| it.partition.as_ref());
            if let Err(error) = topics.try_for_each(|it| door.check(Call::Commit, &it.topic)) {
                let (request_id, fenced) = (commit.request_id, Vec::new());
                let error = Some(door.detail(&error));
                return Ok(Some(Response::Committed(v1::MemberCommitted {
                    request_id,
                    fenced,
                    error,
                })));
            }
            let offset = |it: v1::OwnedOffset| {
                (owned(it.partition.unwrap_or_default()), it.offset, it.metadata)
            };
            let offsets = commit.offsets.into_iter().map(offset).collect();
            line.commit(commit.request_id, offsets).await;
        }
        Some(Request::Leave(_)) => line.leave().await,
        // A message of a later version.
        None => {}
    }
    Ok(None)
}

/// What a member is told, or what its stream ends with.
fn response(door: &Door, message: ToMember) -> Result<Response, Option<BrokerError>> {
    Ok(match message {
        ToMember::Assignment { epoch, partitions } => {
            let partitions = partitions.into_iter().map(|assigned| v1::AssignedPartition {
                topic: assigned.owned.topic,
                partition: assigned.owned.partition,
                epoch: assigned.owned.epoch,
                committed_offset: assigned.committed,
                is_wanted_back: assigned.is_wanted_back,
                topic_id: assigned.topic_id,
            });
            let partitions = partitions.collect();
            Response::Assignment(v1::Assignment { group_epoch: epoch, partitions })
        }
        ToMember::Committed { request_id, outcome } => {
            let (fenced, error) = match outcome {
                Ok(fenced) => (fenced, None),
                Err(error) => (Vec::new(), Some(door.detail(&error))),
            };
            let fenced = fenced.into_iter().map(|owned| v1::OwnedPartition {
                topic: owned.topic,
                partition: owned.partition,
                epoch: owned.epoch,
            });
            let fenced = fenced.collect();
            Response::Committed(v1::MemberCommitted { request_id, fenced, error })
        }
        ToMember::Heartbeat { sequence } => Response::Heartbeat(v1::GroupHeartbeat { sequence }),
        ToMember::Gone(Gone::Left) => return Err(None),
        ToMember::Gone(Gone::Silent) => {
            return Err(Some(fenced(
                "SILENT",
                "nothing was heard from it within its session timeout",
            )));
        }
        ToMember::Gone(Gone::Stuck) => {
            return Err(Some(fenced("STUCK", "it held partitions without progress for too long")));
        }
        ToMember::Gone(Gone::Replaced) => return Err(Some(BrokerError::replaced())),
    })
}

fn fenced(cause: &'static str, why: &'static str) -> BrokerError {
    BrokerError::MemberFenced { cause, why }
}

fn owned(it: v1::OwnedPartition) -> Owned {
    Owned { topic: it.topic, partition: it.partition, epoch: it.epoch }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
