//! The jobs, each with as few requests to the kernel as possible.

// SAFETY of each `unsafe`: see `delete_and_leave`.
#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{Read, Write, stdout};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{ForkResult, close, fork};

use crate::netlink::{ACK, CREATE, DUMP, Message, Socket};

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTMGRP_LINK: u32 = 1;
const IFF_UP: u32 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_MACVLAN_MODE: u16 = 1;
const MACVLAN_MODE_BRIDGE: u32 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const LOOPBACK: i32 = 1;
/// The index of the pod's interface, so that no request has to find it.
const INDEX: i32 = 4711;
const BRIDGE: &str = "cni0";
const GATEWAY: [u8; 4] = [10, 0, 0, 1];

/// An address and the file that reserves it.
pub struct Held<'a> {
    /// The address.
    pub address: &'a str,
    /// The file.
    pub file: &'a str,
}

/// `ip link set lo up`, in the pod.
pub fn loopback(verb: &str, netns: &str) -> Result<()> {
    enter(netns)?;
    let mut pod = Socket::route(0)?;
    match verb {
        "add" => pod.ask(set_flags(LOOPBACK, IFF_UP))?,
        "del" => pod.ask(set_flags(LOOPBACK, 0))?,
        _ => drop(index_of(&mut pod, "lo")?),
    }
    answer("lo")
}

/// A file that exists or not.
pub fn address(verb: &str, file: &str) -> Result<()> {
    let held = Held { address: "", file };
    match verb {
        "add" => held.reserve()?,
        "del" => held.release()?,
        _ => held.check()?,
    }
    answer(file)
}

/// A veth pair into the pod, on the bridge, with an address and a route.
pub fn bridge(verb: &str, netns: &str, held: Held<'_>, host_end: &str) -> Result<()> {
    match verb {
        "add" => {
            let mut host = Socket::route(0)?;
            let master = index_of(&mut host, BRIDGE)?;
            let pod = File::open(netns)?;
            host.ask(veth(host_end, master, &pod))?;
            held.reserve()?;
            setns(&pod, CloneFlags::CLONE_NEWNET)?;
            let mut pod = Socket::route(0)?;
            configure(&mut pod, held.address)?;
            pod.ask(default_route())?;
        }
        "del" => {
            delete_and_leave(host_end)?;
            held.release()?;
        }
        _ => {
            held.check()?;
            index_of(&mut Socket::route(0)?, host_end)?;
            enter(netns)?;
            let mut pod = Socket::route(0)?;
            index_of(&mut pod, "eth0")?;
            ensure!(pod.count(all(RTM_GETADDR))? > 0, "no address");
            ensure!(pod.count(all(RTM_GETROUTE))? > 0, "no route");
        }
    }
    answer(held.address)
}

/// A macvlan in the pod, with an address.
pub fn macvlan(verb: &str, netns: &str, held: Held<'_>, parent: &str) -> Result<()> {
    match verb {
        "add" => {
            let mut host = Socket::route(0)?;
            let parent = index_of(&mut host, parent)?;
            let pod = File::open(netns)?;
            host.ask(macvlan_link(parent, &pod))?;
            held.reserve()?;
            setns(&pod, CloneFlags::CLONE_NEWNET)?;
            configure(&mut Socket::route(0)?, held.address)?;
        }
        "del" => {
            enter(netns)?;
            delete_and_leave("eth0")?;
            held.release()?;
        }
        _ => {
            held.check()?;
            enter(netns)?;
            let mut pod = Socket::route(0)?;
            index_of(&mut pod, "eth0")?;
            ensure!(pod.count(all(RTM_GETADDR))? > 0, "no address");
        }
    }
    answer(held.address)
}

/// The rules of an address in iptables' chain CNI-FORWARD, which exists: one process.
pub fn firewall(verb: &str, address: &str) -> Result<()> {
    let own = format!("CNI-FORWARD -s {address}/32 -j ACCEPT");
    let answers =
        format!("CNI-FORWARD -d {address}/32 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    if verb == "check" {
        let mut check = Command::new("/usr/sbin/iptables");
        let status = check.arg("-C").args(own.split(' ')).status()?;
        ensure!(status.success(), "no rule");
        return answer(address);
    }
    let option = if verb == "add" { "-A" } else { "-D" };
    let mut restore = Command::new("/usr/sbin/iptables-restore");
    restore.args(["--noflush", "--verbose"]);
    restore.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = restore.spawn()?;
    let mut input = child.stdin.take().context("no pipe")?;
    let mut output = child.stdout.take().context("no pipe")?;
    // It prints the comment when the rules are committed. At its end it waits for RCU after a deletion:
    // that is left to it, but it holds the lock of nf_tables, for which the deletion of a link waits.
    let text = format!(
        "*filter\n{option} {answers}\n{option} {own}\nCOMMIT\n#{:5000}\n",
        ""
    );
    input.write_all(text.as_bytes())?;
    if verb == "add" {
        drop(input);
        ensure!(child.wait()?.success(), "iptables refused the rules");
    } else {
        ensure!(output.read(&mut [0])? > 0, "iptables refused the rules");
    }
    answer(address)
}

impl Held<'_> {
    fn reserve(&self) -> Result<()> {
        let mut file = File::create_new(self.file).context("reserve")?;
        Ok(file.write_all(b"floor")?)
    }

    fn release(&self) -> Result<()> {
        fs::remove_file(self.file).context("release")
    }

    fn check(&self) -> Result<()> {
        fs::read(self.file).map(drop).context("reservation")
    }
}

/// A plugin prints a result; so does the floor.
fn answer(what: &str) -> Result<()> {
    Ok(writeln!(stdout(), "{{\"floor\": \"{what}\"}}")?)
}

fn enter(netns: &str) -> Result<()> {
    let file = File::open(netns)?;
    setns(file, CloneFlags::CLONE_NEWNET).context("enter the pod")
}

/// `struct ifinfomsg` with the flags that are to change.
fn link(index: i32, flags: u32, change: u32) -> [u8; 16] {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&change.to_ne_bytes());
    fixed
}

fn set_flags(index: i32, flags: u32) -> Message {
    Message::new(RTM_SETLINK, ACK, &link(index, flags, IFF_UP))
}

fn index_of(socket: &mut Socket, name: &str) -> Result<i32> {
    let request = Message::new(RTM_GETLINK, 0, &link(0, 0, 0)).text(IFLA_IFNAME, name);
    let index = |body: &[u8]| Some(i32::from_ne_bytes(*body.get(4..)?.first_chunk()?));
    socket
        .get(request, index)
        .with_context(|| format!("find {name}"))
}

/// `ip link add HOST master BRIDGE up type veth peer name eth0 netns POD`
fn veth(host_end: &str, master: i32, pod: &File) -> Message {
    // The kernel takes the number of the pod's end only if the host's end has one, too.
    let number = host_end
        .trim_start_matches(char::is_alphabetic)
        .parse()
        .unwrap_or(0);
    let index: i32 = 100_000 + number;
    Message::new(RTM_NEWLINK, ACK | CREATE, &link(index, IFF_UP, IFF_UP))
        .text(IFLA_IFNAME, host_end)
        .attribute(IFLA_MASTER, &master.to_ne_bytes())
        .nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth")
                .nest(IFLA_INFO_DATA, |data| {
                    data.nest(VETH_INFO_PEER, |peer| {
                        in_pod(peer.bytes(&link(INDEX, 0, 0)), pod)
                    })
                })
        })
}

/// `ip link add link PARENT name eth0 netns POD type macvlan mode bridge`
fn macvlan_link(parent: i32, pod: &File) -> Message {
    let request = Message::new(RTM_NEWLINK, ACK | CREATE, &link(INDEX, 0, 0))
        .attribute(IFLA_LINK, &parent.to_ne_bytes());
    in_pod(request, pod).nest(IFLA_LINKINFO, |info| {
        info.text(IFLA_INFO_KIND, "macvlan")
            .nest(IFLA_INFO_DATA, |data| {
                data.attribute(IFLA_MACVLAN_MODE, &MACVLAN_MODE_BRIDGE.to_ne_bytes())
            })
    })
}

fn in_pod(link: Message, pod: &File) -> Message {
    use std::os::fd::AsRawFd;
    link.text(IFLA_IFNAME, "eth0")
        .attribute(IFLA_NET_NS_FD, &pod.as_raw_fd().to_ne_bytes())
}

/// `ip address add ADDRESS/8 dev eth0; ip link set eth0 up`
fn configure(pod: &mut Socket, address: &str) -> Result<()> {
    let address: Ipv4Addr = address.parse()?;
    let mut fixed = [0; 8];
    fixed[0] = 2;
    fixed[1] = 8;
    fixed[4..8].copy_from_slice(&INDEX.to_ne_bytes());
    let request = Message::new(RTM_NEWADDR, ACK | CREATE, &fixed)
        .attribute(IFA_LOCAL, &address.octets())
        .attribute(IFA_ADDRESS, &address.octets());
    pod.ask(request).context("add the address")?;
    pod.ask(set_flags(INDEX, IFF_UP)).context("set the link up")
}

/// `ip route add default via 10.0.0.1 dev eth0`
fn default_route() -> Message {
    // Family, lengths, tos; table main, protocol boot, scope universe, unicast.
    let fixed = [2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    Message::new(RTM_NEWROUTE, ACK | CREATE, &fixed)
        .attribute(RTA_OIF, &INDEX.to_ne_bytes())
        .attribute(RTA_GATEWAY, &GATEWAY)
}

fn all(kind: u16) -> Message {
    Message::new(
        kind,
        DUMP,
        &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
}

/// `ip link delete NAME`, by a child that waits for the kernel's RCU barrier; this program ends
/// when the kernel reports that the link is gone.
fn delete_and_leave(name: &str) -> Result<()> {
    let mut events = Socket::route(RTMGRP_LINK)?;
    // Another socket: changes by others would come between request and answer.
    let mut own = Socket::route(0)?;
    let index = index_of(&mut own, name)?;
    // SAFETY: this program has one thread, so the child may go on like its parent.
    match unsafe { fork()? } {
        ForkResult::Child => {
            for descriptor in 0..3 {
                let _ = close(descriptor);
            }
            let delete = Message::new(RTM_DELLINK, ACK, &link(index, 0, 0));
            let failed = own.ask(delete).is_err();
            // SAFETY: ends the child; it must not go on with its parent's work.
            unsafe { nix::libc::_exit(i32::from(failed)) }
        }
        ForkResult::Parent { .. } => wait_until_gone(&mut events, index),
    }
}

fn wait_until_gone(events: &mut Socket, index: i32) -> Result<()> {
    match events.wait(|kind, body| gone(kind, body, index)) {
        Err(why) if why.downcast_ref() == Some(&Errno::ENOBUFS) => ask_until_gone(index),
        result => result,
    }
}

/// When hundreds of links are deleted at once, the socket overflows and drops events.
fn ask_until_gone(index: i32) -> Result<()> {
    let mut own = Socket::route(0)?;
    while own
        .ask(Message::new(RTM_GETLINK, ACK, &link(index, 0, 0)))
        .is_ok()
    {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// A bridge also reports the loss of a port by this message, with its own family.
fn gone(kind: u16, body: &[u8], index: i32) -> Option<()> {
    let is = body.first() == Some(&0) && body.get(4..8) == Some(&index.to_ne_bytes());
    (kind == RTM_DELLINK && is).then_some(())
}
