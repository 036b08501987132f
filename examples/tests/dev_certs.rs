//! `dev-certs`: what it leaves behind.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

#[test]
fn keys_are_for_their_owner_only_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("certs");
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dev-certs"));
        command.arg(&folder).args(["--nodes", "4", "--host", "node-1", "--host", "10.0.0.1"]);
        command.output().unwrap()
    };
    let made = run();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    for name in ["node-1", "node-4", "broker", "client"] {
        let key = folder.join(format!("{name}.key"));
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        assert!(folder.join(format!("{name}.pem")).exists(), "{name}");
    }
    let before = std::fs::read(folder.join("broker.key")).unwrap();
    let again = run();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
    assert_eq!(std::fs::read(folder.join("broker.key")).unwrap(), before);
}
