//! What other nodes write for each other: flannel's documents in etcd, annotations in Kubernetes.

#![cfg_attr(fuzzing, no_main)]

use std::collections::BTreeMap;

use flannel::{ANNOTATIONS, Annotations, Config, Lease, Subnet, SubnetEnv};

fn read(input: &[u8]) {
    if let Ok(lease) = Lease::parse(input) {
        assert_eq!(Lease::parse(lease.to_json().as_bytes()), Ok(lease));
    }
    if let Ok(all) = serde_json::from_slice::<BTreeMap<String, String>>(input) {
        annotated(&all);
    }
    if let Ok(config) = Config::parse(input)
        && config.backend.kind.has_subnets()
    {
        for subnet in flannel::free_subnets(&config, &[], 5) {
            assert!(config.allows(&subnet), "{subnet}");
            lives_on_disk(&config, subnet);
        }
    }
    let _ = Config::parse_assigned(input);
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(subnet) = text.parse::<Subnet>() {
        assert_eq!(subnet.to_string().parse(), Ok(subnet));
        assert!(subnet.overlaps(&subnet));
    }
    let _ = Annotations::new(text);
}

fn annotated(all: &BTreeMap<String, String>) {
    let names = Annotations::new(ANNOTATIONS).expect("flannel's prefix");
    let Some(text) = names.lease(all) else { return };
    if let Ok(lease) = Lease::parse(text.as_bytes()) {
        let written = names.written(&lease, &BTreeMap::new());
        assert!(names.says(&written, &lease));
        let again = names.lease(&written).expect("a node of the network");
        assert_eq!(Lease::parse(again.as_bytes()), Ok(lease));
    }
}

fn lives_on_disk(config: &Config, subnet: Subnet) {
    let (mtu, ip_masq) = (1450, false);
    let node = SubnetEnv {
        subnet,
        mtu,
        ip_masq,
    };
    let text = flannel::subnet_env(config, &node);
    assert_eq!(flannel::own_subnet(config, &text), Some(subnet), "{text}");
}

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|input: &[u8]| read(input));

#[cfg(not(fuzzing))]
fn main() -> std::process::ExitCode {
    fuzz::replay(read)
}
