use super::*;
use cni::json;
use netlink::Link;
use wiring::parent::Master;

fn new(text: &str, has_ipam: bool) -> Result<Plan, Faults> {
    let conf: Conf = json::read(text).unwrap();
    Plan::new(&conf, has_ipam)
}

fn plan(text: &str) -> Result<Plan, String> {
    new(text, true).map_err(|faults| faults.first().error.msg.clone())
}

fn parent(mtu: u32) -> Parent {
    Parent {
        link: Link {
            index: 7,
            name: "eth1".into(),
            mtu,
            ..Link::default()
        },
        carrier: true,
        ethernet: true,
    }
}

#[test]
fn only_the_master_is_required() {
    let plan = plan(r#"{"master": "eth1"}"#).unwrap();
    assert_eq!(plan.parent.master, Master::Named("eth1".into()));
    assert_eq!((plan.id, plan.mtu), (0, 0));
    assert!(!plan.parent.in_container && !plan.detect_conflicts);
}

#[test]
fn without_a_master_there_is_no_vlan() {
    let text =
        "\"master\" field is required. It specifies the host interface name to create the VLAN for";
    assert_eq!(plan(r#"{"vlanId": 5}"#).unwrap_err(), text);
    assert_eq!(plan(r#"{"master": "", "vlanId": 5}"#).unwrap_err(), text);
}

#[test]
fn a_master_may_be_patterns() {
    let plan = plan(r#"{"master": "bond0|en*"}"#).unwrap();
    assert!(matches!(plan.parent.master, Master::Matching(_)));
}

#[test]
fn a_vlan_id_is_at_most_4094() {
    let id = |id: i64| plan(&format!(r#"{{"master": "eth1", "vlanId": {id}}}"#)).map(|it| it.id);
    assert_eq!(id(0), Ok(0));
    assert_eq!(id(4094), Ok(4094));
    for wrong in [-1, 4095, 65541, i64::MAX] {
        let text = format!("invalid VLAN ID {wrong} (must be between 0 and 4095 inclusive)");
        assert_eq!(id(wrong), Err(text));
    }
}

#[test]
fn every_fault_is_reported_with_its_key() {
    let faults = new(r#"{"vlanId": 5000}"#, false).unwrap_err();
    let keys: Vec<_> = faults.into_iter().map(|fault| fault.key).collect();
    assert_eq!(keys, ["master", "vlanId", "ipam"]);
}

#[test]
fn the_link_has_an_mtu_that_its_parent_can_carry() {
    let attachment = Attachment {
        network: "net".into(),
        container_id: cni::env::ContainerId::parse("a").unwrap(),
        ifname: cni::env::IfName::parse("eth0").unwrap(),
    };
    let spec = |mtu: i64, of_parent| {
        let plan = plan(&format!(
            r#"{{"master": "eth1", "vlanId": 5, "mtu": {mtu}}}"#
        ));
        let spec = plan.unwrap().spec(&attachment, &parent(of_parent));
        spec.map_err(|error| error.to_string())
    };
    let wanted = spec(1400, 1500).unwrap();
    assert_eq!((wanted.mtu, wanted.parent), (Some(1400), Some(7)));
    assert_eq!((wanted.name.as_str(), wanted.mac), ("eth0", None));
    assert_eq!(wanted.kind, LinkKind::Vlan { id: 5 });
    assert_eq!(spec(0, 1500).unwrap().mtu, None);
    for wrong in [-100, 1600] {
        let text = format!("invalid MTU {wrong}, must be [0, master MTU(1500)]");
        assert_eq!(spec(wrong, 1500).unwrap_err(), text);
    }
}
