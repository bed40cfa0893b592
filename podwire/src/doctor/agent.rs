//! The node's agent: whether it runs where it is needed, and does what it is for.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use names::{Directory, Record};
use netns::NetNs;
use serde_json::Value;

use super::Examination;
use super::finding::{About, Check, Finding, Severity, first_of};
use crate::commands::{AGENT_SOCKET, agent_status};

pub const ABSENT: Check = Check {
    id: "PW043",
    severity: Severity::Error,
    title: "the agent does not run, and something needs it",
    why: "Pods do not resolve each other's names, and other nodes are not followed, until podwired runs.",
};
pub const UNREADY: Check = Check {
    id: "PW044",
    severity: Severity::Error,
    title: "a role of the agent does not do what it is for",
    why: "It waits for what is named: an address whose port 53 another server has, a store that does not \
          answer, a lease that another node has.",
};
pub const VERSIONS: Check = Check {
    id: "PW045",
    severity: Severity::Warning,
    title: "the agent has another version than podwire",
    why: "Its program was replaced while it ran. Plugins and agent are tested together in one version only.",
};
pub const UNANSWERED: Check = Check {
    id: "PW046",
    severity: Severity::Error,
    title: "a pod's questions for names are not answered",
    why: "The agent is well. Either the question or its answer is lost on the way, most often in the \
          node's packet filter, or another server has port 53 of the address where this pod asks.",
};

pub const UPSTREAM: Check = Check {
    id: "PW047",
    severity: Severity::Error,
    title: "a name server that the resolver asks does not answer",
    why: "Names that are not of pods are asked there. With another server they are found late, and \
          without one they are not found at all (SERVFAIL).",
};

/// Where the agent's configuration is: with it, it is to run.
const CONFIGURATION: &str = "/etc/podwire/podwired.json";
/// How long an answer out of memory may take, and how often it is asked for.
const PATIENCE: Duration = Duration::from_millis(300);
const ATTEMPTS: usize = 2;
/// The same for another server, which may be far away.
const UPSTREAM_PATIENCE: Duration = Duration::from_millis(500);

pub fn check(found: &mut Examination) {
    let records = match records() {
        Ok(records) => records,
        Err(error) => {
            found.unread("records of names", format!("{error:#}"));
            Vec::new()
        }
    };
    let socket = Path::new(AGENT_SOCKET);
    let status = match agent_status(socket) {
        Ok(status) => status,
        Err(_) if records.is_empty() && !Path::new(CONFIGURATION).exists() => return,
        Err(error) => {
            let needs = match records.len() {
                0 => format!("{CONFIGURATION} is there"),
                count => format!("{count} networks have names"),
            };
            let finding = Finding::new(&ABSENT, About::Node, format!("{needs}, and {error:#}"));
            let finding = finding.shown_by(
                format!("echo '{{\"status\":{{}}}}' | nc -NU {AGENT_SOCKET}"),
                "no answer",
            );
            found.add(finding.advice(
                "systemctl start podwired, and journalctl -u podwired if that fails; without the \
                 unit, the next pod with names starts it",
            ));
            return;
        }
    };
    states(&status, found);
    if status["roles"]["resolver"]["ready"] == true {
        for record in &records {
            ask(record, found);
        }
        upstreams(&status, found);
    }
}

/// The servers that the resolver asks for other names, all at once: any answer will do.
fn upstreams(status: &Value, found: &mut Examination) {
    let servers = status["roles"]["resolver"]["upstreams"].as_array();
    let servers = servers.into_iter().flatten().filter_map(Value::as_str);
    let mut silent: Vec<SocketAddr> = servers.filter_map(|it| it.parse().ok()).collect();
    for _ in 0..ATTEMPTS {
        silent = match still_silent(&silent) {
            Ok(silent) => silent,
            Err(error) => return found.unread("name servers", format!("{error:#}")),
        };
    }
    let Some(server) = silent.first() else {
        return;
    };
    let all: Vec<_> = silent.iter().map(ToString::to_string).collect();
    let what = format!("{} does not answer", first_of(&all));
    let finding = Finding::new(&UPSTREAM, About::Node, what);
    let command = format!("dig @{} -p {} . NS", server.ip(), server.port());
    found.add(finding.shown_by(command, "no answer").advice(
        "repair it, or name another one: in /etc/resolv.conf of the node, or as a server of the \
         network (podwire network update --dns-add)",
    ));
}

/// Those of `servers` that do not answer a question for the root.
fn still_silent(servers: &[SocketAddr]) -> Result<Vec<SocketAddr>> {
    let question = question("");
    let ask = |server: &SocketAddr| {
        let socket = UdpSocket::bind(any(server.ip())).context("open a socket")?;
        // What cannot be sent is not answered, either.
        let _ = socket.connect(server).and_then(|()| socket.send(&question));
        Ok((*server, socket))
    };
    let queried: Vec<_> = servers.iter().map(ask).collect::<Result<_>>()?;
    let until = Instant::now() + UPSTREAM_PATIENCE;
    let has_answered = |socket: &UdpSocket| {
        let left = until.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        let mut answer = [0; 512];
        let heard = socket
            .set_read_timeout(Some(left))
            .and_then(|()| socket.recv(&mut answer));
        heard.is_ok() && answer[..2] == question[..2]
    };
    let silent = queried.iter().filter(|(_, socket)| !has_answered(socket));
    Ok(silent.map(|(server, _)| *server).collect())
}

fn states(status: &Value, found: &mut Examination) {
    let ours = env!("CARGO_PKG_VERSION");
    let version = status["version"].as_str().unwrap_or_default();
    if version != ours {
        let what = format!("podwired is {version}, and podwire {ours}");
        let finding = Finding::new(&VERSIONS, About::Node, what);
        let finding = finding.shown_by("podwire status; podwire --version", version);
        found.add(finding.command("systemctl restart podwired"));
    }
    for (name, role) in status["roles"].as_object().into_iter().flatten() {
        let Some(why) = role["ready"].as_str() else {
            continue;
        };
        let finding = Finding::new(&UNREADY, About::Node, format!("{name}: {why}"));
        let finding = finding.shown_by("podwire status", why);
        found.add(finding.advice(format!(
            "remove the reason ({why}); the agent tries again by itself"
        )));
    }
}

/// One record of each network whose pods ask the node, and whose namespace is there.
fn records() -> Result<Vec<Record>> {
    let directory = Directory::default();
    let mut all = Vec::new();
    for network in directory.networks()? {
        for entry in directory.entries(&network)? {
            let record = directory.read(&entry).ok().flatten();
            let usable = |it: &Record| {
                let namespace = it.namespace.as_ref();
                !servers(it).is_empty() && namespace.is_some_and(|it| !it.is_gone())
            };
            if let Some(record) = record.filter(usable) {
                all.push(record);
                break;
            }
        }
    }
    Ok(all)
}

/// Where the pod of a record asks.
fn servers(record: &Record) -> &[IpAddr] {
    if record.asks.is_empty() {
        &record.network.listen
    } else {
        &record.asks
    }
}

/// A question of the pod for its own name.
fn ask(record: &Record, found: &mut Examination) {
    let (Some(namespace), Some(name)) = (&record.namespace, record.names.first()) else {
        return;
    };
    let path = namespace.path.clone();
    let mut silent = Vec::new();
    for server in servers(record) {
        let family = |it: &&IpAddr| it.is_ipv4() == server.is_ipv4();
        if record.addresses.iter().find(family).is_none() {
            continue;
        }
        let answered = NetNs::open(&path)
            .map_err(Into::into)
            .and_then(|it| it.enter(|| answers(*server, name.as_str()))?);
        match answered {
            Ok(true) => {}
            Ok(false) => silent.push(server.to_string()),
            Err(error) => found.unread("questions for names", format!("{error:#}")),
        }
    }
    let Some(server) = silent.first() else {
        return;
    };
    let network = &record.network.name;
    let what = format!(
        "{} does not answer the pods of {network}",
        first_of(&silent)
    );
    let about = About::Network(network.clone());
    let finding = Finding::new(&UNANSWERED, about, what);
    let command = format!(
        "nsenter --net={} dig @{server} {}",
        path.display(),
        name.as_str()
    );
    let finding = finding.shown_by(command, "no answer");
    found.add(finding.advice(format!(
        "let packets from {} to port 53 of {server} in (iptables -S INPUT, nft list ruleset), or end \
         the other server that has the port (ss -lnp sport = 53)",
        match record.network.bridge.as_str() {
            "" => network,
            bridge => bridge,
        }
    )));
}

/// Whether a server knows `name`. The agent does, whether it has an IPv4 address or not.
fn answers(server: IpAddr, name: &str) -> Result<bool> {
    let socket = UdpSocket::bind(any(server)).context("open a socket")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let question = question(name);
    for _ in 0..ATTEMPTS {
        let sent = socket
            .connect((server, 53))
            .and_then(|()| socket.send(&question));
        let mut answer = [0; 512];
        if sent.is_ok() && socket.recv(&mut answer).is_ok() && answer[..2] == question[..2] {
            // NOERROR. Another server has REFUSED or NXDOMAIN for it.
            return Ok(answer[3] & 0xf == 0);
        }
    }
    Ok(false)
}

/// Where a socket for questions to `server` is bound.
fn any(server: IpAddr) -> SocketAddr {
    match server {
        IpAddr::V4(_) => ([0u8; 4], 0).into(),
        IpAddr::V6(_) => ([0u8; 16], 0).into(),
    }
}

/// RFC 1035, 4.1: recursion desired, one question, class IN, type A.
fn question(name: &str) -> Vec<u8> {
    let id = std::process::id().to_be_bytes();
    let mut message = vec![id[2], id[3], 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|it| !it.is_empty()) {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_one_of_dns() {
        let question = question("db.web");
        assert_eq!(question[2..12], [1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(question[12..], *b"\x02db\x03web\0\0\x01\0\x01");
        assert_eq!(super::question("")[12..], *b"\0\0\x01\0\x01");
    }
}
