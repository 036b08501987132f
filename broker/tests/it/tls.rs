//! TLS on real sockets: who gets in, who does not, and what a broker says of files that are no good.

use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use highwater_broker::StartError;
use highwater_broker::config::Config;
use highwater_client::{Client, ClientBuilder, ConnectError, NewTopic, Record};

use crate::certs::{Authority, Issued, local};
use crate::harness::*;

fn with_tls(config: &mut Config, issued: &Issued, client_ca: Option<&Authority>) {
    config.tls.cert_file = Some(issued.certificate.clone());
    config.tls.key_file = Some(issued.key.clone());
    config.tls.client_ca_file = client_ca.map(|authority| authority.file.clone());
}

fn builder(broker: &TestBroker, scheme: &str) -> ClientBuilder {
    Client::builder().servers(format!("{scheme}{}", broker.broker.client_addr()))
}

/// Fails to connect, and says why.
async fn refused(builder: ClientBuilder) -> String {
    match builder.connect_timeout(Duration::from_secs(1)).connect().await {
        Ok(_) => panic!("it got in"),
        Err(error @ ConnectError::Unreachable { .. }) => error.to_string(),
        Err(error) => panic!("another error: {error}"),
    }
}

/// Publishes an event and reads it back.
async fn round_trip(builder: ClientBuilder) {
    let client = soon("connecting", builder.connect()).await.unwrap();
    soon("creating", client.admin().create_topic(NewTopic::new("orders"))).await.unwrap();
    let producer = client.producer("orders").build();
    let ticket = soon("sending", producer.send(Record::new("encrypted"))).await.unwrap();
    soon("the acknowledgement", ticket).await.unwrap();
    let mut events = soon("subscribing", client.consumer("orders").subscribe()).await.unwrap();
    let event = soon("the event", events.next()).await.unwrap().unwrap();
    assert_eq!(&event.value.unwrap()[..], b"encrypted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_trusts_the_authority_gets_in_and_others_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let other = Authority::new(dir.path(), "other");
    let issued = authority.issue(dir.path(), "broker", &local());
    let broker = TestBroker::start_with(|config| with_tls(config, &issued, None)).await;
    let why = refused(builder(&broker, "https://").tls_ca_file(&other.file)).await;
    assert!(why.contains("UnknownIssuer"), "{why}");
    // Without a file, the system's authorities are asked, and none of them has signed this.
    refused(builder(&broker, "https://")).await;
    refused(builder(&broker, "http://")).await;
    round_trip(builder(&broker, "").tls_ca_file(&authority.file)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_for_another_host_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let elsewhere = [rcgen::SanType::DnsName("elsewhere.example".try_into().unwrap())];
    let issued = authority.issue(dir.path(), "broker", &elsewhere);
    let broker = TestBroker::start_with(|config| with_tls(config, &issued, None)).await;
    let why = refused(builder(&broker, "https://").tls_ca_file(&authority.file)).await;
    assert!(why.contains("NotValidForName") || why.contains("not valid for name"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_clients_need_a_certificate_only_one_of_the_right_authority_opens() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let clients = Authority::new(dir.path(), "clients");
    let issued = authority.issue(dir.path(), "broker", &local());
    let mine = clients.issue(dir.path(), "mine", &[]);
    let foreign = authority.issue(dir.path(), "foreign", &[]);
    let broker = TestBroker::start_with(|config| with_tls(config, &issued, Some(&clients))).await;
    let https = || builder(&broker, "https://").tls_ca_file(&authority.file);
    refused(https()).await;
    refused(https().tls_identity_files(&foreign.certificate, &foreign.key)).await;
    round_trip(https().tls_identity_files(&mine.certificate, &mine.key)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_finish_their_handshake_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let issued = authority.issue(dir.path(), "broker", &local());
    let broker = TestBroker::start_with(|config| with_tls(config, &issued, None)).await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(tokio::net::TcpStream::connect(broker.broker.client_addr()).await.unwrap());
    }
    round_trip(builder(&broker, "https://").tls_ca_file(&authority.file)).await;
    drop(silent);
}

/// What a broker that must not start says, with the key to mend.
async fn start_error(change: impl FnOnce(&mut Config)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut config = quick_config(&dir);
    change(&mut config);
    match TestBroker::start_error(config).await {
        error @ StartError::Config { .. } => error.to_string(),
        error => panic!("not an error of the configuration: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_good_are_named_with_their_key_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "authority");
    let issued = authority.issue(dir.path(), "broker", &local());
    let other = authority.issue(dir.path(), "other", &local());
    let nonsense = dir.path().join("nonsense.pem");
    std::fs::write(&nonsense, "nothing to see here").unwrap();
    let error_with = async |certificate: &Path, key: &Path, ca: Option<&Path>| {
        start_error(|config| {
            config.tls.cert_file = Some(certificate.to_owned());
            config.tls.key_file = Some(key.to_owned());
            config.tls.client_ca_file = ca.map(Path::to_owned);
        })
        .await
    };
    let missing = dir.path().join("missing.pem");
    let cases = [
        (error_with(&missing, &issued.key, None).await, "tls.cert_file", "missing.pem"),
        (error_with(&nonsense, &issued.key, None).await, "tls.cert_file", "no certificate"),
        (error_with(&issued.key, &issued.key, None).await, "tls.cert_file", "no certificate"),
        (error_with(&issued.certificate, dir.path(), None).await, "tls.key_file", "cannot be read"),
        (error_with(&issued.certificate, &nonsense, None).await, "tls.key_file", "no private key"),
        (
            error_with(&issued.certificate, &other.key, None).await,
            "tls.key_file",
            "is not the key of the certificate",
        ),
        (
            error_with(&issued.certificate, &issued.key, Some(&nonsense)).await,
            "tls.client_ca_file",
            "no certificate",
        ),
    ];
    for (error, key, why) in cases {
        assert!(error.starts_with(key) && error.contains(why), "{error}");
    }
}

/// Waits until a broker says whether the files for TLS hold something that cannot be used.
async fn refused_files(broker: &TestBroker, expected: u32) {
    until("the look at the files", || async {
        let (_, text) = http_get(broker.broker.http_addr(), "/metrics").await;
        text.contains(&format!("\nhighwater_tls_files_refused {expected}\n"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn new_certificates_are_for_new_connections_and_bad_ones_for_none() {
    let dir = tempfile::tempdir().unwrap();
    let first = Authority::new(dir.path(), "first");
    let second = Authority::new(dir.path(), "second");
    let issued = first.issue(dir.path(), "broker", &local());
    let broker = TestBroker::start_with(|config| {
        with_tls(config, &issued, None);
        config.tls.reload_ms = 20;
    })
    .await;
    let connect = async |authority: &Authority| {
        builder(&broker, "https://").tls_ca_file(&authority.file).connect().await
    };
    let old = connect(&first).await.unwrap();
    soon("creating", old.admin().create_topic(NewTopic::new("orders"))).await.unwrap();
    let producer = old.producer("orders").build();
    let publish = async || {
        let ticket = soon("sending", producer.send(Record::new("x"))).await.unwrap();
        soon("the acknowledgement", ticket).await.unwrap();
    };
    publish().await;

    // The same paths, another authority.
    second.issue(dir.path(), "broker", &local());
    until("the new certificate", || async {
        let client = builder(&broker, "https://").tls_ca_file(&second.file);
        client.connect_timeout(Duration::from_millis(500)).connect().await.is_ok()
    })
    .await;
    refused(builder(&broker, "https://").tls_ca_file(&first.file)).await;
    // Its connection stands, and could not be opened again.
    publish().await;

    std::fs::write(&issued.certificate, "no certificate at all").unwrap();
    refused_files(&broker, 1).await;
    connect(&second).await.expect("the last good one is shown");
    // The key of another certificate is as bad.
    let other = first.issue(dir.path(), "other", &local());
    std::fs::copy(&other.certificate, &issued.certificate).unwrap();
    connect(&second).await.expect("the last good one is shown");
    std::fs::copy(&other.key, &issued.key).unwrap();
    refused_files(&broker, 0).await;
    connect(&first).await.expect("mended");
    refused(builder(&broker, "https://").tls_ca_file(&second.file)).await;
    publish().await;
}
