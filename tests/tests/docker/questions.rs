//! The same questions to Docker's resolver, to aardvark-dns and to podwired. The answers are a table of
//! docs/names.md, with the reason for each difference.
//!
//! Debian packages: docker.io, aardvark-dns, dnsmasq-base, bind9-dnsutils.

use std::thread;

use sandbox::{Docker, Netns, Running, Sandbox, beyond_peer};

use crate::WHY;
use crate::node::{Engine, Podwire};

/// What is asked, and what happens before.
#[derive(Clone, Copy)]
enum Step {
    /// A question in the container `front`: the first cell of the row, and words of dig(1). `ID` is the
    /// short id of `api`, `AT` its address, `DOMAIN` the domain that the container searches.
    Ask(&'static str, &'static [&'static str]),
    /// The same for the time that the answer may be remembered.
    Lifetime(&'static str, &'static str),
    /// `api` is replaced by a container with another address.
    Replace,
    /// The network gets another name.
    Rename,
    /// `api` ends.
    Remove,
    /// The name server outside ends.
    Darken,
}

use Step::{Ask, Darken, Lifetime, Remove, Rename, Replace};

const STEPS: &[Step] = &[
    Ask("`api`, a container's name", &["api"]),
    Ask("`API`", &["API"]),
    Ask("`api` over TCP", &["api", "+tcp"]),
    Ask("`only`, an alias of `api`", &["only"]),
    Ask("`svc`, an alias of `api` and `other`", &["svc"]),
    Ask("the short id of `api`", &["ID"]),
    Ask("`h-api`, the host name of `api`", &["h-api"]),
    Ask("`front`, by itself", &["front"]),
    Ask("`api.web`, with the network's name", &["api.web"]),
    Ask(
        "`api` in the domain that containers search",
        &["api.DOMAIN"],
    ),
    Ask("`nothing` in that domain", &["nothing.DOMAIN"]),
    Ask("`api` AAAA; it has no such address", &["api", "AAAA"]),
    Ask("`api` MX", &["api", "MX"]),
    Ask("the address of `api`, PTR", &["-x", "AT"]),
    Ask(
        "an unused address of the subnet, PTR",
        &["-x", "10.71.0.200"],
    ),
    Ask("`nothing`, a single label", &["nothing"]),
    Ask("`nothing.web`", &["nothing.web"]),
    Ask("`secret`, a container of another network", &["secret"]),
    Ask("`www.example`, a name outside", &["www.example"]),
    Ask("`no.example`, which does not exist", &["no.example"]),
    Lifetime("`api`, remembered for", "api"),
    Replace,
    Ask("`api`, replaced by another container", &["api"]),
    Rename,
    Ask("`api`, after a rename of the network", &["api"]),
    Remove,
    Ask("`api`, which has ended", &["api"]),
    Darken,
    Ask(
        "`mail.example`, while the server outside is away",
        &["mail.example"],
    ),
];

/// The address of the name server outside, which knows `www.example`.
const OUTSIDE: &str = "192.0.2.53";

/// A container of a node.
struct Container {
    name: String,
    address: String,
    short_id: String,
}

/// A node with containers: `front`, `api` and `other` in the network `web`, `secret` in `back`.
trait Site {
    /// The domain that its containers search.
    const DOMAIN: &'static str;

    /// Runs dig(1) in `front`, asking the resolver.
    fn dig(&self, words: &[&str]) -> String;

    /// Those that run.
    fn containers(&self) -> Vec<Container>;

    /// Starts `api` at an address that it has not had yet.
    fn start_api(&mut self);

    /// Ends `api`.
    fn remove_api(&mut self);

    /// Gives the network another name. Whether there is a way to do that.
    fn rename(&mut self) -> bool;
}

/// Starts the server outside.
fn outside(host: &Netns) -> Running {
    host.sh(&format!("ip address add {OUTSIDE}/32 dev lo"));
    let listen = format!("--listen-address={OUTSIDE}");
    host.name_server(&[
        "--bind-interfaces",
        "--log-queries",
        "--local=/#/",
        "--address=/www.example/203.0.113.5",
        &listen,
    ])
}

/// The answers, in the order of the questions.
fn answers<S: Site>(mut site: S, server: Running) -> Vec<String> {
    let (mut server, mut answers) = (Some(server), Vec::new());
    let (mut containers, mut is_possible) = (site.containers(), true);
    for step in STEPS {
        match step {
            Ask(..) if !is_possible => {
                answers.push("impossible".to_owned());
                is_possible = true;
            }
            Ask(_, words) => {
                let words: Vec<_> = words.iter().map(|it| word::<S>(it, &containers)).collect();
                let found = answer(&site, &words, &containers);
                let queried = name_queried(&words);
                let leaks = |it: &Running| it.output().contains(&format!("] {queried} from "));
                answers.push(if server.as_ref().is_some_and(leaks) {
                    format!("{found}, asked outside")
                } else {
                    found
                });
            }
            Lifetime(_, name) => {
                let text = site.dig(&["+noall", "+answer", name]);
                let seconds = text.split_whitespace().nth(1).unwrap_or("?");
                answers.push(format!("{seconds} s"));
            }
            Replace => {
                site.remove_api();
                site.start_api();
            }
            Rename => is_possible = site.rename(),
            Remove => site.remove_api(),
            Darken => server = None,
        }
        if matches!(step, Replace | Remove) {
            containers = site.containers();
        }
    }
    answers
}

/// A word of a question, with what its placeholders stand for.
fn word<S: Site>(word: &str, containers: &[Container]) -> String {
    let api = containers.iter().find(|it| it.name == "api");
    match (word, api) {
        ("ID", Some(api)) => api.short_id.clone(),
        ("AT", Some(api)) => api.address.clone(),
        _ => word.replace("DOMAIN", S::DOMAIN),
    }
}

/// The name in the question that dig(1) sends.
fn name_queried(words: &[String]) -> String {
    match words {
        [option, address] if option == "-x" => {
            let octets: Vec<_> = address.rsplit('.').collect();
            format!("{}.in-addr.arpa", octets.join("."))
        }
        [name, ..] => name.clone(),
        [] => String::new(),
    }
}

/// The answer to one question, with containers in place of their addresses. Clients wait for it as long
/// as the C library does.
fn answer<S: Site>(site: &S, words: &[String], containers: &[Container]) -> String {
    let fixed = ["+noall", "+comments", "+answer", "+tries=1", "+time=5"];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = site.dig(&[&fixed, &words[..]].concat());
    let status = text.split("status: ").nth(1);
    let Some(status) = status.and_then(|it| it.split(',').next()) else {
        return "no answer".to_owned();
    };
    let records = text.lines().filter(|it| !it.starts_with(';'));
    let values = records.filter_map(|it| it.split_whitespace().nth(4));
    let mut values: Vec<&str> = values
        .map(|value| {
            let owner = containers.iter().find(|it| it.address == value);
            owner.map_or(value, |it| &it.name)
        })
        .collect();
    values.sort_unstable();
    match (status, values.is_empty()) {
        ("NOERROR", true) => "no data".to_owned(),
        ("NOERROR", false) => values.join(", "),
        _ => status.to_owned(),
    }
}

const START_API: &str = "run -d --name api --hostname h-api --network web --network-alias only \
                         --network-alias svc IMAGE sleep 1000";

#[track_caller]
fn must(engine: &impl Engine, words: &str) -> String {
    let done = engine.run(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(done.code, 0, "{words}: {done:?}");
    done.stdout
}

/// Makes networks and containers by the same commands with both engines.
fn populate(engine: &impl Engine) {
    for words in [
        "network create --subnet 10.71.0.0/24 web",
        "network create --subnet 10.72.0.0/24 back",
        "run -d --name front --network web IMAGE sleep 1000",
        "run -d --name other --network web --network-alias svc IMAGE sleep 1000",
        "run -d --name secret --network back IMAGE sleep 1000",
        START_API,
    ] {
        must(engine, words);
    }
}

impl Site for Docker {
    const DOMAIN: &'static str = "corp.test";

    fn dig(&self, words: &[&str]) -> String {
        let pid = self.must(&["inspect", "-f", "{{.State.Pid}}", "front"]);
        let fixed = ["nsenter", "-t", &pid, "-n", "dig", "-r", "@127.0.0.11"];
        self.node().run(&[&fixed, words].concat()).stdout
    }

    fn containers(&self) -> Vec<Container> {
        let form = "{{.Name}} {{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}} {{.Id}}";
        let ids = self.must(&["ps", "-q"]);
        let ids: Vec<&str> = ids.lines().collect();
        let text = self.must(&[&["inspect", "-f", form], &ids[..]].concat());
        let container = |line: &str| {
            let mut words = line.split_whitespace();
            Some(Container {
                name: words.next()?.trim_start_matches('/').to_owned(),
                address: words.next()?.to_owned(),
                short_id: words.next()?.get(..12)?.to_owned(),
            })
        };
        text.lines().filter_map(container).collect()
    }

    fn start_api(&mut self) {
        // Another container gets the lowest free address.
        must(self, "run -d --network web IMAGE sleep 1000");
        must(self, START_API);
    }

    fn remove_api(&mut self) {
        must(self, "rm -f api");
    }

    fn rename(&mut self) -> bool {
        false
    }
}

impl Site for Podwire {
    const DOMAIN: &'static str = "podwire.internal";

    fn dig(&self, words: &[&str]) -> String {
        let fixed = ["exec", "front", "dig", "-r", "@10.71.0.1"];
        self.run(&[&fixed, words].concat()).stdout
    }

    fn containers(&self) -> Vec<Container> {
        let text = must(self, "names");
        let container = |line: &str| {
            let mut words = line.split_whitespace().skip(1);
            let (address, names) = (words.next()?, words.next()?);
            let is_id = |it: &&str| it.len() == 12 && it.bytes().all(|it| it.is_ascii_hexdigit());
            Some(Container {
                name: names.split(',').next()?.to_owned(),
                address: address.to_owned(),
                short_id: names.split(',').find(is_id)?.to_owned(),
            })
        };
        text.lines().filter_map(container).collect()
    }

    fn start_api(&mut self) {
        must(self, START_API);
    }

    fn remove_api(&mut self) {
        must(self, "stop -t 0 api");
    }

    /// The file of the network is edited.
    fn rename(&mut self) -> bool {
        let (host, dir) = (Engine::host(self), self.networks());
        host.sh(&format!(
            "sed -i 's/\"name\": *\"web\"/\"name\": \"shop\"/' {dir}/*web*"
        ));
        let listed = must(self, "network ls --format {{.Name}}");
        assert!(
            listed.contains("shop") && !listed.contains("web"),
            "{listed}"
        );
        true
    }
}

/// aardvark-dns on files as netavark writes them, and containers made by hand.
struct Aardvark {
    sandbox: Sandbox,
    /// The name of the network that `front` is in.
    network: &'static str,
    /// The last octet of the address of `api`.
    api: u8,
}

const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";

impl Aardvark {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        let host = sandbox.host();
        let resolv_conf = sandbox.dir().join("resolv.conf");
        sandbox.write(&resolv_conf, format!("nameserver {OUTSIDE}\n"));
        let path = resolv_conf.display();
        host.sh(&format!(
            "mount --bind {path} /etc/resolv.conf; mkdir /run/aardvark"
        ));
        for network in ["10.71.0", "10.72.0"] {
            let bridge = format!("br{}", &network[3..5]);
            host.sh(&format!(
                "ip link add {bridge} type bridge; ip link set {bridge} up
                 ip address add {network}.1/24 dev {bridge}"
            ));
        }
        let front = sandbox.pod("front");
        let name = front.name();
        host.sh(&format!(
            "ip link add vfront type veth peer name eth0 netns {name}
             ip link set vfront master br71 up; ip -n {name} link set eth0 up
             ip -n {name} address add 10.71.0.2/24 dev eth0
             ip -n {name} route add default via 10.71.0.1"
        ));
        let site = Self {
            sandbox,
            network: "web",
            api: 4,
        };
        site.write(true);
        let back = format!("10.72.0.1\n{} 10.72.0.2  secret\n", id(9));
        site.sandbox.write("/run/aardvark/back", back);
        site.sandbox.host().sh(&format!(
            "{AARDVARK} --config /run/aardvark --filter-search-domain .dns.podman --port 53 run \
             >/dev/null 2>&1 </dev/null &"
        ));
        site.await_answer(Some(4));
        site
    }

    /// The network's file. podman has the short id among the aliases.
    fn write(&self, has_api: bool) {
        let mut text = "10.71.0.1\n".to_owned();
        let api = has_api.then_some((self.api, "api,only,svc"));
        for (last, names) in [(2, "front"), (3, "other,svc")].into_iter().chain(api) {
            let id = id(last);
            text += &format!("{id} 10.71.0.{last}  {names},{}\n", &id[..12]);
        }
        self.sandbox
            .write(format!("/run/aardvark/{}", self.network), text);
    }

    /// Has the files read again.
    fn reload(&self) {
        let host = self.sandbox.host();
        host.sh("kill -HUP $(cat /run/aardvark/aardvark.pid)");
    }

    /// Waits until `api` is answered with the address of this last octet, or is unknown.
    fn await_answer(&self, last: Option<u8>) {
        let wanted = last.map(|it| format!("10.71.0.{it}")).unwrap_or_default();
        let answers = |_: &Netns| {
            let text = self.dig(&["+short", "+tries=1", "+time=1", "api"]);
            text.trim() == wanted
        };
        self.sandbox
            .host()
            .wait_until("the files are read", answers);
    }
}

/// The id of the container with this last octet.
fn id(last: u8) -> String {
    format!("{last:02x}").repeat(32)
}

impl Site for Aardvark {
    const DOMAIN: &'static str = "dns.podman";

    fn dig(&self, words: &[&str]) -> String {
        let fixed = ["ip", "netns", "exec", "front", "dig", "-r", "@10.71.0.1"];
        let argv = [&fixed, words].concat();
        self.sandbox.host().run(&argv).stdout
    }

    fn containers(&self) -> Vec<Container> {
        let all = [("front", 2), ("other", 3), ("api", self.api)];
        let container = |(name, last): (&str, u8)| Container {
            name: name.to_owned(),
            address: format!("10.71.0.{last}"),
            short_id: id(last)[..12].to_owned(),
        };
        all.map(container).into()
    }

    fn start_api(&mut self) {
        self.api += 1;
        self.write(true);
        self.reload();
        self.await_answer(Some(self.api));
    }

    fn remove_api(&mut self) {
        self.write(false);
        self.reload();
        self.await_answer(None);
    }

    /// The network's file is renamed.
    fn rename(&mut self) -> bool {
        let host = self.sandbox.host();
        host.sh("mv /run/aardvark/web /run/aardvark/shop");
        self.network = "shop";
        self.reload();
        true
    }
}

/// The cells of the page's table.
fn rows() -> Vec<Vec<String>> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/names.md");
    let page = std::fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"));
    let table = page.split_once("## Beside Docker and aardvark-dns");
    let table = table.and_then(|it| it.1.split("\n## ").next());
    let lines = table.expect("the section").lines();
    let cells = |it: &str| {
        let cells = it.trim_matches('|').split('|');
        cells.map(|it| it.trim().to_owned()).collect()
    };
    lines.filter(|it| it.starts_with('|')).map(cells).collect()
}

#[test]
fn the_same_questions_have_the_answers_of_the_table() {
    beyond_peer(WHY, || {
        let domain = format!("--dns-search={}", <Docker as Site>::DOMAIN);
        let (docker, podwire, aardvark) = thread::scope(|scope| {
            let docker = scope.spawn(|| {
                let docker = Docker::start(&[&format!("--dns={OUTSIDE}"), &domain]);
                populate(&docker);
                let server = outside(&Engine::host(&docker));
                answers(docker, server)
            });
            let podwire = scope.spawn(|| {
                let podwire = Podwire::new();
                let server = outside(&Engine::host(&podwire));
                let path = podwire.networks();
                Engine::host(&podwire).sh(&format!(
                    "mkdir -p {path}; echo nameserver {OUTSIDE} >{path}/resolv.conf
                     mount --bind {path}/resolv.conf /etc/resolv.conf"
                ));
                populate(&podwire);
                answers(podwire, server)
            });
            let aardvark = Aardvark::new();
            let server = outside(&aardvark.sandbox.host());
            let aardvark = answers(aardvark, server);
            let [docker, podwire] = [docker, podwire].map(|it| it.join().expect("answers"));
            (docker, podwire, aardvark)
        });
        let questions = STEPS.iter().filter_map(|it| match it {
            Ask(what, _) | Lifetime(what, _) => Some(*what),
            _ => None,
        });
        let page = rows();
        let mut complaints = String::new();
        for (number, what) in questions.enumerate() {
            let row = [what, &docker[number], &aardvark[number], &podwire[number]];
            let is_same = row[1..].iter().all(|it| *it == row[1]);
            let has_row = page.iter().any(|cells| {
                let is_explained = |reason: &String| is_same || !reason.is_empty();
                cells[..4] == row && cells.get(4).is_some_and(is_explained)
            });
            if !has_row {
                complaints += &format!("| {} | |\n", row.join(" | "));
            }
        }
        assert!(
            complaints.is_empty(),
            "no such rows, or without a reason:\n{complaints}"
        );
    });
}
