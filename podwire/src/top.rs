//! `podwire top`: how much each pod sends and receives, what is lost, and its connections. Two samples
//! of the kernel's counters, and the connections that it tracks.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use netlink::{Counters, Netlink};
use netns::NetNs;
use packet_filter::conntrack::{self, Connection};
use packet_filter::{Protocol, Socket};
use serde::Serialize;
use survey::{Home, Place, Survey};

use crate::graph::host::pod_name;
use crate::graph::scene::{cells, visible};

/// The counters of the links of a node at one moment.
#[derive(Debug)]
pub struct Sample {
    at: Instant,
    /// By namespace and index.
    counters: HashMap<Place, Counters>,
}

impl Sample {
    /// Reads the counters of the node's links, and of the pods that have no link on the node.
    ///
    /// # Errors
    /// The node cannot be read. A pod that cannot is left out.
    pub fn take(survey: &Survey) -> Result<Self> {
        let at = Instant::now();
        let mut counters = HashMap::new();
        let mut add = |namespace, all: Vec<Counters>| {
            counters.extend(all.into_iter().map(|it| {
                let index = it.index;
                (Place { namespace, index }, it)
            }));
        };
        add(0, Netlink::open()?.list_counters()?);
        let inside = survey.attachments.iter().filter(|it| it.outside.is_none());
        let mut pods: Vec<_> = inside
            .filter_map(|it| it.inside)
            .map(|it| it.namespace)
            .collect();
        pods.sort_unstable();
        pods.dedup();
        for namespace in pods {
            let path = survey.namespaces[namespace].paths.first();
            if let Some(all) = path.and_then(|it| counters_in(it)) {
                add(namespace, all);
            }
        }
        Ok(Self { at, counters })
    }
}

fn counters_in(path: &Path) -> Option<Vec<Counters>> {
    let netns = NetNs::open(path).ok()?;
    Netlink::open_in(&netns).ok()?.list_counters().ok()
}

/// The connections that the kernel tracks, of both families; none where it tracks none.
pub fn connections() -> Result<Vec<Connection>> {
    let socket = match Socket::open() {
        Err(error) if packet_filter::is_absent(&error) => return Ok(Vec::new()),
        socket => socket?,
    };
    let mut all = Vec::new();
    for ipv4 in [true, false] {
        match conntrack::list(&socket, ipv4) {
            Err(error) if packet_filter::is_absent(&error) => {}
            listed => all.extend(listed?),
        }
    }
    Ok(all)
}

/// What happens on a node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// The seconds between the two samples.
    pub seconds: f64,
    /// The pods' interfaces, the busiest first.
    pub interfaces: Vec<Traffic>,
}

/// The traffic of a pod's interface, as the pod sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// The name of the pod.
    pub pod: String,
    /// The container's id.
    pub container: String,
    /// The network.
    pub network: String,
    /// The interface.
    pub interface: String,
    /// What the pod receives in a second.
    pub received: Rate,
    /// What it sends in a second.
    pub sent: Rate,
    /// Packets lost in a second, in both directions.
    pub lost_per_second: f64,
    /// Packets lost since the interface was made.
    pub lost: u64,
    /// Tracked connections to the pod.
    pub connections_in: usize,
    /// Tracked connections from the pod.
    pub connections_out: usize,
    /// Its ports that have connections, and its published ports.
    pub ports: Vec<Port>,
}

/// Traffic in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Bytes.
    pub bytes_per_second: f64,
    /// Packets.
    pub packets_per_second: f64,
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// The port, such as `80/tcp`.
    pub port: String,
    /// The ports of the node that lead to it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub published: Vec<u16>,
    /// Its tracked connections.
    pub connections: usize,
}

impl Activity {
    /// What happened between two samples.
    pub fn between(
        survey: &Survey,
        [before, after]: [&Sample; 2],
        connections: &[Connection],
    ) -> Self {
        let elapsed = after.at.saturating_duration_since(before.at);
        let seconds = elapsed.max(Duration::from_millis(1)).as_secs_f64();
        let tracked = Tracked::of(connections);
        let mut interfaces = Vec::new();
        for attachment in survey
            .attachments
            .iter()
            .filter(|it| matches!(it.home, Home::At(_)))
        {
            let ips = attachment.result.iter().flat_map(|it| &it.ips);
            let ips: Vec<_> = ips.map(|it| it.address.ip()).collect();
            let mut traffic = Traffic {
                pod: pod_name(survey, attachment),
                container: attachment.container_id.clone(),
                network: attachment.network.clone(),
                interface: attachment.ifname.clone(),
                ports: tracked.ports(&ips, survey),
                connections_in: tracked.count(&ips, &tracked.to),
                connections_out: tracked.count(&ips, &tracked.from),
                ..Traffic::default()
            };
            let place = attachment.outside.or(attachment.inside);
            let [Some(old), Some(new)] = [before, after].map(|it| it.counters.get(&place?)) else {
                interfaces.push(traffic);
                continue;
            };
            let rate = |old: [u64; 2], new: [u64; 2]| Rate {
                packets_per_second: new[0].saturating_sub(old[0]) as f64 / seconds,
                bytes_per_second: new[1].saturating_sub(old[1]) as f64 / seconds,
            };
            let (received, sent) = (rate(old.received, new.received), rate(old.sent, new.sent));
            // What the node's end sends, the pod receives.
            [traffic.received, traffic.sent] = match attachment.outside {
                Some(_) => [sent, received],
                None => [received, sent],
            };
            let lost = |it: &Counters| it.receive_lost + it.send_lost;
            traffic.lost = lost(new);
            traffic.lost_per_second = lost(new).saturating_sub(lost(old)) as f64 / seconds;
            interfaces.push(traffic);
        }
        let bytes = |it: &Traffic| it.received.bytes_per_second + it.sent.bytes_per_second;
        interfaces.sort_by(|a, b| {
            let names = || (&a.pod, &a.interface).cmp(&(&b.pod, &b.interface));
            bytes(b).total_cmp(&bytes(a)).then_with(names)
        });
        Self {
            seconds,
            interfaces,
        }
    }

    /// A table of at most `rows` lines.
    pub fn text(&self, rows: usize) -> String {
        let heading = [
            "POD",
            "NETWORK",
            "INTERFACE",
            "IN/s",
            "OUT/s",
            "PKT IN/s",
            "PKT OUT/s",
            "LOST",
            "CONN IN",
            "CONN OUT",
            "PORTS",
        ];
        let mut table = vec![heading.map(str::to_owned)];
        let shown = rows.saturating_sub(2).max(1);
        table.extend(self.interfaces.iter().take(shown).map(Traffic::row));
        let width = |column: usize| table.iter().map(|it| cells(&it[column]) as usize).max();
        let widths: Vec<_> = (0..heading.len())
            .map(|it| width(it).unwrap_or_default())
            .collect();
        let mut text = String::new();
        for row in &table {
            let mut line = String::new();
            for (number, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let space = " ".repeat(width.saturating_sub(cells(cell) as usize));
                // Numbers are on the right of their columns.
                match number {
                    3..10 => line += &format!("{space}{cell}  "),
                    _ => line += &format!("{cell}{space}  "),
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        let more = self.interfaces.len().saturating_sub(shown);
        if more > 0 {
            text += &format!("… {more} more\n");
        }
        text
    }
}

impl Traffic {
    fn row(&self) -> [String; 11] {
        let ports = self.ports.iter().map(|it| {
            let published = it.published.iter().map(|it| format!("{it}→"));
            format!(
                "{}{} ({})",
                published.collect::<String>(),
                it.port,
                it.connections
            )
        });
        [
            visible(&self.pod),
            visible(&self.network),
            visible(&self.interface),
            short(self.received.bytes_per_second) + "B",
            short(self.sent.bytes_per_second) + "B",
            short(self.received.packets_per_second),
            short(self.sent.packets_per_second),
            self.lost.to_string(),
            self.connections_in.to_string(),
            self.connections_out.to_string(),
            ports.collect::<Vec<_>>().join(" "),
        ]
    }
}

/// A number with three digits: `1.2k`, `34M`.
fn short(number: f64) -> String {
    let mut rest = number;
    for unit in ["", "k", "M", "G"] {
        if rest < 999.5 {
            return match unit {
                "" => format!("{rest:.0}"),
                _ if rest < 9.95 => format!("{rest:.1}{unit}"),
                _ => format!("{rest:.0}{unit}"),
            };
        }
        rest /= 1000.0;
    }
    format!("{rest:.1}T")
}

/// Connections by the addresses of pods.
struct Tracked {
    /// From an address.
    from: HashMap<IpAddr, usize>,
    /// To an address.
    to: HashMap<IpAddr, usize>,
    /// To a port of it.
    ports: HashMap<IpAddr, HashMap<(Protocol, u16), usize>>,
}

impl Tracked {
    fn of(connections: &[Connection]) -> Self {
        let mut tracked = Self {
            from: HashMap::new(),
            to: HashMap::new(),
            ports: HashMap::new(),
        };
        for connection in connections {
            let server: SocketAddr = connection.answers_from;
            *tracked.from.entry(connection.client.ip()).or_default() += 1;
            *tracked.to.entry(server.ip()).or_default() += 1;
            if let Some(protocol) = Protocol::from_number(connection.protocol) {
                let ports = tracked.ports.entry(server.ip()).or_default();
                *ports.entry((protocol, server.port())).or_default() += 1;
            }
        }
        tracked
    }

    fn count(&self, ips: &[IpAddr], counted: &HashMap<IpAddr, usize>) -> usize {
        ips.iter().filter_map(|it| counted.get(it)).sum()
    }

    fn ports(&self, ips: &[IpAddr], survey: &Survey) -> Vec<Port> {
        let mut all = HashMap::<(Protocol, u16), (Vec<u16>, usize)>::new();
        for (port, count) in ips.iter().filter_map(|it| self.ports.get(it)).flatten() {
            all.entry(*port).or_default().1 += count;
        }
        for published in survey.published.iter().filter(|it| ips.contains(&it.pod)) {
            let mapping = &published.mapping;
            let (ports, _) = all
                .entry((mapping.protocol, mapping.container_port))
                .or_default();
            if !ports.contains(&mapping.host_port) {
                ports.push(mapping.host_port);
            }
        }
        let mut all: Vec<_> = all.into_iter().collect();
        all.sort_by_key(|((protocol, port), _)| (*port, *protocol));
        let port = |((protocol, port), (published, connections))| Port {
            port: format!("{port}/{protocol}"),
            published,
            connections,
        };
        all.into_iter().map(port).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [
            (0.0, "0"),
            (999.0, "999"),
            (1200.0, "1.2k"),
            (34_000_000.0, "34M"),
            (5e13, "50.0T"),
        ] {
            assert_eq!(short(number), expected);
        }
    }

    #[test]
    fn the_table_is_cut_to_the_terminal() {
        let traffic = Traffic {
            pod: "web\x1b[2J".into(),
            ..Traffic::default()
        };
        let activity = Activity {
            seconds: 1.0,
            interfaces: vec![traffic; 9],
        };
        let text = activity.text(5);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.ends_with("… 6 more\n") && !text.contains('\x1b'));
    }
}
