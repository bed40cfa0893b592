//! nf_tables by hand: elements of one map, and a look at one rule.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};

use crate::netlink::{ACK, CREATE, DUMP, Message, Socket};

// linux/netfilter/nf_tables.h, nfnetlink.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10 << 8;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;
/// `IPCTNL_MSG_CT_DELETE`
const DELETE_CONNECTIONS: u16 = 1 << 8 | 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_LIST_TABLE: u16 = 1;
const NFTA_LIST_SET: u16 = 2;
const NFTA_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEMENT: u16 = 1;
const NFTA_ELEMENT_KEY: u16 = 1;
const NFTA_ELEMENT_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NESTED: u16 = 0x8000;
/// `struct nfgenmsg` of family ip.
const IP: [u8; 4] = [2, 0, 0, 0];
const TCP: u8 = 6;
const CONTAINER_PORT: u16 = 80;

/// Whether the masquerade rule exists, which is one for all pods.
pub fn rule_is_there() -> Result<()> {
    let request = Message::new(GET_RULE, DUMP, &IP)
        .text(NFTA_RULE_TABLE, "floor")
        .text(NFTA_RULE_CHAIN, "postrouting");
    ensure!(Socket::netfilter()?.count(request)? > 0, "no masquerade");
    Ok(())
}

/// `nft add element ip floor ports { tcp . PORT : ADDRESS . 80, … }`
pub fn publish(address: Ipv4Addr, ports: &[u16]) -> Result<()> {
    commit(elements(NEW_ELEMENT, ACK | CREATE, Some(address), ports)).map(drop)
}

/// `nft delete element ip floor ports { tcp . PORT, … }`
pub fn unpublish(address: Ipv4Addr, ports: &[u16]) -> Result<()> {
    let socket = commit(elements(DELETE_ELEMENT, ACK, Some(address), ports))?;
    // Closing it waits for RCU: the child that is about to delete the link has a copy.
    std::mem::forget(socket);
    Ok(())
}

/// `nft get element ip floor ports { tcp . PORT, … }`
pub fn published(ports: &[u16]) -> Result<()> {
    let mut socket = Socket::netfilter()?;
    socket.ask(elements(GET_ELEMENT, ACK, None, ports))
}

/// `conntrack -F`
pub fn forget_connections() -> Result<()> {
    Socket::netfilter()?.ask(Message::new(DELETE_CONNECTIONS, ACK, &[0; 4]))
}

fn commit(message: Message) -> Result<Socket> {
    let mut socket = Socket::netfilter()?;
    // Family none, version 0, and the subsystem that the batch is for.
    let fixed = [0, 0, 0, 10];
    let mut bytes = Message::new(BATCH_BEGIN, 0, &fixed).finish();
    bytes.extend(message.finish());
    bytes.extend(Message::new(BATCH_END, 0, &fixed).finish());
    socket.send(&bytes)?;
    socket.wait(|kind, _| (kind == 2).then_some(()))?;
    Ok(socket)
}

fn elements(kind: u16, flags: u16, to: Option<Ipv4Addr>, ports: &[u16]) -> Message {
    Message::new(kind, flags, &IP)
        .text(NFTA_LIST_TABLE, "floor")
        .text(NFTA_LIST_SET, "ports")
        .nest(NFTA_LIST_ELEMENTS | NESTED, |mut list| {
            for port in ports {
                list = list.nest(NFTA_LIST_ELEMENT | NESTED, |element| {
                    let element = value(element, NFTA_ELEMENT_KEY, &key(*port));
                    match to {
                        Some(to) => value(element, NFTA_ELEMENT_DATA, &target(to)),
                        None => element,
                    }
                });
            }
            list
        })
}

fn value(message: Message, kind: u16, bytes: &[u8]) -> Message {
    message.nest(kind | NESTED, |data| data.attribute(NFTA_DATA_VALUE, bytes))
}

/// Protocol and port, each in a register of four bytes.
fn key(port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [TCP, 0, 0, 0, high, low, 0, 0]
}

/// Address and port, likewise.
fn target(to: Ipv4Addr) -> [u8; 8] {
    let ([a, b, c, d], [high, low]) = (to.octets(), CONTAINER_PORT.to_be_bytes());
    [a, b, c, d, high, low, 0, 0]
}
