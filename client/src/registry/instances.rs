//! A service's instances, kept up to date: a task that keeps a stream to some node.
//!
//! Owns: what was told last, and finding another node when the stream breaks. Never: decides who lives.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use highwater_proto::v1;
use tokio::sync::watch;
use tonic::Streaming;

use super::Instance;
use crate::client::Client;
use crate::config::Backoff;
use crate::connections::registry_service;
use crate::error::{AdminError, Refusal};
use crate::metadata::{ATTEMPT_MAX, Order};

/// The instances of a service, kept up to date in the background; from [`Registry::watch`](super::Registry::watch).
///
/// If the node that tells of changes goes away, another one is asked; until one answers, this shows who was there last.
#[derive(Debug)]
pub struct Instances {
    /// Its end ends the task.
    seen: watch::Receiver<Arc<[Instance]>>,
    /// Whose turn it is.
    turn: AtomicUsize,
}

impl Instances {
    pub(super) async fn begin(client: Client, service: String) -> Result<Self, AdminError> {
        let shared = &client.shared;
        let turn = shared.env.below(u32::MAX) as usize;
        let deadline = shared.env.now() + shared.config.request_timeout;
        let mut backoff = Backoff::default();
        let mut watcher = Watcher { client: client.clone(), service, known: BTreeMap::new() };
        let stream = loop {
            let refusal = match tokio::time::timeout_at(deadline, watcher.open()).await {
                Ok(Ok(stream)) => break stream,
                Ok(Err(refusal)) => refusal,
                Err(_late) => Refusal::connection("no node told who is there in time"),
            };
            let next = backoff.failed(&shared.config.retry, &shared.env);
            if !refusal.is_retriable() || next >= deadline {
                // It only reads.
                return Err(AdminError::Refused(refusal.nothing_sent()));
            }
            tokio::time::sleep_until(next).await;
        };
        let (tell, seen) = watch::channel(watcher.list());
        shared.env.spawn(watcher.run(stream, tell));
        Ok(Self { seen, turn: AtomicUsize::new(turn) })
    }

    /// Those there are now, by id.
    pub fn current(&self) -> Arc<[Instance]> {
        self.seen.borrow().clone()
    }

    /// One of those there are now, another one each time; none if nobody is there.
    pub fn pick(&self) -> Option<Instance> {
        let current = self.current();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(current.len())?;
        current.get(turn).cloned()
    }

    /// Waits until there are others than when this was last called, and answers with them; `None` if there will be no news, because the
    /// client's runtime has ended. Changes that come faster than this is called are told as one. Cancel safe.
    pub async fn changed(&mut self) -> Option<Arc<[Instance]>> {
        self.seen.changed().await.ok()?;
        Some(self.seen.borrow_and_update().clone())
    }

    /// Waits until somebody is there, and answers with one, another one each time; `None` as with [`Instances::changed`].
    pub async fn wait_for_any(&mut self) -> Option<Instance> {
        // The borrow locks the list, for as long as it lives.
        self.seen.wait_for(|instances| !instances.is_empty()).await.ok().map(drop)?;
        self.pick()
    }
}

/// The task's side.
struct Watcher {
    client: Client,
    service: String,
    known: BTreeMap<String, Instance>,
}

impl Watcher {
    async fn run(
        mut self,
        stream: Streaming<v1::RegistryServiceWatchResponse>,
        tell: watch::Sender<Arc<[Instance]>>,
    ) {
        let tell = &tell;
        tokio::select! {
            () = tell.closed() => {}
            () = self.follow(stream, tell) => {}
        }
    }

    /// For ever.
    async fn follow(
        &mut self,
        mut stream: Streaming<v1::RegistryServiceWatchResponse>,
        tell: &watch::Sender<Arc<[Instance]>>,
    ) {
        let client = self.client.clone();
        let shared = &client.shared;
        loop {
            let lost = loop {
                match stream.message().await {
                    Ok(Some(message)) => {
                        self.take_in(message);
                        self.show(tell);
                    }
                    Ok(None) => break Refusal::connection("the node ended the stream"),
                    Err(status) => break Refusal::from_status(&status),
                }
            };
            tracing::debug!(service = self.service, %lost, "asking another node who is there");
            let mut backoff = Backoff::default();
            stream = loop {
                match self.open().await {
                    Ok(stream) => break stream,
                    Err(refusal) => {
                        tracing::debug!(service = self.service, %refusal, "nobody tells who is there");
                        tokio::time::sleep_until(backoff.failed(&shared.config.retry, &shared.env))
                            .await;
                    }
                }
            };
            self.show(tell);
        }
    }

    /// Asks one node after the other until one tells who is there.
    async fn open(&mut self) -> Result<Streaming<v1::RegistryServiceWatchResponse>, Refusal> {
        let client = self.client.clone();
        let metadata = &client.shared.metadata;
        let mut last = Refusal::connection("no address to ask");
        for address in metadata.candidates(Order::Turns) {
            let opening = tokio::time::timeout(ATTEMPT_MAX, self.open_at(&address));
            last = match opening.await {
                Ok(Ok(stream)) => {
                    metadata.note(&address, true);
                    return Ok(stream);
                }
                Ok(Err(refusal)) => refusal,
                Err(_late) => {
                    let text = format!("{address} did not tell who is there in {ATTEMPT_MAX:?}");
                    Refusal::connection(text)
                }
            };
            metadata.note(&address, last.is_an_answer());
            if !last.is_retriable() {
                break;
            }
        }
        Err(last)
    }

    async fn open_at(
        &mut self,
        address: &Arc<str>,
    ) -> Result<Streaming<v1::RegistryServiceWatchResponse>, Refusal> {
        let channel = self.client.shared.connections.channel(address)?;
        let request = v1::RegistryServiceWatchRequest { service: self.service.clone() };
        let answer = registry_service(channel).watch(request).await;
        let mut stream = answer.map_err(|status| Refusal::from_status(&status))?.into_inner();
        match stream.message().await.map_err(|status| Refusal::from_status(&status))? {
            Some(first) if first.is_whole => self.take_in(first),
            _ => return Err(Refusal::connection(format!("{address} did not tell who is there"))),
        }
        Ok(stream)
    }

    fn take_in(&mut self, message: v1::RegistryServiceWatchResponse) {
        if message.is_whole {
            self.known.clear();
        }
        for id in &message.gone_ids {
            self.known.remove(id);
        }
        for instance in message.instances {
            self.known.insert(instance.id.clone(), instance.into());
        }
    }

    fn list(&self) -> Arc<[Instance]> {
        self.known.values().cloned().collect()
    }

    /// What another node told may be what was known.
    fn show(&self, tell: &watch::Sender<Arc<[Instance]>>) {
        let list = self.list();
        tell.send_if_modified(|shown| {
            let is_news = **shown != *list;
            if is_news {
                *shown = list;
            }
            is_news
        });
    }
}
