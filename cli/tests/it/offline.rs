//! What works, or fails properly, without a cluster.

use std::net::TcpListener;

use crate::{cli, stderr, stdout};

/// A loopback address where nobody listens: the port was free a moment ago.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in [
        &["topic", "creat"][..],
        &["topic", "create"],
        &["topic", "create", "t", "--partitions", "0"],
        &["topic", "create", "t", "-c", "novalue"],
        &["topic", "alter", "t"],
        &["-o", "xml", "topic", "list"],
        &["consume", "t", "-o", "begin"],
        &["topic", "trim", "t", "--partition", "0", "--to", "yesterday", "--yes"],
        &["--timeout", "5", "topic", "list"],
    ] {
        let output = cli(folder.path(), wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{wrong:?}");
    }
}

#[test]
fn no_broker_is_exit_code_5_within_the_timeout_and_says_what_to_check() {
    let folder = tempfile::tempdir().unwrap();
    let server = nobody();
    let output = cli(folder.path(), &["--server", &server, "--timeout", "300ms", "topic", "list"]);
    assert_eq!(output.status.code(), Some(5), "{}", stderr(&output));
    assert!(stderr(&output).starts_with("error: "), "{}", stderr(&output));
    assert!(stderr(&output).contains(&server), "{}", stderr(&output));
    assert!(stderr(&output).contains("  mend: "), "{}", stderr(&output));
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_node_that_does_not_run_is_not_ready() {
    let folder = tempfile::tempdir().unwrap();
    let output = cli(folder.path(), &["cluster", "health", "--readyz", &nobody()]);
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
}

#[test]
fn deleting_needs_a_yes_where_nobody_can_be_asked() {
    let folder = tempfile::tempdir().unwrap();
    for destructive in [
        &["topic", "delete", "t"][..],
        &["topic", "trim", "t", "-p", "0", "--to", "end"],
        &["group", "delete", "g"],
    ] {
        let output = cli(folder.path(), destructive);
        assert_eq!(output.status.code(), Some(2), "{destructive:?}");
        assert!(stderr(&output).contains("--yes"), "{destructive:?}: {}", stderr(&output));
    }
}

#[test]
fn version_and_completion_need_no_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let version = cli(folder.path(), &["version"]);
    assert_eq!(stdout(&version), format!("broker-cli {}\n", env!("CARGO_PKG_VERSION")));
    let json = cli(folder.path(), &["version", "-o", "json"]);
    assert_eq!(
        stdout(&json).split_whitespace().collect::<String>(),
        format!("{{\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION"))
    );
    for shell in ["bash", "zsh", "fish"] {
        let script = cli(folder.path(), &["completion", shell]);
        assert!(stdout(&script).contains("transfer-leader"), "{shell}");
    }
}

#[test]
fn profiles_are_created_used_listed_and_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| cli(folder.path(), arguments);
    assert!(run(&["profile", "create", "a", "a:1"]).status.success());
    assert!(run(&["profile", "create", "b", "b:1,b:2"]).status.success());
    assert_eq!(run(&["profile", "create", "b", "b:1"]).status.code(), Some(1));
    assert!(run(&["profile", "use", "b"]).status.success());
    assert_eq!(run(&["profile", "use", "c"]).status.code(), Some(3));
    let listed = stdout(&run(&["profile", "list"]));
    assert_eq!(listed, "NAME  SERVERS  IN USE\na     a:1\nb     b:1,b:2  yes\n");
    assert!(run(&["profile", "delete", "b"]).status.success());
    assert_eq!(run(&["profile", "delete", "b"]).status.code(), Some(3));
    // The profile in use is gone: none is, until another is chosen.
    assert_eq!(stdout(&run(&["profile", "list"])), "NAME  SERVERS  IN USE\na     a:1\n");
}

#[test]
fn the_profile_in_use_says_which_cluster_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let server = nobody();
    assert!(cli(folder.path(), &["profile", "create", "gone", &server]).status.success());
    let output = cli(folder.path(), &["--timeout", "200ms", "cluster", "info"]);
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains(&server), "{}", stderr(&output));
}
