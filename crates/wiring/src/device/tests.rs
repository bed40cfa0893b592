//! What is compared to know a device in a pod, without a kernel.

use netlink::Link;

use super::*;

const NODE: Option<i32> = Some(4);

fn link(name: &str, kind: Option<&str>) -> Link {
    Link {
        index: 7,
        name: name.into(),
        kind: kind.map(str::to_owned),
        ..Link::default()
    }
}

fn card() -> Device {
    Device {
        link: link("ens1f0", None),
        permanent: "02:00:00:00:00:01".parse().unwrap(),
        bus_id: "0000:00:1f.6".into(),
        ..Device::default()
    }
}

fn veth(name: &str, peer: u32, of: Option<i32>) -> Device {
    let link = Link {
        link: Some(peer),
        link_netnsid: of,
        ..link(name, Some("veth"))
    };
    Device {
        link,
        ..Device::default()
    }
}

fn origin(device: &Device) -> Origin {
    Origin {
        name: device.link.name.clone(),
        index: device.link.index,
        kind: device.link.kind.clone(),
        link: device.link.link,
        link_elsewhere: device.link.link_netnsid.is_some(),
        permanent: device.permanent.to_string(),
        bus_id: device.bus_id.clone(),
        ifname: "net1".into(),
        ..Origin::default()
    }
}

#[test]
fn hardware_is_known_by_its_place_on_the_bus_or_its_permanent_address() {
    let origin = origin(&card());
    let disguised = Device {
        link: Link {
            alias: Some("eth7".into()),
            ..link("x", None)
        },
        address: "02:00:00:00:00:99".parse().unwrap(),
        ..card()
    };
    assert!(origin.pick(&[disguised], Place::Pod(NODE)).is_some());
    let other = Device {
        bus_id: "0000:00:1f.7".into(),
        ..card()
    };
    assert!(origin.pick(&[other], Place::Pod(NODE)).is_none());
    // Kernels before 5.14 show no bus.
    let [old, foreign] = ["02:00:00:00:00:01", "02:00:00:00:00:02"].map(|address| Device {
        bus_id: String::new(),
        permanent: address.parse().unwrap(),
        ..card()
    });
    assert!(origin.pick(&[old], Place::Pod(NODE)).is_some());
    assert!(origin.pick(&[foreign], Place::Pod(NODE)).is_none());
    let looks_alike = Device {
        link: link("net1", Some("dummy")),
        ..card()
    };
    assert!(origin.pick(&[looks_alike], Place::Pod(NODE)).is_none());
}

#[test]
fn a_veth_is_known_by_its_other_end_on_the_node() {
    let origin = origin(&veth("dev0", 3, None));
    let devices = [
        // Its other end is in the pod.
        veth("net1", 3, None),
        // In a namespace of the pod.
        veth("net1", 3, Some(5)),
        veth("net1", 4, NODE),
        veth("x", 3, NODE),
    ];
    let picked = origin.pick(&devices, Place::Pod(NODE));
    assert_eq!(picked.unwrap().link.name, "x");
    assert_eq!(origin.pick(&devices[..3], Place::Pod(NODE)), None);
    // Without an id of the node, no end is there.
    assert_eq!(origin.pick(&devices[1..3], Place::Pod(None)), None);
}

#[test]
fn of_links_that_a_pod_can_make_the_alias_and_the_name_decide() {
    let dummy = |name: &str, alias: Option<&str>| Device {
        link: Link {
            alias: alias.map(str::to_owned),
            ..link(name, Some("dummy"))
        },
        ..Device::default()
    };
    let origin = origin(&dummy("dummy0", None));
    let place = Place::Pod(NODE);
    let devices = [
        dummy("net1", None),
        dummy("x", Some("dummy0")),
        dummy("other", None),
    ];
    assert_eq!(origin.pick(&devices, place).unwrap().link.name, "x");
    let without = [devices[0].clone(), devices[2].clone()];
    assert_eq!(origin.pick(&without, place).unwrap().link.name, "net1");
    assert_eq!(origin.pick(&devices[2..], place), None);
    // The node may have a net1 of its own.
    assert_eq!(origin.pick(&without, Place::Node), None);
    assert!(origin.pick(&devices, Place::Node).is_some());
}

#[test]
fn a_note_with_a_name_that_no_link_can_have_is_none() {
    let note = |name: &str| {
        serde_json::to_string(&Origin {
            name: name.into(),
            ..origin(&card())
        })
    };
    assert_eq!(
        Origin::parse(&note("ens1f0").unwrap()),
        Some(origin(&card()))
    );
    for name in ["", "a/b", "a-name-that-is-too-long"] {
        assert_eq!(Origin::parse(&note(name).unwrap()), None);
    }
    for text in ["", "[]", "{}", "{\"name\": 1}"] {
        assert_eq!(Origin::parse(text), None, "{text}");
    }
}

#[test]
fn without_a_note_a_link_of_the_pod_alone_is_not_taken() {
    let named = |device: Device, alias: &str| Device {
        link: Link {
            alias: Some(alias.into()),
            ..device.link
        },
        ..device
    };
    let hint = Hint {
        name: "dev0".into(),
        ..Hint::default()
    };
    let inside = named(veth("net1", 3, None), "dev0");
    assert_eq!(
        hint.pick_in_pod(std::slice::from_ref(&inside), "net1"),
        None
    );
    let tap = named(
        Device {
            link: link("net1", Some("tun")),
            ..Device::default()
        },
        "dev0",
    );
    assert_eq!(hint.pick_in_pod(&[tap], "net1"), None);
    let outside = named(veth("x", 3, NODE), "dev0");
    let devices = [inside, named(veth("net1", 9, NODE), "dev9"), outside];
    assert_eq!(hint.pick_in_pod(&devices, "net1").unwrap().link.name, "x");
    let unnamed = Hint::default();
    let picked = unnamed.pick_in_pod(&devices, "net1");
    assert_eq!(picked.unwrap().link.link, Some(9));
    // An alias of ours is no name.
    let ours = named(veth("net1", 9, NODE), "podwire:net/a/net1");
    assert_eq!(unnamed.pick_in_pod(&[ours], "net1"), None);
}

#[test]
fn without_a_note_the_kernels_names_tell_what_it_has_returned() {
    let hint = Hint {
        name: "ens1f0".into(),
        ..Hint::default()
    };
    let returned = |name: &str, alias: &str, up| Device {
        link: Link {
            alias: Some(alias.into()),
            up,
            ..link(name, None)
        },
        ..card()
    };
    for (name, alias, up, expected) in [
        ("net1", "ens1f0", false, true),
        ("dev7", "ens1f0", false, true),
        ("net1", "ens1f1", false, false),
        ("net1", "ens1f0", true, false),
        ("eth9", "ens1f0", false, false),
        ("ens1f0", "ens1f0", false, false),
    ] {
        let picked = [returned(name, alias, up)];
        let picked = hint.pick_returned(&picked, "net1").is_some();
        assert_eq!(picked, expected, "{name} {alias} {up}");
    }
    // By its place on the bus, which has an interface under the pod's name.
    let by_place = |present: &str| Hint {
        present: present.into(),
        ..Hint::default()
    };
    let devices = [returned("net1", "ens1f0", false)];
    assert!(by_place("net1").pick_returned(&devices, "net1").is_some());
    assert!(by_place("").pick_returned(&devices, "net1").is_none());
    assert!(by_place("dev7").pick_returned(&devices, "net1").is_none());
}
