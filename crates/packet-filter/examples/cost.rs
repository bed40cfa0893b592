//! What an operation costs beside the published ports of many other pods. It
//! fills the network namespace that it is started in: give it one of its own.
//!
//! ```text
//! cargo build --release -p nat --example cost
//! unshare -n sh -c 'ip link set lo up; target/*/release/examples/cost 5000'
//! ```
//!
//! Each operation is timed with a back end opened and closed for it, as in a
//! plugin: closing waits for the kernel if something was deleted.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cni::Attachment;
use cni::env::{ContainerId, IfName};
use ipnetwork::Ipv4Network;
use packet_filter::Nftables;
use packet_filter::{Backend, HostPorts, Mapping, Mark, Masquerade, Protocol, Snat};

const ROUNDS: usize = 101;

type Step<'a> = &'a dyn Fn(&Nftables) -> Result<()>;

fn main() -> Result<()> {
    let others = std::env::args().nth(1).context("usage: cost OTHERS")?;
    let others: u16 = others.parse()?;
    ensure!(others <= 20_000, "at most 20000 others");
    let all = Nftables::open()?;
    for number in 0..others {
        let pod = Ipv4Addr::from(0x0a20_0000 + u32::from(number));
        all.publish(&ports(number, pod)?)?;
    }
    drop(all);
    let own = ports(30_000, Ipv4Addr::new(10, 99, 0, 1))?;
    let subnet = Masquerade {
        owner: own.owner.clone(),
        addresses: vec!["10.99.0.1/24".parse()?],
        random_fully: false,
        except: Vec::new(),
        not_through: None,
    };
    let steps: [(&str, Step<'_>); 6] = [
        ("publish", &|nat| nat.publish(&own).map(drop)),
        ("publish, there already", &|nat| nat.publish(&own).map(drop)),
        ("check", &|nat| nat.check_published(&own)),
        ("unpublish", &|nat| nat.unpublish(&own.owner)),
        ("masquerade, there already", &|nat| {
            nat.masquerade(&subnet).map(drop)
        }),
        ("remove masquerade, nothing there", &|nat| {
            nat.remove_masquerade(&subnet.owner, &[])
        }),
    ];
    let mut times: [Vec<Duration>; 6] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, step), times) in steps.iter().zip(&mut times) {
            let start = Instant::now();
            let nat = Nftables::open()?;
            step(&nat)?;
            drop(nat);
            times.push(start.elapsed());
        }
    }
    for ((name, _), times) in steps.iter().zip(&mut times) {
        eprintln!("{name}: {:.3} ms", micros(times) / 1e3);
    }
    connections(others)
}

/// The first and the last port, by way of the node's own 127.0.0.1.
fn connections(others: u16) -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let to = server.local_addr()?.port();
    let nat = Nftables::open()?;
    eprintln!("connection, no mapping: {:.1} us", connect(&server, to)?);
    for number in [0, others.saturating_sub(1)] {
        let mut own = ports(number, Ipv4Addr::LOCALHOST)?;
        own.owner.network = "measured".into();
        own.mappings[0].container_port = to;
        own.snat = Snat::Off;
        nat.publish(&own)?;
        let taken = connect(&server, own.mappings[0].host_port)?;
        eprintln!("connection, mapping {number}: {taken:.1} us");
    }
    Ok(())
}

/// Microseconds.
fn connect(server: &TcpListener, port: u16) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..2000 {
        let start = Instant::now();
        let client = TcpStream::connect(("127.0.0.1", port))?;
        times.push(start.elapsed());
        drop((server.accept()?, client));
    }
    Ok(micros(&mut times))
}

fn ports(number: u16, pod: Ipv4Addr) -> Result<HostPorts> {
    Ok(HostPorts {
        owner: Attachment {
            network: "cost".into(),
            container_id: ContainerId::parse(&format!("{number:064}"))?,
            ifname: IfName::parse("eth0")?,
        },
        pod_v4: Some(Ipv4Network::new(pod, 24)?),
        pod_v6: None,
        mappings: vec![Mapping {
            host_ip: None,
            host_port: 1000 + number,
            container_port: 80,
            protocol: Protocol::Tcp,
        }],
        snat: Snat::Hairpin,
        mark: Mark::Bit(13),
        conditions_v4: Vec::new(),
        conditions_v6: Vec::new(),
    })
}

/// The median.
fn micros(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e6
}
