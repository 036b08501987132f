//! What is announced, against a model, and its bounds.

use proptest::prelude::*;

use super::*;

fn instance(service: &str, id: &str, address: &str) -> ServiceInstance {
    ServiceInstance {
        service: service.into(),
        id: id.into(),
        address: address.into(),
        lease_ms: LEASE_MS_DEFAULT,
        ..Default::default()
    }
}

fn ended(service: &str, id: &str, granted_index: u64) -> EndedLease {
    EndedLease { service: service.into(), id: id.into(), granted_index }
}

#[test]
fn what_is_announced_again_has_a_new_lease_and_is_the_same_instance() {
    let mut registry = Registry::default();
    registry.grant(&instance("pricing", "a", "h1"), 5).unwrap();
    let first = registry.service("pricing")["a"].clone();
    registry.grant(&instance("pricing", "a", "h1"), 6).unwrap();
    let again = registry.service("pricing")["a"].clone();
    assert!(Arc::ptr_eq(&first.instance, &again.instance));
    assert_eq!((again.granted_index, registry.len()), (6, 1));
    // The first lease has expired, which says nothing of the second.
    registry.end(&ended("pricing", "a", 5));
    assert_eq!(registry.len(), 1);
    registry.end(&ended("pricing", "a", 6));
    assert!(registry.is_empty());
    // Told twice.
    registry.end(&ended("pricing", "a", 6));
    assert!(registry.service("pricing").is_empty());
}

#[test]
fn there_is_room_for_so_many_and_their_places_are_used_again() {
    let mut registry = Registry::default();
    for number in 0..INSTANCES_MAX {
        registry.grant(&instance("s", &number.to_string(), ""), number as u64 + 1).unwrap();
    }
    let one_more = instance("s", "one-more", "");
    assert!(registry.grant(&one_more, 99_999).unwrap_err().contains("10000 instances"));
    // Those that are there can still change.
    registry.grant(&instance("s", "7", "elsewhere"), 99_999).unwrap();
    registry.end(&ended("s", "8", 0));
    registry.grant(&one_more, 100_000).unwrap();
}

#[test]
fn there_is_room_for_so_many_bytes() {
    let mut registry = Registry::default();
    let large = |number: usize| ServiceInstance {
        attributes: (0..ATTRIBUTES_MAX)
            .map(|key| (format!("{key:064}"), "v".repeat(VALUE_BYTES_MAX)))
            .collect(),
        ..instance("s", &number.to_string(), "")
    };
    let fits = (0..INSTANCES_MAX).find(|number| registry.grant(&large(*number), 1).is_err());
    let fits = fits.expect("so many large ones do not fit");
    assert_eq!(registry.len(), fits);
    let image: usize = registry.to_image().iter().map(Message::encoded_len).sum();
    assert!(image > BYTES_MAX / 2 && image < BYTES_MAX + fits * 16, "{image}");
    // The same in less space may go where it is.
    registry.grant(&instance("s", "0", ""), 2).unwrap();
    registry.grant(&large(0), 3).unwrap();
}

#[test]
fn what_may_not_be_announced_is_refused_with_the_field_and_the_bound() {
    let good = || instance("pricing", "5ca1ab1e-0000", "10.0.0.7:9000");
    assert_eq!(checked(ServiceInstance { lease_ms: 0, ..good() }).unwrap().lease_ms, 10_000);
    let attribute = |key: &str, value: &str| ServiceInstance {
        attributes: BTreeMap::from([(key.to_owned(), value.to_owned())]),
        ..good()
    };
    let many = (0..=ATTRIBUTES_MAX).map(|key| (key.to_string(), String::new())).collect();
    let cases = [
        (instance("", "a", ""), "service: must not be empty"),
        (instance("a b", "a", ""), "only letters"),
        (instance(&"x".repeat(250), "a", ""), "249"),
        (instance("s", "", ""), "id: must not be empty"),
        (instance("s", &"x".repeat(65), ""), "64"),
        (instance("s", "a", &"x".repeat(257)), "256"),
        (instance("s", "a", "h\n"), "control characters"),
        (ServiceInstance { attributes: many, ..good() }, "33 are more than the 32"),
        (attribute("", "v"), "must not be empty"),
        (attribute(&"k".repeat(65), "v"), "64"),
        (attribute("k", &"v".repeat(257)), "attribute 'k'"),
        (ServiceInstance { lease_ms: 999, ..good() }, "at least 1000"),
        (ServiceInstance { lease_ms: 3_600_001, ..good() }, "at most 3600000"),
    ];
    for (instance, expected) in cases {
        let error = checked(instance).unwrap_err();
        assert_eq!(error.reason(), "INVALID_ARGUMENT");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Grant {
        service: u8,
        id: u8,
        address: u8,
    },
    /// Ends the lease that the instance has, or the one before.
    Expire {
        service: u8,
        id: u8,
        is_old: bool,
    },
    Release {
        service: u8,
        id: u8,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let (service, id) = (0..3u8, 0..4u8);
    prop_oneof![
        (service.clone(), id.clone(), 0..2u8).prop_map(|(service, id, address)| Step::Grant {
            service,
            id,
            address
        }),
        (service.clone(), id.clone(), any::<bool>())
            .prop_map(|(service, id, is_old)| Step::Expire { service, id, is_old }),
        (service, id).prop_map(|(service, id)| Step::Release { service, id }),
    ]
}

proptest! {
    #[test]
    fn it_holds_what_was_granted_last_and_not_ended_since(steps in proptest::collection::vec(step(), 0..60)) {
        let mut registry = Registry::default();
        let mut model: BTreeMap<(String, String), (String, u64)> = BTreeMap::new();
        for (step, index) in steps.into_iter().zip(1u64..) {
            match step {
                Step::Grant { service, id, address } => {
                    let announced =
                        instance(&service.to_string(), &id.to_string(), &address.to_string());
                    registry.grant(&announced, index).unwrap();
                    model.insert((announced.service, announced.id), (announced.address, index));
                }
                Step::Expire { service, id, is_old } => {
                    let key = (service.to_string(), id.to_string());
                    let has = model.get(&key).map_or(index, |(_, granted)| *granted);
                    let named = if is_old { has.saturating_sub(1).max(1) } else { has };
                    registry.end(&ended(&key.0, &key.1, named));
                    if named == has {
                        model.remove(&key);
                    }
                }
                Step::Release { service, id } => {
                    let key = (service.to_string(), id.to_string());
                    registry.end(&ended(&key.0, &key.1, 0));
                    model.remove(&key);
                }
            }
            let held: BTreeMap<(String, String), (String, u64)> = registry
                .leases()
                .map(|lease| {
                    let it = &lease.instance;
                    let key = (it.service.clone(), it.id.clone());
                    (key, (it.address.clone(), lease.granted_index))
                })
                .collect();
            prop_assert_eq!(&held, &model);
            let restored = Registry::from_image(registry.to_image());
            prop_assert_eq!(restored.to_image(), registry.to_image());
            for it in [&restored, &registry] {
                let bytes: usize = it.leases().map(|lease| lease.instance.encoded_len()).sum();
                prop_assert_eq!((it.instances, it.bytes), (model.len(), bytes));
                prop_assert!(it.services.values().all(|service| !service.is_empty()));
            }
        }
    }
}
