//! Configurations, flags and the example.

use sandbox::{Sandbox, Suite, beyond_peer, conf};
use serde_json::json;

use crate::{STATE, WHY, Wire, dnsmasq, lan, station};

#[test]
fn a_bad_configuration_is_refused_before_the_daemon_is_called() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        for (ipam, msg) in [
            (
                json!({"provide": [{"option": "nope", "value": "x"}]}),
                "Can not parse option \"nope\": neither a known name nor a number from 0 to 255"
                    .to_owned(),
            ),
            (
                json!({"provide": [{"option": "12", "value": "x".repeat(256)}]}),
                format!("value too long for option \"12\": \"{}\"", "x".repeat(256)),
            ),
        ] {
            let conf = conf::with(&lan(), json!({"ipam": ipam}));
            let error = sandbox.cni("dhcp").add(&conf, &pod, "eth0").error();
            assert_eq!((error.code, error.msg), (7, msg));
            sandbox.cni("dhcp").del(&conf, &pod, "eth0").silent();
        }
        let conf = conf::plugin("bridge");
        let error = sandbox.cni("dhcp").add(&conf, &pod, "eth0").error();
        assert_eq!(error.msg, "IPAM config missing 'ipam' key");
        let nowhere = conf::with(&lan(), json!({"ipam": {"daemonSocketPath": "/run/x.sock"}}));
        let error = sandbox.cni("dhcp").add(&nowhere, &pod, "eth0").error();
        assert!(
            error
                .msg
                .contains("dial unix /run/x.sock: connect: no such file"),
            "{error:?}"
        );
    });
}

#[test]
fn the_example_works() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        sandbox.host().sh("ip link add lan type bridge
             ip link set lan up");
        let server = station(&sandbox, "server", "10.77.0.1/16");
        let _server = dnsmasq(&server, "10.77.0.10,10.77.0.99,255.255.0.0,2m", &[]);
        // The example's bridge is made by the plugin; the server's wire is led into it.
        sandbox
            .host()
            .sh("ip link add uplink type veth peer name ex-up
             ip link set uplink master lan up
             ip link add ex-dhcp type bridge
             ip link set ex-dhcp up
             ip link set ex-up master ex-dhcp up");
        let wire = Wire { sandbox, server };
        let _daemon = wire.daemon(&[]);
        let pod = wire.sandbox.pod("blue");
        let bin = Suite::Ours.dir().display();
        let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../netconf-examples");
        let run = |verb: &str| {
            wire.host().sh(&format!(
                "export CNI_PATH={bin} NETCONFPATH={examples} CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAME=web'
                 {bin}/podwire {verb} example-dhcp {}",
                pod.path()
            ))
        };
        for verb in ["status", "add", "check"] {
            run(verb);
        }
        assert!(pod.addresses("eth0")[0].starts_with("10.77.0."));
        assert_eq!(pod.ping("10.77.0.1", 1), [true]);
        run("del");
        assert!(wire.sandbox.list(STATE).is_empty());
    });
}

#[test]
fn the_help_is_a_page() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let program = Suite::Ours.dir().join("dhcp").display().to_string();
        let help = sandbox.host().run(&[&program, "daemon", "--help"]);
        assert_eq!(help.code, 0);
        for part in [
            "USAGE",
            "FLAGS",
            "-resendtimeout",
            "FILES",
            "SIGNALS",
            "EXIT STATUS",
        ] {
            assert!(help.stdout.contains(part), "{part}");
        }
        let wrong = sandbox.host().run(&[&program, "daemon", "-nope"]);
        assert_eq!((wrong.code, wrong.stdout.as_str()), (2, ""));
        assert!(
            wrong.stderr.contains("unknown flag -nope"),
            "{}",
            wrong.stderr
        );
    });
}
