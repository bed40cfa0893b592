//! Pages in a browser: that of `podwire graph -o html`, and that of the agent. In two sizes of the
//! window, in light and dark, everything is there, inside the window, and nothing is on top of something else.

mod browser;

use sandbox::{Netns, Running, Sandbox, Suite, beyond_peer, conf};
use serde_json::{Value, json};

use browser::Browser;

const WHY: &str = "Debian has nothing like it";
const SIZES: [[u32; 2]; 2] = [[1280, 800], [390, 844]];
/// The name of a pod that would like to be a script.
const HOSTILE: &str = "</script><script>alert(1)</script>";

/// Functions for scripts of the tests.
const LIBRARY: &str = include_str!("look.js");

/// A node with two networks, three pods, a published port; each of its pages in a browser.
struct Node {
    sandbox: Sandbox,
    pods: Vec<Netns>,
}

impl Node {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.wire();
        let host = sandbox.host();
        host.sh("ip address add 192.0.2.11/24 dev eth1; ip route add default via 192.0.2.1");
        let web = json!([
            {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipMasq": true,
             "ipam": conf::host_local_ipam(&["10.1.0.0/24", "fd01::/64"])},
            {"type": "portmap", "capabilities": {"portMappings": true}}]);
        let lan = json!([{"type": "macvlan", "master": "eth1", "ipam": conf::host_local_ipam(&["198.51.100.0/24"])}]);
        for (name, plugins) in [("web", web), ("lan", lan)] {
            let file = sandbox.dir().join(format!("net.d/{name}.conflist"));
            let list = json!({"cniVersion": "1.1.0", "name": name, "plugins": plugins});
            sandbox.write(file, list.to_string());
        }
        let pods = ["a", "b", "c"].map(|it| sandbox.pod(it)).into();
        let node = Self { sandbox, pods };
        let ports =
            r#"{"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}"#;
        node.attach("web", 0, HOSTILE, "eth0", ports);
        node.attach("web", 1, "db", "eth0", "");
        node.attach("lan", 1, "db", "net1", "");
        node
    }

    fn attach(&self, network: &str, pod: usize, name: &str, ifname: &str, offered: &str) {
        let args = format!("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME={name}");
        let path = self.pods[pod].path();
        let offered = format!("CAP_ARGS={offered}");
        self.podwire(&[&args, &offered], &["add", "-i", ifname, network, &path]);
    }

    fn podwire(&self, env: &[&str], args: &[&str]) -> String {
        let bin = Suite::Ours.dir();
        let conf_dir = self.sandbox.dir().join("net.d");
        let env: Vec<_> = env.iter().map(|it| (*it).to_owned()).collect();
        let all = [
            vec!["env".to_owned()],
            env,
            vec![
                format!("CNI_PATH={}", bin.display()),
                format!("NETCONFPATH={}", conf_dir.display()),
                bin.join("podwire").display().to_string(),
            ],
        ];
        let all = all.concat();
        let argv: Vec<_> = all
            .iter()
            .map(String::as_str)
            .chain(args.iter().copied())
            .collect();
        let done = self.sandbox.host().run(&argv);
        assert_eq!(done.code, 0, "{done:?}");
        done.stdout
    }

    /// The agent, which serves its page at port 9153.
    fn agent(&self) -> Running {
        let places =
            json!({"confDir": self.sandbox.dir().join("net.d"), "pluginDirs": [Suite::Ours.dir()]});
        let conf = json!({"endpoint": "127.0.0.1:9153", "page": places});
        let file = self.sandbox.dir().join("podwired.json");
        self.sandbox.write(&file, conf.to_string());
        let program = Suite::Ours.dir().join("podwired").display().to_string();
        let host = self.sandbox.host();
        let agent = host.start(&[&program, "--config", &file.display().to_string()]);
        host.wait_until("the page is served", |_| {
            self.curl(&[], "/healthz").1 == "ok\n"
        });
        agent
    }

    /// The head and the body of an answer of the agent.
    fn curl(&self, options: &[&str], path: &str) -> (String, String) {
        let url = format!("http://127.0.0.1:9153{path}");
        let argv = [&["curl", "-s", "-i"], options, &[&url]].concat();
        let text = self.sandbox.host().run(&argv).stdout;
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        (head.to_owned(), body.to_owned())
    }
}

/// Nothing of what is seen is outside of the window, on top of something else, or cut.
#[track_caller]
fn assert_tidy(browser: &Browser, place: &str) {
    for (what, script) in [
        (
            "beyond the edge",
            "outside('header *, main button, main table, .card, #details')",
        ),
        (
            "on top of another",
            "overlaps('header > *, nav > *, .tools, .card')",
        ),
        (
            "boxes on top of another",
            "overlaps('#drawing .box:not(.host):not(.pod):not(.group)')",
        ),
        ("text beyond its box", "cut()"),
    ] {
        assert_eq!(browser.run(script), json!([]), "{place}: {what}");
    }
    let wide = browser.run("document.documentElement.scrollWidth <= innerWidth");
    assert_eq!(wide, true, "{place}: the page is wider than the window");
}

fn each_look(browser: &Browser, mut test: impl FnMut(&str)) {
    for size in SIZES {
        for scheme in ["light", "dark"] {
            browser.look(size, scheme);
            let paper = browser.run("getComputedStyle(document.body).backgroundColor");
            let is_dark = paper == "rgb(13, 17, 23)";
            assert_eq!(is_dark, scheme == "dark", "{paper}");
            test(&format!("{size:?} {scheme}"));
        }
    }
}

#[test]
fn a_graph_on_a_page_of_its_own_is_readable_and_searched() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let file = node.sandbox.dir().join("graph.html");
        node.sandbox
            .write(&file, node.podwire(&[], &["graph", "-o", "html"]));
        let browser = Browser::start(&node.sandbox);
        browser.open(&format!("file://{}", file.display()));
        browser.run(LIBRARY);
        let boxes = browser.run("visible('#drawing .box').length");
        assert!(boxes.as_u64().is_some_and(|it| it > 8), "{boxes}");
        each_look(&browser, |look| {
            browser.run("document.getElementById('whole').click()");
            assert_tidy(&browser, look);
            browser.run("choose(graph.nodes.find((it) => it.name === 'cni0').id)");
            let details = browser.run("document.getElementById('details').innerText");
            assert!(details.to_string().contains("10.1.0.1/24"), "{details}");
            assert_tidy(&browser, look);
            browser.run("choose('')");
        });
        let found = browser.run(
            "search.value = '10.1.0.2'; search.dispatchEvent(new Event('input')); count.textContent",
        );
        assert!(
            found.to_string().contains("found") && found != "0 found",
            "{found}"
        );
        let width = browser.run("zoom(0.5); drawing.viewBox.baseVal.width / drawing.dataset.width");
        assert_eq!(width, 0.5);
    });
}

#[test]
fn the_page_of_the_agent_shows_the_node_and_follows_it() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let _agent = node.agent();
        let browser = Browser::start(&node.sandbox);
        browser.open("http://127.0.0.1:9153/");
        browser.wait_until("document.querySelectorAll('#drawing .box').length > 8");
        browser.run(LIBRARY);
        each_look(&browser, |look| {
            for view in ["user", "host"] {
                let networks = "graph.nodes.some((it) => it.kind === 'network')";
                browser.run(&format!("document.getElementById('view-{view}').click()"));
                browser.wait_until(&format!("{networks} === {}", view == "user"));
                assert_tidy(&browser, &format!("{look} {view}"));
            }
            for (tab, content) in [
                ("pods", "tbody tr"),
                ("findings", ".empty"),
                ("metrics", "tbody tr"),
            ] {
                browser.run(&format!("document.getElementById('tab-{tab}').click()"));
                browser.wait_until(&format!("visible('#{tab} {content}').length > 0"));
                assert_tidy(&browser, &format!("{look} {tab}"));
            }
            browser.run("document.getElementById('tab-graph').click()");
        });
        // What pods call themselves is text.
        assert_eq!(browser.run("document.scripts.length"), 1);
        let names = browser.run(
            "[...document.querySelectorAll('#pods tbody button')].map((it) => it.textContent)",
        );
        assert_eq!(names, json!([HOSTILE, "db"]));
        // A pod comes, and a fault.
        browser.run("document.getElementById('tab-pods').click()");
        node.attach("web", 2, "new", "eth0", "");
        browser.wait_until("visible('#pods tbody tr').length === 3");
        node.sandbox.host().sh("sysctl -qw net.ipv4.ip_forward=0");
        browser.run("document.getElementById('tab-findings').click()");
        browser.wait_until("document.getElementById('findings').innerText.includes('PW001')");
        browser.run(LIBRARY);
        each_look(&browser, |look| assert_tidy(&browser, look));
        // From the list to the graph.
        browser.run("document.querySelector('#pods tbody button').click()");
        browser.wait_until("document.querySelectorAll('.box.chosen').length > 0");
        assert_eq!(
            browser.run("details.querySelector('h2').textContent"),
            HOSTILE
        );
        each_look(&browser, |look| assert_tidy(&browser, look));
    });
}

#[test]
fn the_agent_serves_its_page_to_this_node_alone() {
    beyond_peer(WHY, || {
        let node = Node::new();
        let _agent = node.agent();
        let (head, page) = node.curl(&[], "/");
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "connect-src 'self'",
        ] {
            assert!(head.contains(part), "{part}: {head}");
        }
        assert!(!page.contains("unsafe-inline") && !page.contains("http://127"));
        // A name that an attacker has made lead to 127.0.0.1.
        for path in ["/", "/state", "/metrics"] {
            let (head, body) = node.curl(&["-H", "Host: evil.example:9153"], path);
            assert!(head.starts_with("HTTP/1.1 421 "), "{head}");
            assert!(!body.contains("podwired_role"), "{body}");
        }
        assert!(
            node.curl(&["-H", "Host: localhost:8000"], "/")
                .0
                .starts_with("HTTP/1.1 200 ")
        );
        assert!(
            node.curl(&["-X", "POST"], "/")
                .0
                .starts_with("HTTP/1.1 405 ")
        );
        // The state is sent once.
        let (head, state) = node.curl(&[], "/state?view=user");
        let state: Value = serde_json::from_str(&state).expect("JSON");
        assert_eq!(state["containers"].as_array().map(Vec::len), Some(2));
        assert_eq!(state["doctor"]["findings"], json!([]));
        let tag = head
            .lines()
            .find_map(|it| it.strip_prefix("etag: "))
            .expect("a tag");
        let (head, body) = node.curl(
            &["-H", &format!("If-None-Match: {tag}")],
            "/state?view=user",
        );
        assert!(
            head.starts_with("HTTP/1.1 304 ") && body.is_empty(),
            "{head}"
        );
    });
}
