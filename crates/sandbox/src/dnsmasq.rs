//! dnsmasq as the DHCP server, or another name server, of the tests.

use crate::{Netns, Running};

impl Netns {
    /// dnsmasq in the foreground, for DHCP alone, on `eth0`: it reads no configuration of
    /// the machine, keeps nothing on disk, and hands out the addresses of `range`, as its
    /// option `--dhcp-range` has it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn dnsmasq(&self, range: &str, options: &[&str]) -> Running {
        let range = format!("--dhcp-range={range}");
        let fixed = [
            "dnsmasq",
            "--conf-file=/dev/null",
            "--keep-in-foreground",
            "--log-facility=-",
            "--log-dhcp",
            "--user=root",
            "--pid-file",
            "--port=0",
            "--interface=eth0",
            "--no-ping",
            "--leasefile-ro",
            &range,
        ];
        self.start(&[&fixed, options].concat())
    }

    /// dnsmasq in the foreground, for names alone: it reads no configuration of the machine and knows
    /// what its `options` say. Without further ones it has port 53 of all addresses. It listens when
    /// this returns.
    ///
    /// # Panics
    /// When it cannot be started, or does not listen in time.
    pub fn name_server(&self, options: &[&str]) -> Running {
        let fixed = [
            "dnsmasq",
            "--conf-file=/dev/null",
            "--keep-in-foreground",
            "--log-facility=-",
            "--user=root",
            "--pid-file",
            "--no-resolv",
            "--no-hosts",
        ];
        let server = self.start(&[&fixed, options].concat());
        self.wait_until("dnsmasq listens", |it| {
            it.sh("ss -Hltnp sport = 53").contains("\"dnsmasq\"")
        });
        server
    }
}
