//! The session with a group's coordinator: one task that keeps a stream to it, wherever it is.
//!
//! Owns: finding the coordinator, signs of life, the lease, when commits are sent. Never: what is owned and what is done
//! (`membership` knows).
//!
//! The lease: this member counts as one for a session's time after it sent the last heartbeat that was answered. The coordinator counts
//! from when that arrived, which is later. So this side always stops reading before somebody else may begin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use highwater_proto::v1;
use highwater_proto::v1::join_request::Message as Request;
use highwater_proto::v1::join_response::Message as Response;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Streaming};

use super::membership::{Membership, Offsets};
use crate::client::Client;
use crate::config::Backoff;
use crate::connections::group_service;
use crate::error::{ConsumeError, Refusal, reason};
use crate::metadata::Order;
use crate::refresher::{earliest, sleep_until};

/// Longest time between two heartbeats, and the part of the session's time that it is at the most.
const HEARTBEAT_MAX: Duration = Duration::from_secs(3);
const HEARTBEATS_PER_SESSION: u32 = 5;
/// Longest wait for a coordinator to answer the first message: it may have to read its log first.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a session that is ended waits for its last commit, and for the coordinator to see it go.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

/// What a member was told about its group.
#[derive(Clone, Debug)]
pub(super) struct GroupSettings {
    pub(super) group: String,
    pub(super) topic: String,
    pub(super) member_id: String,
    pub(super) static_id: String,
    pub(super) session_timeout: Duration,
    pub(super) progress_timeout: Duration,
    pub(super) commit_interval: Duration,
}

/// What the service asks of its session.
#[derive(Debug)]
pub(super) enum Ask {
    /// Commit what is done; answered when that is stored.
    Commit(oneshot::Sender<Result<(), Refusal>>),
    /// Commit what is done and leave; answered when that has happened.
    Close(oneshot::Sender<()>),
}

/// A stream to the coordinator.
struct Line {
    address: Arc<str>,
    requests: mpsc::UnboundedSender<v1::JoinRequest>,
    answers: Streaming<v1::JoinResponse>,
}

impl Line {
    fn send(&self, message: Request) {
        // If the stream is gone, its other half says so.
        _ = self.requests.send(v1::JoinRequest { message: Some(message) });
    }
}

/// Why a stream is not used any more.
enum Over {
    /// Another one is needed.
    Lost(Refusal),
    /// The service is done.
    Done,
}

/// See the module.
pub(super) struct Session {
    client: Client,
    settings: GroupSettings,
    membership: Arc<Membership>,
    asks: mpsc::UnboundedReceiver<Ask>,
    /// Where the coordinator is, as far as somebody said.
    hint: Option<Arc<str>>,
    /// This member counts as one until then.
    lease_ends: Instant,
    has_lease: bool,
    /// The group knew this member once.
    has_joined: bool,
    session_timeout: Duration,
    heartbeat_sequence: u64,
    /// When heartbeats were sent that are not answered yet.
    unanswered: BTreeMap<u64, Instant>,
    seen_progress: u64,
    commit_requests: u64,
    /// Who waits for a commit to be stored.
    waiting: Vec<(u64, oneshot::Sender<Result<(), Refusal>>)>,
    /// Told when the first stream is open, or cannot be.
    joined: Option<oneshot::Sender<Result<(), Refusal>>>,
}

impl Session {
    pub(super) fn new(
        client: Client,
        settings: GroupSettings,
        membership: Arc<Membership>,
        asks: mpsc::UnboundedReceiver<Ask>,
        joined: oneshot::Sender<Result<(), Refusal>>,
    ) -> Self {
        let lease_ends = client.shared.env.now();
        Self {
            session_timeout: settings.session_timeout,
            client,
            settings,
            membership,
            asks,
            hint: None,
            lease_ends,
            has_lease: false,
            has_joined: false,
            heartbeat_sequence: 0,
            unanswered: BTreeMap::new(),
            seen_progress: 0,
            commit_requests: 0,
            waiting: Vec::new(),
            joined: Some(joined),
        }
    }

    /// Runs until the service is done, or another process has this member's place.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::default();
        loop {
            let lost = match self.find().await {
                Ok(mut line) => {
                    backoff.succeeded();
                    match self.talk(&mut line).await {
                        Over::Done => break,
                        Over::Lost(refusal) => refusal,
                    }
                }
                Err(Over::Done) => break,
                Err(Over::Lost(refusal)) => refusal,
            };
            if self.takes_hint(&lost) && backoff.failures() == 0 {
                // The first hint is worth following at once; after that, nodes may be passing us back and forth.
                _ = backoff.failed(&self.client.shared.config.retry, &self.client.shared.env);
                continue;
            }
            if !self.goes_on_after(&lost) {
                break;
            }
            let retry_at =
                backoff.failed(&self.client.shared.config.retry, &self.client.shared.env);
            if self.pause(retry_at, &lost).await {
                break;
            }
        }
        self.membership.lost();
        self.membership.end();
    }

    fn takes_hint(&mut self, refusal: &Refusal) -> bool {
        let hint = refusal.leader_hint();
        self.hint = hint.and_then(|hint| match hint.address.is_empty() {
            true => self.client.shared.metadata.address_of(hint.node_id),
            false => Some(Arc::from(hint.address)),
        });
        self.hint.is_some()
    }

    /// What a lost stream means: false if nothing can follow.
    fn goes_on_after(&mut self, refusal: &Refusal) -> bool {
        if refusal.reason() == reason::MEMBER_FENCED {
            self.membership.lost();
            self.has_lease = false;
            if refusal.metadata.get("cause").map(String::as_str) == Some("REPLACED") {
                let (group, refusal) = (self.settings.group.clone(), refusal.clone());
                self.membership.tell(ConsumeError::Fenced { group, refusal });
                return false;
            }
            self.tell_lost(refusal);
            return true;
        }
        // A topic that is gone may come again; anything else that cannot be mended by trying again ends a first try only.
        if !refusal.is_retriable() && self.joined.is_some() {
            if let Some(joined) = self.joined.take() {
                // Nobody may be waiting.
                _ = joined.send(Err(refusal.clone()));
            }
            return false;
        }
        true
    }

    fn tell_lost(&self, refusal: &Refusal) {
        let (group, last) = (self.settings.group.clone(), refusal.clone());
        self.membership.tell(ConsumeError::MembershipLost { group, last });
    }

    /// Waits before the next try. True if the service is done.
    async fn pause(&mut self, until: Instant, last: &Refusal) -> bool {
        loop {
            let lease = self.has_lease.then_some(self.lease_ends);
            tokio::select! {
                () = tokio::time::sleep_until(until) => return false,
                () = sleep_until(lease) => self.lapse(last),
                ask = self.asks.recv() => match ask {
                    Some(Ask::Commit(answer)) => _ = answer.send(Err(last.clone())),
                    // Nothing can be said any more; the session's time will end the membership.
                    Some(Ask::Close(answer)) => {
                        _ = answer.send(());
                        return true;
                    }
                    None => return true,
                },
            }
        }
    }

    /// The lease is over: somebody else may read by now.
    fn lapse(&mut self, last: &Refusal) {
        self.has_lease = false;
        self.membership.lost();
        self.tell_lost(last);
    }

    /// Opens a stream to the coordinator.
    async fn find(&mut self) -> Result<Line, Over> {
        let mut candidates = self.client.shared.metadata.candidates(Order::Steady);
        if let Some(hint) = self.hint.take() {
            candidates.retain(|address| *address != hint);
            candidates.insert(0, hint);
        }
        let mut last = None;
        let mut hinted = false;
        let mut index = 0;
        while let Some(address) = candidates.get(index).cloned() {
            index += 1;
            let patience = match self.has_lease {
                true => self.lease_ends.saturating_duration_since(self.client.shared.env.now()),
                false => JOIN_PATIENCE,
            };
            let patience = patience.clamp(Duration::from_millis(10), JOIN_PATIENCE);
            let refusal = match tokio::time::timeout(patience, self.open(&address)).await {
                Ok(Ok(line)) => return Ok(line),
                Ok(Err(refusal)) => refusal,
                Err(_late) => {
                    Refusal::connection(format!("{address} let nobody join within {patience:?}"))
                }
            };
            self.client.shared.metadata.note(&address, refusal.is_an_answer());
            if refusal.reason() == reason::MEMBER_FENCED {
                return Err(Over::Lost(refusal));
            }
            if !hinted
                && self.takes_hint(&refusal)
                && let Some(hint) = self.hint.take()
            {
                hinted = true;
                candidates.insert(index, hint);
            }
            if self.has_lease && self.client.shared.env.now() >= self.lease_ends {
                self.lapse(&refusal);
            }
            last = Some(refusal);
            if self.asks.is_closed() && self.asks.is_empty() {
                return Err(Over::Done);
            }
        }
        Err(Over::Lost(last.unwrap_or_else(|| Refusal::connection("no address to ask"))))
    }

    async fn open(&mut self, address: &Arc<str>) -> Result<Line, Refusal> {
        let connections = &self.client.shared.connections;
        let mut service = group_service(connections.channel(address)?);
        let (requests, outbound) = mpsc::unbounded_channel();
        let millis = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let init = v1::JoinInit {
            client: Some(connections.client_info()),
            group: self.settings.group.clone(),
            member_id: self.settings.member_id.clone(),
            static_id: self.settings.static_id.clone(),
            topics: vec![self.settings.topic.clone()],
            session_timeout_ms: millis(self.settings.session_timeout),
            progress_timeout_ms: millis(self.settings.progress_timeout),
            returns: self.has_joined,
        };
        _ = requests.send(v1::JoinRequest { message: Some(Request::Init(init)) });
        let sent_at = self.client.shared.env.now();
        let answers = service.join(UnboundedReceiverStream::new(outbound)).await;
        let mut answers = answers.map_err(|status| Refusal::from_status(&status))?.into_inner();
        let first = answers.message().await.map_err(|status| Refusal::from_status(&status))?;
        let Some(v1::JoinResponse { message: Some(Response::Joined(joined)) }) = first else {
            return Err(Refusal::connection(format!("{address} did not answer as a coordinator")));
        };
        self.session_timeout = Duration::from_millis(joined.session_timeout_ms.into());
        self.lease_ends = sent_at + self.session_timeout;
        self.has_lease = true;
        self.has_joined = true;
        self.unanswered.clear();
        // What was sent on an earlier stream may be lost.
        self.membership.forget_sent();
        if let Some(joined) = self.joined.take() {
            // Nobody may be waiting.
            _ = joined.send(Ok(()));
        }
        Ok(Line { address: address.clone(), requests, answers })
    }

    /// Uses a stream until it is lost or the service is done.
    async fn talk(&mut self, line: &mut Line) -> Over {
        let heartbeat = (self.session_timeout / HEARTBEATS_PER_SESSION).min(HEARTBEAT_MAX);
        let mut beat_at = self.client.shared.env.now();
        let mut commit_at: Option<Instant> = None;
        let membership = Arc::clone(&self.membership);
        loop {
            let now = self.client.shared.env.now();
            if beat_at <= now {
                self.beat(line, now);
                beat_at = now + heartbeat;
            }
            if membership.can_release() || commit_at.is_some_and(|at| at <= now) {
                commit_at = None;
                let offsets = membership.take_commit();
                if !offsets.is_empty() {
                    self.send_commit(line, offsets);
                }
                let partitions = membership.take_released();
                if !partitions.is_empty() {
                    line.send(Request::Release(v1::ReleasePartitions { partitions }));
                }
            }
            let wake = earliest(Some(beat_at), commit_at);
            tokio::select! {
                answer = line.answers.message() => match answer {
                    Ok(Some(response)) => self.heard(response),
                    Ok(None) => {
                        let text = format!("{} ended the stream", line.address);
                        return Over::Lost(self.broken(Refusal::connection(text)));
                    }
                    Err(status) => return Over::Lost(self.broken(Refusal::from_status(&status))),
                },
                () = membership.changed.notified() => {
                    let at = self.client.shared.env.now() + self.settings.commit_interval;
                    commit_at.get_or_insert(at);
                    if membership.is_extended() {
                        beat_at = self.client.shared.env.now();
                    }
                }
                () = tokio::time::sleep_until(self.lease_ends) => {
                    let text = format!("{} answers no heartbeat", line.address);
                    let last = self.broken(Refusal::connection(text));
                    self.lapse(&last);
                    return Over::Lost(last);
                }
                ask = self.asks.recv() => match ask {
                    Some(Ask::Commit(answer)) => {
                        let request_id = self.commit(line);
                        self.waiting.push((request_id, answer));
                    }
                    Some(Ask::Close(answer)) => {
                        self.farewell(line).await;
                        _ = answer.send(());
                        return Over::Done;
                    }
                    None => {
                        self.farewell(line).await;
                        return Over::Done;
                    }
                },
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Nobody who waits for something on a stream that broke will hear of it.
    fn broken(&mut self, refusal: Refusal) -> Refusal {
        for (_, waiting) in self.waiting.drain(..) {
            _ = waiting.send(Err(refusal.clone()));
        }
        refusal
    }

    fn beat(&mut self, line: &Line, now: Instant) {
        let (progress, is_idle) = self.membership.progress();
        let has_progressed = is_idle || progress != self.seen_progress;
        self.seen_progress = progress;
        self.heartbeat_sequence += 1;
        self.unanswered.insert(self.heartbeat_sequence, now);
        line.send(Request::Heartbeat(v1::MemberHeartbeat {
            sequence: self.heartbeat_sequence,
            has_progressed,
            extend_ms: self.membership.take_extension(),
            reports: self.membership.reports(),
        }));
    }

    /// Sends what is done and was not sent yet; answers with the request's number. If there is nothing, its answer still comes after
    /// those of all requests before it.
    fn commit(&mut self, line: &Line) -> u64 {
        let offsets = self.membership.take_commit();
        self.send_commit(line, offsets)
    }

    fn send_commit(&mut self, line: &Line, offsets: Offsets) -> u64 {
        self.commit_requests += 1;
        let request_id = self.commit_requests;
        line.send(Request::Commit(v1::MemberCommit { request_id, offsets }));
        request_id
    }

    fn heard(&mut self, response: v1::JoinResponse) {
        match response.message {
            Some(Response::Assignment(assignment)) => {
                self.membership.assigned(&assignment.partitions);
            }
            Some(Response::Heartbeat(heartbeat)) => {
                if let Some(sent_at) = self.unanswered.remove(&heartbeat.sequence) {
                    self.unanswered.retain(|sequence, _| *sequence > heartbeat.sequence);
                    self.lease_ends = self.lease_ends.max(sent_at + self.session_timeout);
                }
            }
            Some(Response::Committed(committed)) => {
                let error = committed.error.as_ref().map(Refusal::from_detail);
                if let Some(refusal) = &error {
                    tracing::warn!(%refusal, "progress was not stored; it will be sent again");
                    self.membership.forget_sent();
                }
                let stored = |it: &(u64, _)| it.0 <= committed.request_id;
                for (_, waiting) in self.waiting.extract_if(.., |it| stored(it)) {
                    _ = waiting.send(error.clone().map_or(Ok(()), Err));
                }
            }
            // Only the first message is that; anything else is of a later version.
            Some(Response::Joined(_)) | None => {}
        }
    }

    /// Commits what is done, and leaves; a static member only goes quiet, so that it has its partitions back if it returns.
    async fn farewell(&mut self, line: &mut Line) {
        self.membership.shut();
        let last = self.commit(line);
        let (stored_in, stored) = oneshot::channel();
        self.waiting.push((last, stored_in));
        if self.settings.static_id.is_empty() {
            line.send(Request::Leave(v1::LeaveGroup {}));
        }
        let end = async {
            let mut stored = stored;
            // Until the broker ends the stream, or says that the commit is stored where nothing else is to come.
            while let Ok(Some(response)) = line.answers.message().await {
                self.heard(response);
                if !self.settings.static_id.is_empty() && stored.try_recv().is_ok() {
                    break;
                }
            }
        };
        // The session's time ends the membership otherwise.
        _ = tokio::time::timeout(FAREWELL_MAX, end).await;
        let gone = Refusal::local(reason::TIMEOUT, Code::DeadlineExceeded, "the member has left");
        self.broken(gone);
    }
}
