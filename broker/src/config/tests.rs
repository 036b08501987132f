//! Precedence, errors and checks of the configuration.

use std::collections::BTreeMap;

use super::*;

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn with_set(assignments: &[&str]) -> Flags {
    Flags { set: assignments.iter().map(|&text| text.to_owned()).collect(), ..Flags::default() }
}

fn load_set(assignments: &[&str]) -> Result<Config, ConfigError> {
    Config::load(&with_set(assignments), Vec::new())
}

fn error_text(assignments: &[&str]) -> String {
    load_set(assignments).unwrap_err().to_string()
}

fn file(text: &str) -> (tempfile::TempDir, Flags) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("broker.toml");
    std::fs::write(&path, text).unwrap();
    (dir, Flags { config: Some(path), ..Flags::default() })
}

#[test]
fn a_flag_wins_over_the_environment_which_wins_over_the_file() {
    let (_dir, mut flags) =
        file("[raft]\ntick_ms = 10\nheartbeat_ticks = 3\nelection_ticks = 30\n");
    flags.set = vec!["raft.tick_ms=30".to_owned()];
    let environment = environment(&[
        ("HIGHWATER__RAFT__TICK_MS", "20"),
        ("HIGHWATER__RAFT__HEARTBEAT_TICKS", "4"),
    ]);
    let config = Config::load(&flags, environment).unwrap();
    assert_eq!(config.raft, RaftSection { tick_ms: 30, heartbeat_ticks: 4, election_ticks: 30 });
    let origin = |key: &str| {
        config.lines().into_iter().find(|line| line.key == key).unwrap().origin.to_string()
    };
    assert_eq!(origin("raft.tick_ms"), "flag --set");
    assert_eq!(origin("raft.heartbeat_ticks"), "environment HIGHWATER__RAFT__HEARTBEAT_TICKS");
    assert!(origin("raft.election_ticks").starts_with("file "));
    assert_eq!(origin("node.id"), "default");
}

#[test]
fn every_named_flag_sets_its_key() {
    let text = |value: &str| Some(value.to_owned());
    let flags = Flags {
        node_id: text("7"),
        rack: text("r1"),
        data_dir: text("/d"),
        seeds: text("a:1, b:2"),
        listen: text("127.0.0.1:1"),
        advertise: text("h:2"),
        internal_listen: text("127.0.0.1:3"),
        internal_advertise: text("h:4"),
        http_listen: text("127.0.0.1:5"),
        ..Flags::default()
    };
    let config = Config::load(&flags, Vec::new()).unwrap();
    assert_eq!(config.node.id, Some(7));
    assert_eq!(config.node.rack, "r1");
    assert_eq!(config.node.data_dir, PathBuf::from("/d"));
    assert_eq!(config.node.seeds, ["a:1", "b:2"]);
    assert_eq!(config.listen.client, "127.0.0.1:1");
    assert_eq!(config.listen.advertise.as_deref(), Some("h:2"));
    assert_eq!(config.listen.internal, "127.0.0.1:3");
    assert_eq!(config.listen.internal_advertise.as_deref(), Some("h:4"));
    assert_eq!(config.listen.http, "127.0.0.1:5");
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest_key() {
    assert_eq!(
        error_text(&["raft.tickms=1"]),
        "unknown key 'raft.tickms' (flag --set); did you mean 'raft.tick_ms'?"
    );
    let environment = environment(&[("HIGHWATER__NODE__DATADIR", "x"), ("HIGHWATER_SERVERS", "y")]);
    assert_eq!(
        Config::load(&Flags::default(), environment).unwrap_err().to_string(),
        "unknown key 'node.datadir' (environment HIGHWATER__NODE__DATADIR); did you mean 'node.data_dir'?"
    );
    let (_dir, flags) = file("[topics]\ntick_ms = 1\n");
    let text = Config::load(&flags, Vec::new()).unwrap_err().to_string();
    assert!(text.contains("'topics.tick_ms' (file "), "{text}");
    assert!(text.ends_with("did you mean 'raft.tick_ms'?"), "{text}");
}

#[test]
fn values_out_of_bounds_say_what_would_be_right() {
    assert_eq!(
        error_text(&["raft.tick_ms=0"]),
        "raft.tick_ms = '0' (flag --set): takes a number from 1 to 10000"
    );
    for wrong in ["node.id=0", "node.id=x", "topics.auto_create=yes", "log.format=xml"] {
        assert!(matches!(load_set(&[wrong]), Err(ConfigError::InvalidValue { .. })), "{wrong}");
    }
    assert!(error_text(&["nonsense"]).contains("takes KEY=VALUE"));
}

#[test]
fn numbers_take_underscores_and_binary_units() {
    let config = load_set(&["limits.in_flight_bytes=1GiB", "limits.topics=1_000"]).unwrap();
    assert_eq!(config.limits.in_flight_bytes, 1 << 30);
    assert_eq!(config.limits.topics, 1_000);
    assert!(load_set(&["limits.in_flight_bytes=99999999999999999999GiB"]).is_err());
}

#[test]
fn an_unspecified_address_is_not_advertised() {
    for address in ["0.0.0.0:7420", "[::]:7420"] {
        let bind = format!("listen.client={address}");
        let text = error_text(&[&bind]);
        assert!(text.starts_with("listen.advertise: nobody can connect to"), "{text}");
        assert!(load_set(&[&bind, "listen.advertise=broker-1:7420"]).is_ok());
        let text = error_text(&[&bind, &format!("listen.advertise={address}")]);
        assert!(text.contains("name a host or IP"), "{text}");
    }
    assert!(load_set(&["listen.http=0.0.0.0:7422"]).is_ok(), "HTTP is not advertised");
}

#[test]
fn addresses_are_checked_before_anything_is_bound() {
    for wrong in ["7420", "localhost", "host:99999", ":7420", "::1:7420", "[x]:1", "http://h:1"] {
        assert!(
            matches!(
                load_set(&[&format!("listen.http={wrong}")]),
                Err(ConfigError::Conflict { .. })
            ),
            "{wrong}"
        );
    }
    assert!(load_set(&["listen.http=[::1]:7422"]).is_ok());
    let text = error_text(&["listen.http=127.0.0.1:7420"]);
    assert_eq!(text, "listen.http: 127.0.0.1:7420 is taken by listen.client already");
}

#[test]
fn seeds_are_addresses_and_differ() {
    assert!(error_text(&["node.seeds=a:1,a:1"]).contains("twice"));
    assert!(error_text(&["node.seeds=a:0"]).contains("not 0"));
    assert!(error_text(&["node.seeds=a"]).contains("HOST:PORT"));
}

#[test]
fn named_listeners_come_from_file_and_environment() {
    let (_dir, flags) = file(
        "[node]\nseeds = [\"n1:7421\", \"n2:7421\"]\n[[listeners]]\nname = \"inside\"\nbind = \"127.0.0.1:7430\"\n",
    );
    let environment = environment(&[
        ("HIGHWATER__LISTENERS__INSIDE__ADVERTISE", "n1:7430"),
        ("HIGHWATER__LISTENERS__OTHER__BIND", "127.0.0.1:7440"),
    ]);
    let config = Config::load(&flags, environment).unwrap();
    assert_eq!(config.node.seeds, ["n1:7421", "n2:7421"]);
    assert_eq!(config.listeners["inside"].bind, "127.0.0.1:7430");
    assert_eq!(config.listeners["inside"].advertise.as_deref(), Some("n1:7430"));
    assert_eq!(config.client_listeners().len(), 3);
    for wrong in ["listeners.Big.bind=h:1", "listeners.default.bind=h:1", "listeners.x.bind=h"] {
        assert!(load_set(&[wrong]).is_err(), "{wrong}");
    }
    assert!(error_text(&["listeners.x.advertise=h:1"]).contains("listeners.x.bind"));
    assert!(error_text(&["listeners.x.port=1"]).contains("unknown key"));
}

#[test]
fn a_value_can_come_from_a_file_named_in_the_environment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seeds");
    std::fs::write(&path, "a:1,b:2\n").unwrap();
    let pairs = [("HIGHWATER__NODE__SEEDS_FILE", path.to_str().unwrap())];
    let config = Config::load(&Flags::default(), environment(&pairs)).unwrap();
    assert_eq!(config.node.seeds, ["a:1", "b:2"]);
    let pairs = [("HIGHWATER__NODE__SEEDS_FILE", "/does/not/exist")];
    let error = Config::load(&Flags::default(), environment(&pairs)).unwrap_err();
    assert!(matches!(error, ConfigError::Unreadable { .. }), "{error}");
}

#[test]
fn a_file_that_is_missing_or_not_toml_is_an_error_with_its_name() {
    let flags = Flags { config: Some("/does/not/exist.toml".into()), ..Flags::default() };
    assert!(Config::load(&flags, Vec::new()).unwrap_err().to_string().contains("exist.toml"));
    let (_dir, flags) = file("[node\n");
    assert!(matches!(Config::load(&flags, Vec::new()), Err(ConfigError::NotToml { .. })));
    let (_dir, flags) = file("[raft]\ntick_ms = 1.5\n");
    assert!(matches!(Config::load(&flags, Vec::new()), Err(ConfigError::InvalidValue { .. })));
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    assert!(error_text(&["raft.heartbeat_ticks=5"]).contains("set at least 11"));
    assert!(error_text(&["limits.in_flight_bytes_per_connection=1"]).contains("one batch"));
    assert!(error_text(&["limits.in_flight_bytes=5MiB"]).contains("at least"));
    assert!(error_text(&["storage.reserve_bytes=1"]).contains("one batch"));
    assert!(load_set(&["storage.reserve_bytes=0"]).is_ok());
}

#[test]
fn anything_but_loopback_is_warned_about() {
    assert!(Config::default().warnings().is_empty());
    let config = load_set(&["listen.client=0.0.0.0:7420", "listen.advertise=h:7420"]).unwrap();
    assert_eq!(config.warnings().len(), 1);
    assert!(config.warnings()[0].starts_with("listen.client = 0.0.0.0:7420"));
}

#[test]
fn printed_values_can_be_read_back() {
    let config = load_set(&[
        "node.id=3",
        "node.seeds=a:1,b:2",
        "listeners.inside.bind=127.0.0.1:1",
        "log.level=warn,highwater_broker=debug",
    ])
    .unwrap();
    let again: Vec<String> =
        config.lines().iter().map(|line| format!("{}={}", line.key, line.value)).collect();
    let again = load_set(&again.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    let plain = |config: &Config| {
        config.lines().into_iter().map(|line| (line.key, line.value)).collect::<BTreeMap<_, _>>()
    };
    assert_eq!(plain(&config), plain(&again));
}

#[test]
fn the_documentation_lists_every_key_with_its_default() {
    let docs = include_str!("../../../docs/configuration.md");
    let defaults = Config::default();
    let documented: Vec<&str> = docs
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .filter(|name| name.contains('.') && !name.starts_with("listeners."))
        .collect();
    let known: Vec<&str> = keys::KEYS.iter().map(|key| key.name).collect();
    assert_eq!(documented, known);
    for key in keys::KEYS {
        let row = docs.lines().find(|line| line.starts_with(&format!("| `{}`", key.name))).unwrap();
        let value = (key.get)(&defaults);
        let shown = if value.is_empty() { "| none |".to_owned() } else { format!("| `{value}` |") };
        assert!(row.contains(&shown), "{row} does not show {shown}");
        assert!(!key.values.is_empty());
    }
}

#[test]
fn the_node_is_told_the_addresses_that_were_bound_unless_others_are_advertised() {
    let config = load_set(&[
        "listen.client=127.0.0.1:0",
        "listeners.inside.bind=127.0.0.1:0",
        "listeners.inside.advertise=n1:9000",
    ])
    .unwrap();
    let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let clients =
        [(DEFAULT_LISTENER.to_owned(), address(5001)), ("inside".to_owned(), address(5002))];
    let bound = BoundAddresses { internal: address(5003), clients: clients.into() };
    let node = config.to_node_config(&bound);
    assert_eq!(node.internal_advertise, "127.0.0.1:5003");
    assert_eq!(node.listeners[DEFAULT_LISTENER], "127.0.0.1:5001");
    assert_eq!(node.listeners["inside"], "n1:9000");
}
