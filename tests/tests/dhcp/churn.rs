//! Hundreds of addresses at once.

use std::time::Duration;

use sandbox::{Suite, beyond_peer};

use crate::{STATE, WHY, Wire, eventually, lan};

#[test]
fn five_hundred_addresses_at_once() {
    beyond_peer(WHY, || {
        let wire = Wire::new();
        let server = wire.dnsmasq(&[]);
        let daemon = wire.daemon(&[]);
        // One namespace with many interfaces is as many leases, and less work for the machine.
        let pod = wire.sandbox.pod("a");
        let dir = wire.sandbox.dir().display().to_string();
        // Its ports take no broadcasts of others: that all of these reach all would be
        // a quarter of a million packets, and measure nothing but the machine.
        pod.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        wire.host().sh(&format!(
            "for i in $(seq 500); do
                 echo link add w$i type veth peer name e$i netns a
                 echo link set w$i master lan
                 echo link set w$i type bridge_slave flood off mcast_flood off bcast_flood off
                 echo link set w$i up
             done >{dir}/batch
             ip -batch {dir}/batch"
        ));
        pod.sh(&format!(
            "for i in $(seq 500); do echo link set e$i up; done >{dir}/up; ip -batch {dir}/up"
        ));
        wire.sandbox.write(format!("{dir}/conf"), lan().to_string());
        let plugin = Suite::Ours.dir().join("dhcp").display().to_string();
        let done = wire.host().run_for(
            &[
                "sh",
                "-ec",
                &format!(
                    "export CNI_CONTAINERID=id CNI_NETNS=/run/netns/a CNI_PATH=/x CNI_ARGS=
                 for i in $(seq 500); do
                     CNI_IFNAME=e$i CNI_COMMAND=ADD {plugin} <{dir}/conf >{dir}/r$i 2>&1 &
                 done; wait
                 cat {dir}/r* | grep -o '10.77[^\"]*/16' | sort -u | wc -l"
                ),
            ],
            Duration::from_secs(120),
        );
        assert_eq!(done.stdout.trim(), "500", "{done:?}");
        assert_eq!(wire.sandbox.list(STATE).len(), 500);
        // All of it on one thread, beside the one that closes sockets.
        let threads = wire
            .host()
            .sh(&format!("ls /proc/{}/task | wc -l", daemon.id()));
        assert!(
            threads.trim().parse::<u32>().is_ok_and(|count| count <= 2),
            "{threads}"
        );
        // Closing one takes some 10 ms: the kernel waits for an RCU grace period.
        let fds = || {
            wire.host()
                .sh(&format!("ls /proc/{}/fd | wc -l", daemon.id()))
        };
        eventually(30, "the sockets are closed", || {
            fds().trim().parse::<u32>().is_ok_and(|count| count < 30)
        });
        drop(server);
    });
}
