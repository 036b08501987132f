//! Nodes that show one another certificates: a cluster like any other, which nobody else can talk to.

use highwater_broker::StartError;
use highwater_broker::cluster::FEATURE_LEVEL;
use highwater_broker::config::Config;
use highwater_proto::internal;
use highwater_proto::internal::exchange_request::Message;
use highwater_proto::internal::node_service_client::NodeServiceClient;
use highwater_proto::internal::raft_transport_service_client::RaftTransportServiceClient;
use highwater_storage::{Identity, RealDisk};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::nodes::*;
use crate::certs::{self, Authority, Issued};
use crate::harness::*;

/// An authority, and a folder for what it issues.
struct Office {
    authority: Authority,
    dir: TempDir,
}

impl Office {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { authority: Authority::new(dir.path(), "authority"), dir }
    }

    /// The certificate of a node.
    fn node(&self, id: u64) -> Issued {
        self.authority.issue(self.dir.path(), &format!("node-{id}"), &certs::node(id))
    }

    fn configure(&self, config: &mut Config, issued: &Issued) {
        config.internal_tls.cert_file = Some(issued.certificate.clone());
        config.internal_tls.key_file = Some(issued.key.clone());
        config.internal_tls.ca_file = Some(self.authority.file.clone());
    }

    /// Three nodes that show certificates of this authority and serve.
    async fn three(&self) -> Nodes {
        let mut nodes = Nodes::prepare(|_| {});
        for place in 0..3 {
            let issued = self.node(place as u64 + 1);
            self.configure(nodes.config(place), &issued);
        }
        nodes.run_all().await;
        nodes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_show_certificates_are_a_cluster_and_a_fourth_joins_it() {
    let office = Office::new();
    let mut nodes = office.three().await;
    nodes.clients(0).create_topic("orders", 3).await;
    for place in 0..3 {
        // Whoever is asked passes the call on to the leader.
        for partition in 0..3 {
            nodes.clients(place).publish("orders", partition, &["x"]).await;
        }
    }
    nodes.stop(2).await;
    for partition in 0..3 {
        nodes.clients(0).publish("orders", partition, &["y"]).await;
    }
    nodes.run_all().await;
    let fourth = nodes.prepare_another();
    let issued = office.node(4);
    office.configure(nodes.config(fourth), &issued);
    nodes.run(fourth).await;
    soon("joining", nodes.broker(fourth).wait_ready()).await;
    assert_eq!(nodes.broker(fourth).node().id(), 4, "as its certificate says");
    nodes.clients(fourth).publish("orders", 0, &["z"]).await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_certificates_neither_joins_nor_is_asked() {
    let office = Office::new();
    let mut nodes = office.three().await;
    let fourth = nodes.prepare_another();
    nodes.config(fourth).internal_tls = Default::default();
    nodes.run(fourth).await;
    nodes.waits_for(fourth, &["waiting cluster"]).await;
    until("refused handshakes", || async {
        let text = http_get(nodes.broker(0).http_addr(), "/metrics").await.1;
        let failed = text.lines().find_map(|line| {
            line.strip_prefix("highwater_tls_handshakes_failed_total ")?.parse::<u64>().ok()
        });
        failed.unwrap() > 0
    })
    .await;
    assert_eq!(nodes.broker(0).node().view().nodes.len(), 3);
    nodes.stop_all().await;
}

/// A stream that must live on for what was sent on it to arrive.
type Standing = (mpsc::Sender<internal::ExchangeRequest>, Streaming<internal::ExchangeResponse>);

/// Somebody who wants to be taken for a node.
struct Intruder {
    address: String,
    tls: Option<ClientTlsConfig>,
}

impl Intruder {
    fn new(address: &str, authority: &Authority, issued: Option<&Issued>) -> Self {
        let read = |path| std::fs::read(path).unwrap();
        let ca = Certificate::from_pem(read(&authority.file));
        let mut tls = ClientTlsConfig::new().ca_certificate(ca);
        if let Some(issued) = issued {
            let identity =
                tonic::transport::Identity::from_pem(read(&issued.certificate), read(&issued.key));
            tls = tls.identity(identity);
        }
        Self { address: address.to_owned(), tls: Some(tls) }
    }

    async fn connect(&self) -> Result<Channel, String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{}", self.address)).unwrap();
        if let Some(tls) = &self.tls {
            endpoint = endpoint.tls_config(tls.clone()).unwrap();
        }
        soon("connecting", endpoint.connect()).await.map_err(|error| format!("{error:?}"))
    }

    /// Says hello and then the batch; the stream, if hello was answered.
    async fn say(
        &self,
        hello: internal::PeerHello,
        batch: internal::PeerBatch,
    ) -> Result<Standing, String> {
        let mut client = RaftTransportServiceClient::new(self.connect().await?);
        let (sender, receiver) = mpsc::channel(8);
        for message in [Message::Hello(hello), Message::Batch(batch)] {
            sender.send(internal::ExchangeRequest { message: Some(message) }).await.unwrap();
        }
        let answered = soon("an answer", client.exchange(ReceiverStream::new(receiver))).await;
        let mut answers = answered.map_err(|status| format!("{status:?}"))?.into_inner();
        let answer =
            soon("hello", answers.message()).await.map_err(|status| format!("{status:?}"))?;
        answer.and_then(|answer| answer.hello).ok_or("no hello")?;
        Ok((sender, answers))
    }
}

/// A request for a vote that no lease holds up, from a replica of the metadata group on one node to that on another.
fn vote(nodes: &Nodes, from: u64, to: u64, term: u64) -> internal::PeerBatch {
    let members = nodes.replica(0, 0).members();
    let on = |node: u64| *members.nodes.iter().find(|(_, at)| **at == node).unwrap().0;
    let message = internal::RaftMessage {
        msg_type: 5,
        from: on(from),
        to: on(to),
        term,
        context: b"CampaignTransfer".to_vec().into(),
        ..Default::default()
    };
    let message =
        internal::GroupMessage { group_id: 0, message: Some(message), wants_appended: false };
    internal::PeerBatch { messages: vec![message], ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_node_itself_can_send_raft_messages_in_its_name() {
    let office = Office::new();
    let foreign = Office::new();
    let mut nodes = office.three().await;
    let dir = nodes.config(2).node.data_dir.clone();
    let second_dir = nodes.config(1).node.data_dir.clone();
    let address = nodes.config(0).listen.internal.clone();
    // It must not say itself what others say in its name.
    nodes.stop(2).await;
    let identity = Identity::load(&RealDisk::new(), &dir).unwrap().unwrap();
    let hello = |node_id: u64| internal::PeerHello {
        cluster_id: identity.cluster_id.clone(),
        node_id,
        incarnation: identity.incarnation.clone(),
        boot_counter: identity.boot_counter + 1,
        version: "0.1.0".into(),
        feature_level: FEATURE_LEVEL,
        to_node_id: 1,
    };
    let intruder = |issued: Option<&Issued>| Intruder::new(&address, &office.authority, issued);
    let evil = || vote(&nodes, 3, 1, 2_000);

    let plain = Intruder { address: address.clone(), tls: None };
    plain.say(hello(3), evil()).await.expect_err("plain text");
    intruder(None).say(hello(3), evil()).await.expect_err("no certificate");
    let refused = intruder(Some(&foreign.node(3))).say(hello(3), evil()).await;
    refused.expect_err("a certificate of another authority");
    let nameless = office.authority.issue(office.dir.path(), "nameless", &certs::local());
    let refused = intruder(Some(&nameless)).say(hello(3), evil()).await;
    refused.expect_err("a certificate that names no node");
    let second = office.node(2);
    let why = intruder(Some(&second)).say(hello(3), evil()).await.unwrap_err();
    assert!(why.contains("its certificate is node 2's"), "{why}");

    // A member, which must not speak for a replica of another one.
    let own = Identity::load(&RealDisk::new(), &second_dir).unwrap().unwrap();
    let own = internal::PeerHello {
        node_id: 2,
        incarnation: own.incarnation,
        boot_counter: own.boot_counter,
        ..hello(2)
    };
    let _stream = intruder(Some(&second)).say(own, evil()).await.expect("it is a member");

    // Calls in the name of another node, and of another cluster.
    let channel = intruder(Some(&second)).connect().await.unwrap();
    let mut calls = NodeServiceClient::new(channel);
    for (cluster, node, is_let_in) in [
        (identity.cluster_id.as_str(), 2, true),
        (identity.cluster_id.as_str(), 3, false),
        ("another", 2, false),
    ] {
        let mut request = tonic::Request::new(internal::GetPartitionsRequest::default());
        request.metadata_mut().insert("highwater-cluster-id", cluster.parse().unwrap());
        request.metadata_mut().insert("highwater-node-id", node.into());
        let outcome = soon("the call", calls.get_partitions(request)).await;
        assert_eq!(outcome.is_ok(), is_let_in, "{cluster} {node}: {outcome:?}");
    }
    let unknown = async {
        let mut calls = NodeServiceClient::new(intruder(None).connect().await?);
        let request = internal::GetFoundingStateRequest::default();
        calls.get_founding_state(request).await.map_err(|status| status.to_string())
    };
    soon("the call", unknown).await.expect_err("not even what everybody else is told");

    // The node's own certificate opens: what was refused above was refused for the reason meant. Only this vote's term counts.
    let third = office.node(3);
    let batch = vote(&nodes, 3, 1, 1_000);
    let _stream = intruder(Some(&third)).say(hello(3), batch).await.expect("it is the node");
    until("another term", || async { nodes.status(0, 0).leader_epoch > 1_000 }).await;
    assert!(nodes.status(0, 0).leader_epoch < 2_000);
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_other_nodes_would_refuse_is_named_at_the_start() {
    let office = Office::new();
    let foreign = Office::new();
    let issued = office.node(1);
    let nameless = office.authority.issue(office.dir.path(), "nameless", &certs::local());
    let start_error = async |issued: &Issued, change: &dyn Fn(&mut Config)| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = quick_config(&dir);
        office.configure(&mut config, issued);
        change(&mut config);
        match TestBroker::start_error(config).await {
            error @ StartError::Config { .. } => error.to_string(),
            error => panic!("not an error of the configuration: {error}"),
        }
    };
    let as_it_is = |_: &mut Config| {};
    let cases = [
        (start_error(&nameless, &as_it_is).await, "URI:highwater://node/ID"),
        (start_error(&foreign.node(1), &as_it_is).await, "would be refused by other nodes"),
        (start_error(&issued, &|config| config.node.id = Some(2)).await, "is node 1's"),
        (
            start_error(&issued, &|config| config.internal_tls.ca_file = None).await,
            "internal_tls.ca_file",
        ),
    ];
    for (error, why) in cases {
        assert!(error.contains(why), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_of_a_cluster_is_replaced_while_it_serves() {
    let (office, successor) = (Office::new(), Office::new());
    let mut nodes = Nodes::prepare(|_| {});
    for place in 0..3 {
        let issued = office.node(place as u64 + 1);
        office.configure(nodes.config(place), &issued);
        nodes.config(place).tls.reload_ms = 20;
    }
    nodes.run_all().await;
    nodes.clients(0).create_topic("orders", 3).await;
    let (old, new) = (&office.authority.file, &successor.authority.file);
    let both = [std::fs::read(old).unwrap(), std::fs::read(new).unwrap()].concat();
    std::fs::write(old, &both).unwrap();
    let address = nodes.config(0).listen.internal.clone();
    let third = successor.node(3);
    // Asked with the certificate of either authority, a node answers once it knows both.
    let is_let_in = async |authority: &Authority, issued: &Issued| {
        let Ok(channel) = Intruder::new(&address, authority, Some(issued)).connect().await else {
            return false;
        };
        let request = internal::GetFoundingStateRequest::default();
        NodeServiceClient::new(channel).get_founding_state(request).await.is_ok()
    };
    until("the second authority being known", || is_let_in(&office.authority, &third)).await;
    // One that names another node is not used.
    let stranger = successor.node(7);
    let own = office.dir.path().join("node-1-cert.pem");
    std::fs::copy(&stranger.certificate, &own).unwrap();
    std::fs::copy(&stranger.key, office.dir.path().join("node-1-key.pem")).unwrap();
    until("the refusal", || async {
        let (_, text) = http_get(nodes.broker(0).http_addr(), "/metrics").await;
        text.contains("\nhighwater_tls_files_refused 1\n")
    })
    .await;
    assert!(!is_let_in(&successor.authority, &third).await, "it shows what it showed before");
    for id in 1..=3 {
        successor.authority.issue(office.dir.path(), &format!("node-{id}"), &certs::node(id));
    }
    until("the new certificate", || is_let_in(&successor.authority, &third)).await;
    std::fs::write(old, std::fs::read(new).unwrap()).unwrap();
    let former = Office { authority: office.authority, dir: tempfile::tempdir().unwrap() };
    let former = former.authority.issue(former.dir.path(), "node-3", &certs::node(3));
    until("the first authority being forgotten", || async {
        !is_let_in(&successor.authority, &former).await
    })
    .await;
    for partition in 0..3 {
        nodes.clients(0).publish("orders", partition, &["x"]).await;
    }
    // Its connections are all new.
    nodes.stop(1).await;
    nodes.run_all().await;
    for partition in 0..3 {
        nodes.clients(1).publish("orders", partition, &["y"]).await;
    }
    nodes.stop_all().await;
}
