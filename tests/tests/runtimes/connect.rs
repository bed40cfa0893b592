//! `podwire network connect` and `disconnect` on containers of other runtimes: found by what the
//! runtimes keep, and swept when they are gone.

use sandbox::{RuntimeNode, conf};
use serde_json::json;

/// The further network, which no runtime knows.
const SECOND: &str = "second";

/// podwire on a node with a runtime.
pub struct Podwire<'a> {
    node: &'a RuntimeNode,
    dir: String,
}

impl<'a> Podwire<'a> {
    pub fn new(node: &'a RuntimeNode) -> Self {
        let plugin = json!({"type": "bridge", "bridge": "second0", "isDefaultGateway": true,
            "ipam": conf::host_local_ipam(&["10.99.0.0/24"])});
        let list = json!({"cniVersion": "1.0.0", "name": SECOND, "plugins": [plugin]});
        node.write("second.d/second.conflist", list.to_string());
        let dir = node.path("second.d");
        Self { node, dir }
    }

    #[track_caller]
    fn must(&self, args: &[&str]) -> String {
        let bin = self.node.plugins();
        let settings = [
            format!("NETCONFPATH={}", self.dir),
            format!("CNI_PATH={bin}"),
        ];
        let program = format!("{bin}/podwire");
        let call = ["env", &settings[0], &settings[1], &program];
        self.node.must(&[&call[..], args].concat())
    }

    /// Connects `container`, looks at it with `ip_of_eth1`, disconnects and connects it again, and
    /// ends it with `end`. The route to the outside stays that of the runtime.
    #[track_caller]
    pub fn connects(&self, container: &str, run: impl Fn(&[&str]) -> String, end: impl FnOnce()) {
        let has_eth1 = || run(&["ip", "addr"]).contains("eth1");
        let route = || run(&["ip", "route", "get", "192.0.2.1"]);
        let before = route();
        self.must(&["network", "connect", SECOND, container]);
        let shown = run(&["ip", "addr", "show", "dev", "eth1"]);
        assert!(shown.contains("inet 10.99.0."), "{shown}");
        assert_eq!(route().lines().next(), before.lines().next());
        run(&["ping", "-c", "1", "-W", "2", "10.99.0.1"]);
        self.must(&["network", "disconnect", SECOND, container]);
        assert!(!has_eth1());
        self.assert_nothing_left();
        self.must(&["network", "connect", SECOND, container]);
        self.must(&["ps"]);
        assert!(has_eth1(), "it lives");
        end();
        self.must(&["ps"]);
        self.assert_nothing_left();
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        let sandbox = self.node.sandbox();
        let mut left = sandbox.list("/var/lib/cni/podwire");
        let results = sandbox.list("/var/lib/cni/results").into_iter();
        left.extend(results.filter(|it| it.starts_with(SECOND)));
        let reserved = sandbox
            .list(format!("/var/lib/cni/networks/{SECOND}"))
            .into_iter();
        left.extend(reserved.filter(|it| it.starts_with("10.")));
        assert!(left.is_empty(), "{left:?}");
    }
}
