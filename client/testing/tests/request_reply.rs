//! Request and reply over topics, with a responder that lives: it runs here, and docs/services.md is held to it, piece by piece.

use std::time::Duration;

use highwater_testing::{Broker, soon};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn price_of(item: &str) -> String {
    format!("{item} costs {} cents", 100 * item.len())
}

// piece: responder
use futures::StreamExt;
use highwater_client::{Client, NewInstance, Record, Start};

/// Answers the requests in one partition: each responder has one of its own.
async fn respond(client: Client, partition: u32) -> Outcome<()> {
    let requests = client.consumer("pricing.requests").partitions([partition]);
    let mut requests = requests.start(Start::Latest).subscribe().await?;
    let replies = client.producer("pricing.replies").build();
    // Now somebody listens. If this process dies, others know it two seconds later.
    let instance = NewInstance::default().attribute("partition", partition.to_string());
    let instance = instance.lease(Duration::from_secs(2));
    let _announced = client.registry().announce("pricing", instance).await?;
    while let Some(request) = requests.next().await {
        let request = request?;
        let price = price_of(request.value_str().unwrap_or_default());
        // The key says which request it answers.
        let reply = Record::new(price).with_key(request.key.unwrap_or_default());
        replies.send(reply).await?.await?;
    }
    Ok(())
}
// end

// piece: requester
use highwater_client::{Events, Instances, Producer};

struct Pricing {
    responders: Instances,
    requests: Producer,
    replies: Events,
    asked: u64,
}

impl Pricing {
    async fn new(client: &Client) -> Outcome<Self> {
        Ok(Self {
            responders: client.registry().watch("pricing").await?,
            requests: client.producer("pricing.requests").build(),
            replies: client.consumer("pricing.replies").start(Start::Latest).subscribe().await?,
            asked: 0,
        })
    }

    /// Asks somebody who is there, and somebody else if that one goes before it has answered.
    async fn ask(&mut self, item: &str) -> Outcome<String> {
        self.asked += 1;
        let key = format!("checkout-1/{}", self.asked);
        loop {
            let responder = self.responders.wait_for_any().await.ok_or("stopped")?;
            let partition = responder.attribute("partition").ok_or("no partition")?.parse()?;
            let request = Record::new(item.to_owned()).with_key(key.clone());
            self.requests.send_to_partition(partition, request).await?.await?;
            while self.responders.current().iter().any(|it| it.id == responder.id) {
                tokio::select! {
                    reply = self.replies.next() => {
                        let reply = reply.ok_or("stopped")??;
                        if reply.key.as_deref() == Some(key.as_bytes()) {
                            return Ok(reply.value_str().unwrap_or_default().to_owned());
                        }
                    }
                    news = self.responders.changed() => {
                        news.ok_or("stopped")?;
                    }
                }
            }
        }
    }
}
// end

/// A process of its own, as far as the others can tell.
fn start_responder(servers: String, partition: u32) -> tokio::runtime::Runtime {
    let threads =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = threads.expect("a runtime");
    runtime.spawn(async move {
        let client = Client::connect(&servers).await.expect("it connects");
        respond(client, partition).await.expect("it goes on for ever");
    });
    runtime
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_answered_although_a_responder_dies() {
    let broker = Broker::start().await;
    broker.create_topic("pricing.requests", 2).await;
    broker.create_topic("pricing.replies", 1).await;
    let client = broker.client().await;
    let mut pricing = Pricing::new(&client).await.expect("it connects");
    // Nobody is there yet: the first question waits.
    let (victim, survivor) =
        (start_responder(broker.servers(), 0), start_responder(broker.servers(), 1));
    let price = soon("the first answer", pricing.ask("tea")).await.expect("an answer");
    assert_eq!(price, "tea costs 300 cents");
    soon("both being there", async {
        while pricing.responders.current().len() < 2 {
            pricing.responders.changed().await.expect("the client lives");
        }
    })
    .await;
    victim.shutdown_background();
    // It is each responder's turn at least twice.
    for item in ["milk", "bread", "salt", "butter"] {
        let price = soon("an answer", pricing.ask(item)).await.expect("an answer");
        assert_eq!(price, price_of(item));
    }
    assert_eq!(pricing.responders.current().len(), 1, "the dead one is gone");
    survivor.shutdown_background();
    broker.stop().await;
}

#[test]
fn the_guide_shows_this_code() {
    let guide = include_str!("../../../docs/services.md");
    let pieces: Vec<&str> =
        include_str!("request_reply.rs").split("\n// piece: ").skip(1).collect();
    assert_eq!(pieces.len(), 2);
    for piece in pieces {
        let code = piece.split_once('\n').and_then(|(_, rest)| rest.split("// end\n").next());
        let code = code.expect("a piece ends");
        assert!(guide.contains(code), "put this into docs/services.md:\n{code}");
    }
}
