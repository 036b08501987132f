//! What every service's process does: read its arguments, connect, work until told to end.
//!
//! Owns: the command line, topics, the end of a process. Never: what a service does.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use highwater_client::event::{Attributes, Event};
use highwater_client::worker::Worker;
use highwater_client::{Client, ClientBuilder, NewTopic, Producer, Record};

use crate::TOPICS;
use crate::store::Store;

/// How long handlers may take to finish when the process is asked to end.
const DRAIN: Duration = Duration::from_secs(10);

/// What every service is told.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// Where brokers are.
    #[arg(long, env = "HIGHWATER_SERVERS", default_value = "127.0.0.1:7420")]
    servers: String,
    /// The folder for the service's store.
    #[arg(long, env = "SHOP_DATA", default_value = "./data/shop")]
    pub data: PathBuf,
    /// Where customers order; only the order service listens.
    #[arg(long, env = "SHOP_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: String,
}

impl Arguments {
    /// The service's own store, and a connection that goes by its name.
    pub async fn open(&self, name: &str) -> Result<(Client, Store)> {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        std::fs::create_dir_all(&self.data)?;
        let store = Store::open(&self.data.join(format!("{name}.redb")))?;
        let builder: ClientBuilder = Client::builder().servers(&self.servers).client_id(name);
        let client = builder.connect().await?;
        ensure_topics(&client).await?;
        Ok((client, store))
    }
}

/// Creates the topics that are not there: services start in any order.
pub async fn ensure_topics(client: &Client) -> Result<()> {
    for topic in TOPICS {
        match client.admin().create_topic(NewTopic::new(topic).partitions(3)).await {
            Err(error) if error.reason() != highwater_client::reason::TOPIC_EXISTS => {
                return Err(error.into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Works until the process is asked to end.
pub async fn until_stopped(worker: Worker) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let signal = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    Ok(worker.run_until(signal, DRAIN).await?)
}

/// Publishes a decision. However often, it has the same id: there is one of its kind for an order.
pub async fn publish_decision<E: Event>(
    producer: &Producer,
    source: &str,
    id: String,
    event: &E,
) -> Result<()> {
    let record = Record::of(event, &Attributes::new(id, source))?;
    producer.send(record).await?.await?;
    Ok(())
}
