//! Plugins with the two capabilities that they need, without one of them, and with
//! files, links and names that an attacker prepared. Only podwire is tested: the Go
//! plugins promise little of this.

use std::os::unix::fs::symlink;

use sandbox::{BackEnd, Cni, Netns, Sandbox, Snapshot, Suite, conf, conf_of};
use serde_json::{Value, json};

/// All that a plugin needs.
const ENOUGH: &str = "+net_admin,+sys_admin";

/// A call with no capabilities but `these`.
fn with(call: Cni, these: &str) -> Cni {
    let bounding = match these {
        "" => "-all".to_owned(),
        these => format!("-all,{these}"),
    };
    call.under(&["setpriv", "--bounding-set", &bounding, "--inh-caps", "-all"])
}

/// A node's usual chain, with everything that a bridge can do.
fn bridge() -> Value {
    let all = json!({"ipMasq": true, "macspoofchk": true, "isDefaultGateway": true});
    conf::with(&conf::bridge(&["10.1.0.0/24", "fd00:1::/64"]), all)
}

/// What the node had before, but for a bridge and rules that are no single pod's.
fn assert_no_trace(sandbox: &Sandbox, before: Snapshot) {
    before
        .allow_bridge_network()
        .allow("nft ")
        .allow("iptables ")
        .allow("sysctl ipv4/conf/cni0/route_localnet")
        .assert_unchanged();
    let rules = sandbox.host().sh("nft list ruleset; iptables-save");
    for trace in ["10.1.0.2", "fd00:1::2", "CNI-DN-", "macspoofchk"] {
        assert!(!rules.contains(trace), "{trace}: {rules}");
    }
}

fn portmap(result: &Value, backend: &str) -> Value {
    let ports = json!([
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 53, "containerPort": 53, "protocol": "udp"},
    ]);
    let keys = json!({"backend": backend, "runtimeConfig": {"portMappings": ports}});
    conf::with_prev(&conf::with(&conf::plugin("portmap"), keys), result)
}

#[test]
fn two_capabilities_are_enough_for_a_whole_life() {
    let sandbox = Sandbox::new();
    let before = sandbox.snapshot();
    let (pod, bridge) = (sandbox.pod("a"), bridge());
    let call = |kind: &str| with(sandbox.cni(kind), ENOUGH);
    call("loopback").add(&conf::loopback(), &pod, "lo").result();
    let result = call("bridge").add(&bridge, &pod, "eth0").result();
    let checked = conf::with_prev(&bridge, &result);
    call("bridge").check(&checked, &pod, "eth0").silent();
    for backend in [BackEnd::Nftables, BackEnd::IptablesNft] {
        let published = portmap(&result, backend.name());
        let call = || with(sandbox.cni_with(backend, "portmap"), ENOUGH);
        call().add(&published, &pod, "eth0").result();
        call().check(&published, &pod, "eth0").silent();
        call().del(&published, &pod, "eth0").silent();
    }
    call("bridge").del(&checked, &pod, "eth0").silent();
    call("loopback").del(&conf::loopback(), &pod, "lo").silent();
    assert_no_trace(&sandbox, before);
}

#[test]
fn without_one_of_them_the_error_says_which() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let before = sandbox.snapshot();
    for (kind, conf, ifname) in [
        ("bridge", bridge(), "eth0"),
        ("loopback", conf::loopback(), "lo"),
    ] {
        for (these, lacks, has) in [
            ("+sys_admin", "needs CAP_NET_ADMIN", "CAP_SYS_ADMIN"),
            ("+net_admin", "needs CAP_SYS_ADMIN", "CAP_NET_ADMIN"),
        ] {
            let error = with(sandbox.cni(kind), these)
                .add(&conf, &pod, ifname)
                .error();
            let context = format!("{kind} {these}: {}", error.msg);
            assert!(error.msg.contains("operation not permitted"), "{context}");
            assert!(error.msg.ends_with(lacks), "{context}");
            assert!(!error.msg.contains(has), "{context}");
        }
        let error = with(sandbox.cni(kind), "").add(&conf, &pod, ifname).error();
        let both = "needs CAP_NET_ADMIN and CAP_SYS_ADMIN";
        assert!(error.msg.ends_with(both), "{kind}: {}", error.msg);
    }
    // What all pods share may have been made before the rest could not be.
    assert_no_trace(&sandbox, before);
}

#[test]
fn legacy_iptables_needs_raw_sockets_and_the_error_says_so() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with(&bridge(), json!({"ipMasqBackend": "iptables"}));
    let call = |these: &str| with(sandbox.cni_with(BackEnd::IptablesLegacy, "bridge"), these);
    let error = call(ENOUGH).add(&conf, &pod, "eth0").error();
    assert!(error.msg.ends_with("needs CAP_NET_RAW"), "{}", error.msg);
    let enough = format!("{ENOUGH},+net_raw");
    call(&enough).add(&conf, &pod, "eth0").result();
}

#[test]
fn a_del_that_may_not_do_its_work_says_so_and_can_be_repeated() {
    let sandbox = Sandbox::new();
    let before = sandbox.snapshot();
    let (pod, bridge) = (sandbox.pod("a"), bridge());
    let result = sandbox.cni("bridge").add(&bridge, &pod, "eth0").result();
    let published = portmap(&result, "nftables");
    sandbox
        .cni("portmap")
        .add(&published, &pod, "eth0")
        .result();
    let (checked, weak) = (conf::with_prev(&bridge, &result), "+sys_admin");
    for (kind, conf) in [("portmap", &published), ("bridge", &checked)] {
        let error = with(sandbox.cni(kind), weak)
            .del(conf, &pod, "eth0")
            .error();
        let context = format!("{kind}: {}", error.msg);
        assert!(error.msg.contains("CAP_NET_ADMIN"), "{context}");
        sandbox.cni(kind).del(conf, &pod, "eth0").silent();
    }
    assert_no_trace(&sandbox, before);
}

#[test]
fn state_of_another_user_is_named_with_what_would_open_it() {
    let sandbox = Sandbox::new();
    let (pod, conf) = (sandbox.pod("a"), conf::host_local(&["10.1.0.0/24"]));
    let dir = conf::STATE;
    sandbox.host().sh(&format!(
        "mkdir -p {dir}; chmod 700 {dir}; chown 12345 {dir}"
    ));
    let error = with(sandbox.cni("host-local"), ENOUGH)
        .add(&conf, &pod, "eth0")
        .error();
    let text = format!("{dir}/lock: permission denied (13): needs CAP_DAC_OVERRIDE");
    assert!(error.msg.contains(&text), "{}", error.msg);
}

/// A call of DEL as an ordinary user who made a user namespace, and with it a network
/// namespace before there was a uid map: as RootlessKit, LXD and `unshare -rnm` do. The
/// kernel's list of iptables' tables has no owner there, so it cannot be read.
const ROOTLESS_DEL: &str = r#"
    for it in $GONE; do mount --bind /dev/null $it; done
    mount -t tmpfs none /run
    mount -t tmpfs none /var/lib
    mkdir /run/netns
    ip netns add a
    [ "$(id -u)" = 0 ]
    if [ -r /proc/thread-self/net/ip_tables_names ]; then echo "the list can be read" >&2; exit 1; fi
    export CNI_COMMAND=DEL CNI_CONTAINERID=x CNI_IFNAME=eth0 CNI_PATH="$PLUGINS"
    for netns in /run/netns/a /run/netns/a ""; do
        printf %s "$CONF" | CNI_NETNS=$netns "$PLUGINS/$1"
    done
    ip netns del a
    printf %s "$CONF" | CNI_NETNS=/run/netns/a "$PLUGINS/$1""#;

#[test]
fn del_succeeds_where_the_lists_of_iptables_cannot_be_read() {
    let sandbox = Sandbox::new();
    let before = sandbox.snapshot();
    let copy = sandbox.copy_readable(Suite::Ours.dir(), "plugins");
    // The programs are there, are missing, and are not allowed to look.
    for iptables in ["legacy", "nft", "missing", "forbidden"] {
        let programs = sandbox.dir().join(iptables);
        let path = programs.display();
        sandbox.host().sh(&format!(
            "mkdir {path}; cd {path}
             printf '#!/bin/sh\\necho Permission denied >&2; exit 4\\n' >forbidden
             chmod 755 . forbidden
             case {iptables} in
                 missing) exit ;;
                 forbidden) program=forbidden ;;
                 *) program=/usr/sbin/xtables-{iptables}-multi ;;
             esac
             for it in iptables ip6tables; do for job in '' -save -restore; do
                 ln -s $program $it$job
             done; done"
        ));
        let gone = match iptables {
            "missing" => format!("GONE={}", BackEnd::PROGRAMS.join(" ")),
            _ => "GONE=".to_owned(),
        };
        for plugin in ["portmap", "bridge", "macvlan", "vxlan"] {
            let mut conf = conf_of(plugin);
            conf["ipMasq"] = true.into();
            let conf = format!("CONF={conf}");
            let plugins = format!("PLUGINS={}", copy.display());
            let path = format!("PATH={path}:/usr/sbin:/usr/bin:/sbin:/bin");
            let as_nobody = [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ];
            let unshared = ["unshare", "-rnm", "sh", "-ec", ROOTLESS_DEL, "sh", plugin];
            let argv = [
                &["env", &conf, &plugins, &path, &gone],
                &as_nobody[..],
                &unshared[..],
            ]
            .concat();
            let done = sandbox.host().run(&argv);
            assert_eq!(
                (done.code, done.stdout.as_str()),
                (0, ""),
                "{iptables}: {plugin}: {done:?}"
            );
        }
    }
    before.allow("dir /run/mount").assert_unchanged();
}

/// Modes of all that is below a directory, as `mode name`.
fn modes(node: &Netns, dir: &str) -> Vec<String> {
    let script = format!("cd {dir} && find . -exec stat -c '%F %a %n' {{}} +");
    let lines = node.sh(&script);
    lines.lines().map(str::to_owned).collect()
}

#[test]
fn only_root_reads_the_files_of_a_plugin() {
    let sandbox = Sandbox::new();
    let (pod, bridge) = (sandbox.pod("a"), bridge());
    // Whatever the runtime's umask is.
    let call = sandbox
        .cni("bridge")
        .under(&["sh", "-c", "umask 0; exec \"$@\"", "sh"]);
    call.add(&bridge, &pod, "eth0").result();
    let modes = modes(&sandbox.host(), "/var/lib/cni/networks");
    assert!(modes.len() > 6, "{modes:#?}");
    for line in modes {
        let right = if line.starts_with("directory ") {
            line.contains(" 700 ")
        } else {
            line.contains(" 600 ")
        };
        assert!(right, "{line}");
    }
}

#[test]
fn links_in_the_place_of_our_files_lead_nowhere() {
    let sandbox = Sandbox::new();
    let (pod, conf) = (sandbox.pod("a"), conf::host_local(&["10.1.0.0/24"]));
    sandbox.write("/var/lib/victim", "precious");
    for name in ["10.1.0.2", "last_reserved_ip.0", "lock", ".reservation"] {
        let dir = conf::STATE.to_owned();
        sandbox.inside(move || {
            let _ = std::fs::remove_dir_all(&dir);
            std::fs::create_dir_all(&dir).expect("make the directory");
            symlink("/var/lib/victim", format!("{dir}/{name}")).expect("plant a link");
        });
        let outcome = sandbox.cni("host-local").add(&conf, &pod, "eth0");
        drop(outcome);
        let _ = sandbox.cni("host-local").del(&conf, &pod, "eth0");
        let state = sandbox
            .host()
            .sh("stat -c '%a %s' /var/lib/victim; cat /var/lib/victim");
        assert_eq!(state.trim(), "644 8\nprecious", "{name}");
    }
}

#[test]
fn a_link_in_the_place_of_a_networks_directory_is_refused() {
    for (planted, of) in [
        ("/var/lib/cni/networks/testnet", "the reservations"),
        ("/var/lib/cni/networks/.podwire/testnet", "the index"),
        ("/var/lib/cni/networks/.podwire", "all indexes"),
    ] {
        let sandbox = Sandbox::new();
        let (pod, conf) = (sandbox.pod("a"), conf::host_local(&["10.1.0.0/24"]));
        sandbox.host().sh(&format!(
            "mkdir -p /var/lib/victim $(dirname {planted}); ln -s /var/lib/victim {planted}"
        ));
        let error = sandbox.cni("host-local").add(&conf, &pod, "eth0").error();
        let text = format!("{planted}: is a symbolic link");
        assert!(error.msg.contains(&text), "{of}: {}", error.msg);
        assert!(sandbox.list("/var/lib/victim").is_empty(), "{of}");
    }
}

#[test]
fn the_data_directory_may_be_a_link_of_the_operators() {
    let sandbox = Sandbox::new();
    let (pod, conf) = (sandbox.pod("a"), conf::host_local(&["10.1.0.0/24"]));
    sandbox.host().sh(
        "mkdir -p /var/lib/cni /var/lib/elsewhere; ln -s /var/lib/elsewhere /var/lib/cni/networks",
    );
    sandbox.cni("host-local").add(&conf, &pod, "eth0").result();
    let names = sandbox.list("/var/lib/elsewhere/testnet");
    assert!(names.contains(&"10.1.0.2".to_owned()), "{names:?}");
}

/// Names that mean something to a shell, to iptables, to nft, to printf or to
/// the kernel, and are legal all the same.
const NAMES: [&str; 12] = [
    "$(id>x)", "`id`", "a\"b", "a'b", "a;b|c&d", "-j", "--help", "a\\b", "*?[a]", "#c", "{a}", "é",
];

#[test]
fn hostile_interface_names_are_names() {
    let sandbox = Sandbox::new();
    let before = sandbox.snapshot();
    for backend in [BackEnd::Nftables, BackEnd::IptablesNft] {
        for (number, name) in NAMES.iter().enumerate() {
            let pod = sandbox.pod(&format!("p{number}"));
            let keys = json!({"ipMasqBackend": backend.name()});
            let bridge = conf::with(&bridge(), keys);
            let call = |kind: &str| sandbox.cni_with(backend, kind);
            let result = call("bridge").add(&bridge, &pod, name).result();
            assert!(pod.link(name).is_some(), "{name}");
            let mut published = portmap(&result, backend.name());
            if backend == BackEnd::Nftables {
                // Conditions are carried by nft, as text.
                published["conditionsV4"] = json!(["ip", "daddr", "192.0.2.1"]);
            }
            call("portmap").add(&published, &pod, name).result();
            call("portmap").check(&published, &pod, name).silent();
            call("portmap").del(&published, &pod, name).silent();
            let checked = conf::with_prev(&bridge, &result);
            call("bridge").check(&checked, &pod, name).silent();
            call("bridge").del(&checked, &pod, name).silent();
            sandbox.remove_pod(&pod);
        }
    }
    assert_no_trace(&sandbox, before);
}

/// The kernel replaces `%d` by a number.
#[test]
fn a_pattern_is_no_interface_name() {
    let sandbox = Sandbox::new();
    let snapshot = sandbox.snapshot().allow_bridge_network();
    let pod = sandbox.pod("a");
    let conf = conf::bridge(&["10.1.0.0/24"]);
    sandbox.cni("bridge").add(&conf, &pod, "eth%d").error();
    snapshot.assert_unchanged();
}
