//! Queueing disciplines and classes of traffic control: how fast a link sends, and how packets
//! wait.
//!
//! Built by hand: rtnetlink knows neither tbf nor htb.

use nix::errno::Errno;
use nix::libc;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_ECHO, NLM_F_EXCL};
use transport::{Attributes, Message, Protocol, Refusal, Request, Route, find, find_in, text};

use crate::{Error, Netlink};

/// The qdisc that a link sends through (`TC_H_ROOT` in linux/pkt_sched.h).
const ROOT: u32 = u32::MAX;
/// The qdisc that a link receives through (`TC_H_INGRESS`).
const INGRESS: u32 = 0xffff_fff1;
/// `ffff:`, the handle of every ingress qdisc.
pub(crate) const INGRESS_HANDLE: u32 = 0xffff_0000;
/// `1:`, the handle of the shapers that [`Netlink::add_shaper`] adds.
pub(crate) const SHAPER: u32 = 0x1_0000;
/// `1:1`, the only class of a tbf.
const TBF_CLASS: u32 = 0x1_0001;
/// `1:30`, the shaped class of an htb: the number of the Go plugin.
pub(crate) const SHAPED_CLASS: u32 = 0x1_0030;

// linux/rtnetlink.h, linux/pkt_sched.h
pub(crate) const TCA_KIND: u16 = 1;
pub(crate) const TCA_OPTIONS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_HTB_PARMS: u16 = 1;
const TCA_HTB_INIT: u16 = 2;
const TCA_HTB_DIRECT_QLEN: u16 = 5;
const TCA_HTB_RATE64: u16 = 6;
const TCA_HTB_CEIL64: u16 = 7;
const TCA_FQ_CODEL_TARGET: u16 = 1;
/// Bytes of `struct tcmsg`.
pub(crate) const TCMSG: usize = 20;

/// How many packets that are not shaped may wait; the kernel would take the link's queue length,
/// which may be 0.
const DIRECT_PACKETS: u32 = 1000;

/// The smallest queue of bytes under an htb, which passes packets of up to 64 KiB on as they are (a
/// tbf splits them): a queue with less room would drop them all.
const LEAST_BEHIND_HTB: u32 = 4 * 65536;

/// A limit for what a link sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per second, at least 1.
    pub bytes: u64,
    /// How long a burst at that rate takes, in ticks of 64 ns: what may be sent at once.
    pub buffer: u32,
    /// How many bytes may wait.
    pub limit: u32,
}

/// Which packets are shaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shaped {
    /// Everything, by a tbf.
    All,
    /// Everything but what a filter excludes, by an htb.
    Unless,
    /// Only what a filter includes, by an htb.
    Only,
}

/// The queue under a shaper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Queue {
    /// One queue: [`Rate::limit`] bytes.
    Fifo,
    /// A queue for each flow (fq_codel), short if packets wait longer than `target`
    /// microseconds. A kernel without it has one queue.
    FqCodel {
        /// How long packets may wait.
        target: u32,
    },
}

/// A qdisc that a link has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Qdisc {
    /// The word of `tc qdisc add … KIND`.
    pub kind: String,
    handle: u32,
    /// Of a tbf: its limit.
    rate: Option<Rate>,
}

impl Qdisc {
    /// Whether [`Netlink::add_shaper`], or the Go plugin, may have added it.
    fn is_shaper(&self) -> bool {
        self.handle == SHAPER && matches!(self.kind.as_str(), "tbf" | "htb")
    }
}

impl Netlink {
    /// Limits what a link sends: `tc qdisc add dev LINK root handle 1: tbf rate R burst B limit L`,
    /// or `… htb default C` and `tc class add dev LINK parent 1: classid 1:30 htb rate R burst B`.
    /// Then `tc qdisc add dev LINK parent 1:1 fq_codel target T`, or `bfifo limit L` under an htb.
    ///
    /// # Errors
    /// `EEXIST` when the link has a qdisc that was added; what the kernel refuses.
    pub fn add_shaper(
        &self,
        link: u32,
        rate: &Rate,
        shaped: Shaped,
        queue: Queue,
    ) -> Result<(), Error> {
        let add = |kind: &str, options| {
            let message = tcmsg(link, SHAPER, ROOT, 0);
            self.add_tc(libc::RTM_NEWQDISC, message, kind, Some(options))
                .map_err(|errno| Error::new("create qdisc", errno))
        };
        let parent = match shaped {
            Shaped::All => {
                add("tbf", tbf(rate))?;
                TBF_CLASS
            }
            Shaped::Unless | Shaped::Only => {
                add("htb", htb(shaped))?;
                let message = tcmsg(link, SHAPED_CLASS, SHAPER, 0);
                self.add_tc(libc::RTM_NEWTCLASS, message, "htb", Some(htb_class(rate)))
                    .map_err(|errno| Error::new("create class", errno))?;
                SHAPED_CLASS
            }
        };
        if let Queue::FqCodel { target } = queue {
            let options = Attributes::<Route>::new().u32(TCA_FQ_CODEL_TARGET, target);
            let options = options.as_bytes().to_vec();
            let message = tcmsg(link, 0, parent, 0);
            match self.add_tc(libc::RTM_NEWQDISC, message, "fq_codel", Some(options)) {
                // The kernel lacks it.
                Err(Errno::ENOENT) => {}
                added => return added.map_err(|errno| Error::new("create fq_codel", errno)),
            }
        }
        if shaped == Shaped::All {
            // A tbf has such a queue from the start.
            return Ok(());
        }
        let limit = rate.limit.max(LEAST_BEHIND_HTB).to_ne_bytes().to_vec();
        self.add_tc(
            libc::RTM_NEWQDISC,
            tcmsg(link, 0, parent, 0),
            "bfifo",
            Some(limit),
        )
        .map_err(|errno| Error::new("create queue", errno))
    }

    /// Adds the qdisc that filters received packets: `tc qdisc add dev LINK ingress`.
    ///
    /// # Errors
    /// `EEXIST` when the link has one.
    pub(crate) fn add_ingress_qdisc(&self, link: u32) -> Result<(), Error> {
        let message = tcmsg(link, INGRESS_HANDLE, INGRESS, 0);
        self.add_tc(libc::RTM_NEWQDISC, message, "ingress", None)
            .map_err(|errno| Error::new("create ingress qdisc", errno))
    }

    /// The limit of a link's shaper, if it has one: `tc qdisc show dev LINK root`. Under an htb it is
    /// that of the shaped class (`tc class show dev LINK classid 1:30`), whose [`Rate::limit`] is 0.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn find_shaper(&self, link: u32, shaped: Shaped) -> Result<Option<Rate>, Error> {
        let qdisc = self.find_qdisc(link, ROOT)?;
        let Some(qdisc) = qdisc.filter(Qdisc::is_shaper) else {
            return Ok(None);
        };
        match shaped {
            Shaped::All => Ok(qdisc.rate),
            Shaped::Only | Shaped::Unless => self.find_shaped_class(link),
        }
    }

    /// Removes a link's shaper, if it has one: `tc qdisc del dev LINK root`. Other qdiscs stay.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove_shaper(&self, link: u32) -> Result<(), Error> {
        let qdisc = self.find_qdisc(link, ROOT)?;
        if qdisc.is_some_and(|it| it.is_shaper()) {
            self.delete_qdisc(tcmsg(link, 0, ROOT, 0))?;
        }
        Ok(())
    }

    /// The qdisc that a link receives through: `tc qdisc show dev LINK ingress`.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub(crate) fn find_ingress_qdisc(&self, link: u32) -> Result<Option<Qdisc>, Error> {
        self.find_qdisc(link, INGRESS)
    }

    fn find_qdisc(&self, link: u32, parent: u32) -> Result<Option<Qdisc>, Error> {
        let found = self.get_tc(libc::RTM_GETQDISC, tcmsg(link, 0, parent, 0), Qdisc::read);
        let found = found.map_err(|refusal| Error::refused("find qdisc", refusal))?;
        Ok(found.filter(|it| it.handle != 0))
    }

    /// Requests one qdisc or class. The kernel sends it as an event, which the sender gets only
    /// with `NLM_F_ECHO`, and nothing but an acknowledgement for the default qdisc.
    fn get_tc<T>(
        &self,
        request: u16,
        message: [u8; TCMSG],
        read: fn(Message<'_>) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let request = Request::new(request, NLM_F_ECHO, message.to_vec());
        let mut found = None;
        match self.socket.request(&request, |it| found = read(it)) {
            Err(refusal) if is_absent(refusal.errno) => Ok(None),
            done => done.map(|()| found),
        }
    }

    fn find_shaped_class(&self, link: u32) -> Result<Option<Rate>, Error> {
        let message = tcmsg(link, SHAPED_CLASS, SHAPER, 0);
        self.get_tc(libc::RTM_GETTCLASS, message, read_class)
            .map_err(|refusal| Error::refused("find class", refusal))
    }

    /// Removes the qdisc that a link receives through, with its filters: `tc qdisc del dev LINK
    /// ingress`.
    ///
    /// # Errors
    /// What the kernel refuses; it is no error if there is none.
    pub(crate) fn delete_ingress_qdisc(&self, link: u32) -> Result<(), Error> {
        self.delete_qdisc(tcmsg(link, 0, INGRESS, 0))
    }

    fn delete_qdisc(&self, message: [u8; TCMSG]) -> Result<(), Error> {
        let request = Request::new(libc::RTM_DELQDISC, 0, message.to_vec());
        match self.socket.request(&request, |_| ()) {
            Err(refusal) if is_absent(refusal.errno) => Ok(()),
            done => done.map_err(|refusal| Error::refused("delete qdisc", refusal)),
        }
    }

    /// Adds a qdisc, class or filter of `kind`.
    pub(crate) fn add_tc(
        &self,
        request: u16,
        message: [u8; TCMSG],
        kind: &str,
        options: Option<Vec<u8>>,
    ) -> Result<(), Errno> {
        let mut attributes = Attributes::<Route>::new().text(TCA_KIND, kind);
        if let Some(options) = options {
            attributes = attributes.bytes(TCA_OPTIONS, &options);
        }
        let body = [&message, attributes.as_bytes()].concat();
        let request = Request::new(request, NLM_F_CREATE | NLM_F_EXCL, body);
        let added = self.socket.request(&request, |_| ());
        added.map_err(|refusal| refusal.errno)
    }
}

/// The qdisc or its link is gone, or it is the default one, which cannot be deleted.
fn is_absent(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::EINVAL | Errno::ENODEV)
}

/// `struct tcmsg` (linux/rtnetlink.h).
pub(crate) fn tcmsg(link: u32, handle: u32, parent: u32, info: u32) -> [u8; TCMSG] {
    let mut message = [0; TCMSG];
    for (place, value) in message[4..]
        .chunks_exact_mut(4)
        .zip([link, handle, parent, info])
    {
        place.copy_from_slice(&value.to_ne_bytes());
    }
    message
}

/// `struct tc_ratespec`. Rates of 4 GiB/s and more are in an attribute of their own.
fn ratespec(bytes: u64) -> [u8; 12] {
    let mut spec = [0; 12];
    let rate = u32::try_from(bytes).unwrap_or(u32::MAX);
    spec[8..].copy_from_slice(&rate.to_ne_bytes());
    spec
}

fn is_large(bytes: u64) -> bool {
    bytes > u64::from(u32::MAX)
}

/// `struct tc_tbf_qopt`: rate, peak rate, limit, buffer, MTU.
fn tbf(rate: &Rate) -> Vec<u8> {
    let numbers = [rate.limit, rate.buffer, 0].map(u32::to_ne_bytes).concat();
    let parameters = [&ratespec(rate.bytes)[..], &[0; 12], &numbers].concat();
    let mut options = Attributes::<Route>::new().bytes(TCA_TBF_PARMS, &parameters);
    if is_large(rate.bytes) {
        options = options.bytes(TCA_TBF_RATE64, &rate.bytes.to_ne_bytes());
    }
    options.as_bytes().to_vec()
}

/// `struct tc_htb_glob`: version, divisor of rates, default class, and two that are not used.
/// Packets without a class are not shaped.
fn htb(shaped: Shaped) -> Vec<u8> {
    let default = match shaped {
        Shaped::Only => 0,
        _ => SHAPED_CLASS & 0xffff,
    };
    let global = [3, 10, default, 0, 0].map(u32::to_ne_bytes).concat();
    let options = Attributes::<Route>::new().bytes(TCA_HTB_INIT, &global);
    let options = options.bytes(TCA_HTB_DIRECT_QLEN, &DIRECT_PACKETS.to_ne_bytes());
    options.as_bytes().to_vec()
}

/// `struct tc_htb_opt`: rate, ceiling, their buffers, quantum, level, priority.
fn htb_class(rate: &Rate) -> Vec<u8> {
    let spec = ratespec(rate.bytes);
    let numbers = [rate.buffer, rate.buffer, 0, 0, 0];
    let numbers = numbers.map(u32::to_ne_bytes).concat();
    let parameters = [&spec[..], &spec, &numbers].concat();
    let mut options = Attributes::<Route>::new().bytes(TCA_HTB_PARMS, &parameters);
    if is_large(rate.bytes) {
        for kind in [TCA_HTB_RATE64, TCA_HTB_CEIL64] {
            options = options.bytes(kind, &rate.bytes.to_ne_bytes());
        }
    }
    options.as_bytes().to_vec()
}

impl Qdisc {
    /// The qdisc that a message describes, if it does.
    pub(crate) fn read(message: Message<'_>) -> Option<Self> {
        let (header, rest) = message.parts::<TCMSG>(libc::RTM_NEWQDISC)?;
        let kind = text(find(rest, TCA_KIND)?)?.to_owned();
        let rate = match kind.as_str() {
            "tbf" => read_rate(rest, [TCA_TBF_PARMS, TCA_TBF_RATE64], [28, 24]),
            _ => None,
        };
        Some(Self {
            kind,
            handle: Route::u32(&header[8..12])?,
            rate,
        })
    }
}

/// The limit of the htb class that a message describes, if it does.
pub(crate) fn read_class(message: Message<'_>) -> Option<Rate> {
    let (_, rest) = message.parts::<TCMSG>(libc::RTM_NEWTCLASS)?;
    let rate = read_rate(rest, [TCA_HTB_PARMS, TCA_HTB_RATE64], [24, 24])?;
    Some(Rate { limit: 0, ..rate })
}

/// Reads the parameters of a tbf, or of a class of an htb. `places` are the offsets of the buffer
/// and of the limit in their structures.
fn read_rate(rest: &[u8], kinds: [u16; 2], places: [usize; 2]) -> Option<Rate> {
    let parameters = find_in(rest, &[TCA_OPTIONS, kinds[0]])?;
    let number = |at: usize| Route::u32(parameters.get(at..at + 4)?);
    let large = find_in(rest, &[TCA_OPTIONS, kinds[1]]).and_then(|it| it.first_chunk());
    let bytes = match large {
        Some(large) => u64::from_ne_bytes(*large),
        None => u64::from(number(8)?),
    };
    Some(Rate {
        bytes,
        buffer: number(places[0])?,
        limit: number(places[1])?,
    })
}
