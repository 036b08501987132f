//! Keeps one producer's or consumer's picture of its topic fresh.
//!
//! Owns: when to ask for metadata again, and what a "no such topic" means. Never: what follows for the partitions.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::client::Client;
use crate::config::Backoff;
use crate::error::{Refusal, reason};
use crate::metadata::TopicView;

/// The longest wait between two looks at the metadata while something is wrong: this bounds how long a new leader goes
/// unnoticed.
const WAIT_MAX: Duration = Duration::from_millis(100);
/// How long every node may say that the topic does not exist before that is believed.
const UNKNOWN_TOPIC_PATIENCE: Duration = Duration::from_secs(1);

/// What an answer means.
#[derive(Debug)]
pub(crate) enum News {
    /// The topic as it is now.
    View(Arc<TopicView>),
    /// Nobody could say; it will be asked again.
    Obstacle(Refusal),
    /// The topic does not exist any more.
    Gone(Refusal),
}

/// See the module. The owner's task drives it: [`Refresher::turn`] in every turn, [`Refresher::answer`] in its select.
#[derive(Debug)]
pub(crate) struct Refresher {
    client: Client,
    topic: String,
    generation: u64,
    wanted: bool,
    asking: bool,
    not_before: Instant,
    /// When to look although nothing is wrong.
    due: Instant,
    backoff: Backoff,
    unknown_since: Option<Instant>,
    answers_in: mpsc::UnboundedSender<Result<Arc<TopicView>, Refusal>>,
    answers: mpsc::UnboundedReceiver<Result<Arc<TopicView>, Refusal>>,
}

impl Refresher {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        let now = client.shared.env.now();
        let due = now + client.shared.config.metadata_age_max;
        // At most one question is out at a time.
        let (answers_in, answers) = mpsc::unbounded_channel();
        Self {
            client,
            topic,
            generation: 0,
            wanted: false,
            asking: false,
            not_before: now,
            due,
            backoff: Backoff::default(),
            unknown_since: None,
            answers_in,
            answers,
        }
    }

    /// Something is wrong: look soon.
    pub(crate) fn want(&mut self) {
        self.wanted = true;
    }

    /// What was learned elsewhere counts too.
    pub(crate) fn knows(&mut self, view: &TopicView) {
        self.generation = view.generation;
    }

    /// What was learned was new: the next wait is short again.
    pub(crate) fn was_new(&mut self) {
        self.backoff.succeeded();
    }

    /// Asks if it is time to; returns when it will be.
    pub(crate) fn turn(&mut self, now: Instant) -> Option<Instant> {
        if self.asking {
            return None;
        }
        if !self.wanted && now < self.due {
            return Some(self.due);
        }
        if now < self.not_before {
            return Some(self.not_before);
        }
        self.wanted = false;
        self.asking = true;
        let (client, topic) = (self.client.clone(), self.topic.clone());
        let (seen, answers) = (self.generation, self.answers_in.clone());
        self.client.shared.env.spawn(async move {
            let shared = &client.shared;
            let view = shared.metadata.refresh(&shared.connections, &topic, seen).await;
            // Whoever asked may be gone.
            _ = answers.send(view);
        });
        None
    }

    /// Waits for the answer to a question; for ever if none was asked.
    pub(crate) async fn answer(&mut self) -> Result<Arc<TopicView>, Refusal> {
        match self.answers.recv().await {
            Some(answer) => answer,
            // Cannot be: `answers_in` is ours.
            None => std::future::pending().await,
        }
    }

    /// Says what an answer means.
    pub(crate) fn judge(&mut self, answer: Result<Arc<TopicView>, Refusal>) -> News {
        self.asking = false;
        let shared = &self.client.shared;
        let now = shared.env.now();
        let next = self.backoff.failed(&shared.config.retry, &shared.env);
        self.not_before = next.min(now + WAIT_MAX);
        self.due = now + shared.config.metadata_age_max;
        let refusal = match answer {
            Ok(view) => {
                self.unknown_since = None;
                self.generation = view.generation;
                return News::View(view);
            }
            Err(refusal) => refusal,
        };
        self.wanted = true;
        if refusal.reason() != reason::UNKNOWN_TOPIC {
            self.unknown_since = None;
            return News::Obstacle(refusal);
        }
        let since = *self.unknown_since.get_or_insert(now);
        if now.duration_since(since) > UNKNOWN_TOPIC_PATIENCE {
            News::Gone(refusal)
        } else {
            News::Obstacle(refusal)
        }
    }
}

/// The earlier of two moments, where there are any.
pub(crate) fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Sleeps until a moment; for ever if there is none.
pub(crate) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
