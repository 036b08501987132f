//! Starts that cannot work: the process ends with the exit code and the words that help.

use std::process::Command;

use highwater_testing::free_address;

use super::nodes::*;
use super::processes::*;
use crate::harness::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_or_of_another_node_ends_with_2_and_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let mut process = Process::prepare(data_dir.clone(), &free_address(), &["--node-id=3".into()]);
    process.run();
    process.ready().await;
    let (code, said) = run_to_end(&data_dir, &["--node-id=3".into()]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("node.data_dir") && said.contains("a directory of its own"), "{said}");
    process.terminate();
    assert_eq!(process.ended().await.code(), Some(0));
    let (code, said) = run_to_end(&data_dir, &["--node-id=4".into()]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("node.id") && said.contains("data directory of node 3"), "{said}");
    // Nothing of this has harmed it.
    process.run();
    process.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_ends_with_2_before_any_file_is_touched() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let (code, said) =
        run_to_end(&data_dir, &[format!("--set=listeners.more.bind={address}")]).await;
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
    assert!(!data_dir.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_cannot_be_written_ends_with_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a-file");
    std::fs::write(&file, "not a directory").unwrap();
    let (code, said) = run_to_end(&file.join("data"), &[]).await;
    assert!(matches!(code, Some(1 | 2)), "{code:?} {said}");
    assert!(said.contains("a-file/data"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_cluster_is_refused_by_name_and_the_process_ends_with_2() {
    let mut nodes = Nodes::start(|_| {}).await;
    let cluster = nodes.cluster_id(0);
    nodes.clients(0).create_topic("orders", 1).await;
    nodes.stop(2).await;
    // A member of another cluster, with the same id, comes in its place.
    let mut others = Nodes::start(|_| {}).await;
    let other = others.cluster_id(2);
    others.stop_all().await;
    let data_dir = others.config(2).node.data_dir.clone();
    let seeds = nodes.seeds();
    let flags = [format!("--seeds={}", seeds.join(",")), "--node-id=3".to_owned()];
    let mut process = Process::prepare(data_dir, &seeds[2], &flags);
    process.run();
    assert_eq!(process.ended().await.code(), Some(2));
    let logged = process.logged();
    assert!(logged.contains("node.data_dir"), "{logged}");
    assert!(logged.contains(&cluster) && logged.contains(&other), "{logged}");
    // The cluster has not taken anything from it, and takes its own node back.
    nodes.clients(0).publish("orders", 0, &["x"]).await;
    nodes.run_all().await;
    nodes.stop_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_brought_back_from_an_old_copy_is_refused_while_the_others_go_on() {
    let mut nodes = Nodes::start(|_| {}).await;
    nodes.clients(0).create_topic("orders", 1).await;
    nodes.stop(2).await;
    let current = nodes.config(2).node.data_dir.clone();
    let old = tempfile::tempdir().unwrap();
    let copy = old.path().join("data");
    let copied = Command::new("cp").arg("-a").arg(&current).arg(&copy).status().unwrap();
    assert!(copied.success());
    // The cluster sees a later start than the copy knows of, and one more batch.
    nodes.run_all().await;
    nodes.clients(0).publish("orders", 0, &["x"]).await;
    nodes.stop(2).await;
    nodes.run_all().await;
    nodes.stop(2).await;
    nodes.config(2).node.data_dir = copy;
    nodes.run(2).await;
    let why = soon("giving up", nodes.broker(2).wait_fatal()).await;
    assert!(why.contains("node.data_dir") && why.contains("old copy"), "{why}");
    assert!(nodes.broker(2).node().is_misconfigured());
    nodes.stop(2).await;
    nodes.clients(0).publish("orders", 0, &["y"]).await;
    nodes.config(2).node.data_dir = current;
    nodes.run_all().await;
    nodes.stop_all().await;
}
