//! Decides from the keys what is limited, and with which numbers. Pure: no system calls.

use cni::Cidr;
use cni::faults::{Checks, Fault, Faults};
use ipnetwork::IpNetwork;
use netlink::{Queue, Rate, Shaped};

use crate::conf::Conf;

/// How long packets may wait, in microseconds: the queue holds what the rate sends in that time.
const LATENCY: u64 = 25_000;

/// The smallest burst of a runtime that stands for "no limit", in bits: containerd, CRI-O and
/// kubelet send this, or more, because annotations of pods have no burst.
const UNLIMITED: u64 = i32::MAX as u64;

/// Ticks of the kernel's packet scheduler in 1,000 microseconds (`PSCHED_SHIFT` in
/// include/net/pkt_sched.h; /proc/net/psched).
const TICKS: u64 = 15_625;

/// The headers in front of an IP packet that a shaper counts, and a little more, in bytes.
const HEADERS: u64 = 64;

/// How many full packets fit in a queue, whatever the rate: TCP slows down too much with less.
const PACKETS: u64 = 10;

/// The lowest rate with a queue for each flow, in bits per second. Below, one packet takes longer
/// than a tenth of the time in which fq_codel reacts.
const LEAST_FOR_FLOWS: u64 = 1_000_000;

/// The path to the runtime's limits.
const OF_RUNTIME: &str = "runtimeConfig.bandwidth.";

/// A configuration without contradictions.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The limit for what the pod receives.
    pub to_pod: Option<Limit>,
    /// The limit for what the pod sends.
    pub from_pod: Option<Limit>,
    /// What is limited.
    pub shaped: Shaped,
    /// The networks that are limited, or not limited, as [`Plan::shaped`] says.
    pub subnets: Vec<IpNetwork>,
    /// Whether each flow has a queue of its own.
    fq_codel: bool,
}

/// A limit as it is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bits per second.
    rate: u64,
    /// Bits; `None` if it follows from the rate.
    burst: Option<u64>,
}

impl Plan {
    /// Checks all keys.
    ///
    /// # Errors
    /// Code 7, each fault with its key.
    pub fn new(conf: &Conf) -> Result<Self, Faults> {
        let limits = conf.limits();
        let (place, bound) = match conf.own_limits() {
            Some(_) => ("", false),
            None => (OF_RUNTIME, conf.bound_burst),
        };
        let mut checks = Checks::default();
        let mut limit = |direction: &str, rate, burst| {
            let key = format!("{place}{direction}");
            checks.take(limit(&key, rate, burst, bound))
        };
        let to_pod = limit("ingress", limits.ingress_rate, limits.ingress_burst);
        let from_pod = limit("egress", limits.egress_rate, limits.egress_burst);
        let own = [&conf.shaped_subnets, &conf.unshaped_subnets];
        let (lists, place) = match &conf.runtime_config.bandwidth {
            Some(runtime) if own.iter().all(|list| list.is_empty()) => (
                [&runtime.shaped_subnets, &runtime.unshaped_subnets],
                OF_RUNTIME,
            ),
            _ => (own, ""),
        };
        let (shaped, subnets) = subnets(lists, place, &mut checks);
        checks.finish(|| {
            Some(Self {
                to_pod: to_pod?,
                from_pod: from_pod?,
                shaped,
                subnets,
                fq_codel: conf.fq_codel,
            })
        })
    }

    /// Whether nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        self.to_pod.is_none() && self.from_pod.is_none()
    }

    /// The queue under `limit`, on a link with `mtu`.
    pub fn queue(&self, limit: &Limit, mtu: u32) -> Queue {
        if !self.fq_codel || limit.rate < LEAST_FOR_FLOWS {
            return Queue::Fifo;
        }
        // 5 ms is fq_codel's default. On a slow link it is 1.5 times as long as one packet takes to
        // send.
        let packet = u64::from(mtu) * 8 * 1_000_000 / limit.rate;
        let target = (packet * 3 / 2).max(5_000);
        Queue::FqCodel {
            target: u32::try_from(target).unwrap_or(u32::MAX),
        }
    }
}

impl Limit {
    /// The numbers for the kernel, on a link with `mtu`. For a requested burst they are those of
    /// the Go plugin.
    pub fn numbers(&self, mtu: u32) -> Rate {
        let (rate, packet) = (self.rate / 8, u64::from(mtu) + HEADERS);
        let waiting = rate.saturating_mul(LATENCY) / 1_000_000;
        let (burst, least) = match self.burst {
            Some(bits) => (bits / 8, 0),
            None => (waiting.max(packet), packet * PACKETS),
        };
        let time = u128::from(burst) * 1_000_000 / u128::from(rate.max(1));
        let buffer = time * u128::from(TICKS) / 1_000;
        let limit = waiting.saturating_add(burst).max(least);
        Rate {
            bytes: rate,
            buffer: u32::try_from(buffer).unwrap_or(u32::MAX),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
        }
    }

    /// The numbers of the Go plugin where they differ: it takes any burst as it is, and computes
    /// modulo 2^32.
    pub fn numbers_of_go(&self, requested_burst: u64) -> Rate {
        let (rate, burst) = (self.rate / 8, requested_burst / 8);
        let time = u128::from(burst) * 1_000_000 / u128::from(rate.max(1));
        let ticks = u128::from(time as u32) * u128::from(TICKS) / 1_000;
        let waiting = u128::from(rate) * u128::from(LATENCY) / 1_000_000;
        Rate {
            bytes: rate,
            buffer: ticks as u32,
            limit: (waiting as u32).wrapping_add(burst as u32),
        }
    }
}

/// The limit in one direction; `None` if both numbers are 0. The texts are those of the Go plugin.
fn limit(key: &str, rate: u64, burst: u64, bound: bool) -> Result<Option<Limit>, Fault> {
    let (rate_key, burst_key) = (format!("{key}Rate"), format!("{key}Burst"));
    match (rate, burst) {
        (0, 0) => Ok(None),
        (_, 0) => Err(Fault::new(
            burst_key,
            "if rate is set, burst must also be set",
        )),
        (0, _) => Err(Fault::new(
            rate_key,
            "if burst is set, rate must also be set",
        )),
        (_, burst) if burst / 8 >= u64::from(u32::MAX) => {
            Err(Fault::new(burst_key, "burst cannot be more than 4GB"))
        }
        (1..8, _) => Err(Fault::new(
            rate_key,
            "rate must be at least 8 bits per second",
        )),
        (_, 1..8) => Err(Fault::new(burst_key, "burst must be at least 8 bits")),
        (rate, burst) => Ok(Some(Limit {
            rate,
            burst: Some(burst).filter(|burst| !bound || *burst < UNLIMITED),
        })),
    }
}

fn subnets(
    [shaped, unshaped]: [&Vec<String>; 2],
    place: &str,
    checks: &mut Checks,
) -> (Shaped, Vec<IpNetwork>) {
    if !shaped.is_empty() && !unshaped.is_empty() {
        let msg = "unshapedSubnets and shapedSubnets cannot be both specified, one of them should \
                   be discarded";
        checks.add(Fault::new(format!("{place}shapedSubnets"), msg));
    }
    let (kind, key, list) = match (shaped.is_empty(), unshaped.is_empty()) {
        (true, true) => return (Shaped::All, Vec::new()),
        (false, _) => (Shaped::Only, "shapedSubnets", shaped),
        (true, false) => (Shaped::Unless, "unshapedSubnets", unshaped),
    };
    let subnets = checks.each(&format!("{place}{key}"), list, |key, text| {
        let subnet = text.parse::<Cidr>().map(|it| it.0);
        let msg = |why| format!("bad subnet {text:?} provided, details {why}");
        subnet.map_err(|why| Fault::new(key, msg(why)))
    });
    (kind, subnets)
}

#[cfg(test)]
mod tests;
