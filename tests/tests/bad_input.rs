//! Malformed and extreme input, and machines where calls fail: the plugin answers in
//! time with one error document and changes nothing that it should not change.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use sandbox::{Sandbox, Stdout, beyond_peer, conf, conf_of, each_plugin};
use serde_json::json;

// ---- documents

#[test]
fn documents_that_are_no_objects_are_refused() {
    each_plugin(|sandbox, pod, plugin| {
        for text in ["[]", "\"text\"", "1", "true", "[{\"name\": \"x\"}]"] {
            for verb in ["ADD", "DEL", "CHECK"] {
                let error = sandbox
                    .cni(plugin)
                    .stdin(text)
                    .attachment(verb, &json!({}), pod, "eth0")
                    .error();
                assert!(
                    [6, 7].contains(&error.code),
                    "{plugin} {verb} {text}: {}",
                    error.msg
                );
            }
        }
    });
}

#[test]
fn bytes_that_are_not_utf_8_do_not_confuse() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let mut bytes = conf::loopback().to_string().into_bytes();
    let at = bytes
        .windows(7)
        .position(|w| w == b"testnet")
        .expect("the name");
    bytes[at] = 0xff;
    assert_ne!(
        sandbox
            .cni("loopback")
            .stdin(bytes)
            .add(&json!({}), &pod, "lo")
            .error()
            .code,
        999
    );
}

#[test]
fn a_document_of_ten_megabytes_is_read_like_any_other() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let mut conf = conf::bridge(&["10.1.0.0/24"]);
    conf["ballast"] = "x".repeat(10 << 20).into();
    let quick = || sandbox.cni("bridge").limit(Duration::from_secs(10));
    quick().add(&conf, &pod, "eth0").result();
    quick().del(&conf, &pod, "eth0").silent();
    conf["cniVersion"] = "9.0.0".into();
    assert_eq!(quick().add(&conf, &pod, "eth0").error().code, 1);
}

#[test]
fn nesting_without_end_is_refused_without_a_crash() {
    beyond_peer("Go's decoder allows ten thousand levels", || {
        each_plugin(|sandbox, pod, plugin| {
            for depth in [200, 100_000] {
                let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
                let text =
                    format!("{{\"cniVersion\": \"1.0.0\", \"name\": \"x\", \"deep\": {deep}}}");
                let outcome = sandbox.cni(plugin).stdin(text).add(&json!({}), pod, "eth0");
                // Refusing is allowed, dying is not.
                assert!(outcome.code() <= 1, "{plugin} at {depth}: {outcome}");
                assert_eq!(outcome.error().code, 6);
            }
        });
    });
}

#[test]
fn deep_nesting_does_not_crash() {
    each_plugin(|sandbox, pod, plugin| {
        let deep = format!("{}{}", "[".repeat(1_000_000), "]".repeat(1_000_000));
        let text = format!("{{\"cniVersion\": \"1.0.0\", \"name\": \"x\", \"deep\": {deep}}}");
        sandbox
            .cni(plugin)
            .stdin(text)
            .add(&json!({}), pod, "eth0")
            .error();
    });
}

#[test]
fn wrong_types_and_ranges_never_get_through_bridge() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    for change in [
        json!({"bridge": 1}),
        json!({"isGateway": 1}),
        json!({"isDefaultGateway": "no"}),
        json!({"forceAddress": []}),
        json!({"mtu": {}}),
        json!({"mtu": 1e30}),
        json!({"mtu": 2.5}),
        json!({"hairpinMode": "on"}),
        json!({"promiscMode": {}}),
        json!({"enabledad": 0}),
        json!({"ipam": "host-local"}),
        json!({"ipam": {"type": 5}}),
        json!({"dns": []}),
        json!({"runtimeConfig": []}),
        json!({"runtimeConfig": {"mac": 5}}),
        json!({"args": {"cni": {"mac": []}}}),
        json!({"capabilities": ["mac"]}),
        json!({"prevResult": "x"}),
    ] {
        let conf = conf::with(&conf::bridge(&["10.1.0.0/24"]), change.clone());
        let snapshot = sandbox.snapshot();
        sandbox.cni("bridge").add(&conf, &pod, "eth0").error();
        if let Err(left) = snapshot.compare(Duration::from_secs(1)) {
            panic!("{change}: {left}");
        }
    }
}

#[test]
fn wrong_types_never_get_through_host_local() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    for ipam in [
        json!({"ranges": {}}),
        json!({"ranges": [{}]}),
        json!({"ranges": [[{"subnet": 5}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/33"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0/24"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.300"}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24", "gateway": 1}]]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": {}}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "nowhere"}]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "routes": [{"dst": "10.0.0.0/8", "gw": "x"}]}),
        json!({"ranges": [[{"subnet": "10.1.0.0/24"}]], "dataDir": 5}),
    ] {
        let conf = conf::with(&conf::plugin("bridge"), json!({"ipam": ipam}));
        sandbox.cni("host-local").add(&conf, &pod, "eth0").error();
    }
    snapshot.assert_unchanged();
}

// ---- names

const EVIL: [&str; 8] = [
    "../../../etc/x",
    "a/../b",
    "..",
    ".",
    "/etc/passwd",
    "a\nb",
    "a;reboot",
    "a\u{0}b",
];

#[test]
fn evil_network_names_never_become_paths() {
    each_plugin(|sandbox, pod, plugin| {
        let snapshot = sandbox.snapshot();
        for name in EVIL {
            for verb in ["ADD", "DEL", "CHECK"] {
                let conf = conf::with(&conf_of(plugin), json!({"name": name}));
                let error = sandbox
                    .cni(plugin)
                    .attachment(verb, &conf, pod, "eth0")
                    .error();
                assert_eq!(error.code, 7, "{plugin} {verb} {name:?}");
            }
        }
        snapshot.assert_unchanged();
    });
}

#[test]
fn evil_container_ids_never_become_anything() {
    each_plugin(|sandbox, pod, plugin| {
        let snapshot = sandbox.snapshot();
        // NUL cannot be in an environment.
        for id in EVIL.into_iter().filter(|id| !id.contains('\0')) {
            for verb in ["ADD", "DEL", "CHECK"] {
                let error = sandbox
                    .cni(plugin)
                    .id(id)
                    .attachment(verb, &conf_of(plugin), pod, "eth0")
                    .error();
                assert_eq!(error.code, 4, "{plugin} {verb} {id:?}");
            }
        }
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_very_long_network_name_is_an_error_where_it_names_a_file() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf::with(
        &conf::host_local(&["10.1.0.0/24"]),
        json!({"name": "n".repeat(300)}),
    );
    let error = sandbox.cni("host-local").add(&conf, &pod, "eth0").error();
    assert!(error.msg.contains("file name too long"), "{}", error.msg);
    let conf = conf::with(&conf::loopback(), json!({"name": "n".repeat(300)}));
    sandbox.cni("loopback").add(&conf, &pod, "lo").result();
}

#[test]
fn a_very_long_container_id_is_kept_whole() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let id = "c".repeat(4000);
    let call = || sandbox.cni("bridge").id(&id);
    call().add(&conf_of("bridge"), &pod, "eth0").result();
    let file = sandbox
        .read(format!("{}/10.1.0.2", conf::STATE))
        .expect("a reservation");
    assert_eq!(file, format!("{id}\r\neth0"));
    call().del(&conf_of("bridge"), &pod, "eth0").silent();
    assert_eq!(sandbox.read(format!("{}/10.1.0.2", conf::STATE)), None);
}

#[test]
fn variables_that_are_not_utf_8_are_an_error() {
    each_plugin(|sandbox, pod, plugin| {
        let bad = OsString::from_vec(b"a\xff".to_vec());
        for name in ["CNI_COMMAND", "CNI_CONTAINERID"] {
            let outcome =
                sandbox
                    .cni(plugin)
                    .env(name, bad.clone())
                    .add(&conf_of(plugin), pod, "eth0");
            assert_eq!(outcome.error().code, 4, "{plugin} {name}");
        }
    });
}

/// Executes a program with its own environment and more, duplicates included: no
/// library call would do that, but a careless runtime can.
const DUPLICATE: &str = r#"
    my $number = shift;
    my $program = pop;
    my @env = ((map { "$_=$ENV{$_}" } sort keys %ENV), @ARGV);
    my @argv = ($program);
    syscall($number, $program, pack("p*", @argv, undef), pack("p*", @env, undef));
    die "execve: $!";
"#;

#[test]
fn of_duplicate_variables_the_first_counts_for_plugin_and_delegate() {
    let execve = match std::env::consts::ARCH {
        "x86_64" => "59",
        _ => "221",
    };
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let wrapper = [
        "perl",
        "-e",
        DUPLICATE,
        execve,
        "CNI_IFNAME=eth1",
        "CNI_CONTAINERID=second",
    ];
    let call = || sandbox.cni("bridge").under(&wrapper);
    call().add(&conf_of("bridge"), &pod, "eth0").result();
    assert_eq!(pod.links(), ["eth0", "lo"]);
    let file = sandbox.read(format!("{}/10.1.0.2", conf::STATE));
    assert_eq!(file.as_deref(), Some("id-a\r\neth0"));
    call().del(&conf_of("bridge"), &pod, "eth0").silent();
    assert_eq!(pod.links(), ["lo"]);
}

#[test]
fn args_that_are_not_pairs_are_an_error_where_args_are_read() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    for args in ["MAC", "MAC=a=b", ";", "MAC=02:00:00:00:00:01;;"] {
        let error = sandbox
            .cni("bridge")
            .args(args)
            .add(&conf::bridge_l2(), &pod, "eth0")
            .error();
        assert!(error.msg.contains("invalid pair"), "{args}: {}", error.msg);
        assert_eq!(pod.links(), ["lo"]);
    }
    sandbox
        .cni("loopback")
        .args(";;;")
        .add(&conf::loopback(), &pod, "lo")
        .result();
}

// ---- the machine

#[test]
fn an_exhausted_pool_leaves_no_wire() {
    beyond_peer("reference 8 #7: the veth stays", || {
        let sandbox = Sandbox::new();
        let (a, b) = (sandbox.pod("a"), sandbox.pod("b"));
        let conf = conf::bridge(&["10.1.0.0/30"]);
        sandbox.cni("bridge").add(&conf, &a, "eth0").result();
        let snapshot = sandbox.snapshot();
        let error = sandbox.cni("bridge").add(&conf, &b, "eth0").error();
        assert!(
            error.msg.contains("no IP addresses available in range set"),
            "{}",
            error.msg
        );
        snapshot.assert_unchanged();
        sandbox.cni("bridge").del(&conf, &a, "eth0").silent();
        sandbox.cni("bridge").add(&conf, &b, "eth0").result();
    });
}

/// Mounts a file system over `/var/lib/cni`.
fn mount(sandbox: &Sandbox, options: &str) {
    sandbox.host().sh(&format!(
        "mkdir -p /var/lib/cni; mount -t tmpfs -o {options} tmpfs /var/lib/cni"
    ));
}

#[test]
fn a_read_only_disk_fails_add_and_leaves_no_wire() {
    beyond_peer("reference 8 #7: the veth stays", || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("a");
        mount(&sandbox, "ro");
        let snapshot = sandbox.snapshot().allow_link("cni0");
        let error = sandbox
            .cni("bridge")
            .add(&conf_of("bridge"), &pod, "eth0")
            .error();
        assert!(error.msg.contains("read-only file system"), "{}", error.msg);
        snapshot.assert_unchanged();
    });
}

#[test]
fn a_full_disk_fails_add_and_reserves_nothing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf_of("host-local");
    sandbox
        .cni("host-local")
        .id("warm-up")
        .add(&conf, &pod, "eth0")
        .result();
    sandbox
        .cni("host-local")
        .id("warm-up")
        .del(&conf, &pod, "eth0")
        .silent();
    mount(&sandbox, "size=4k,nr_inodes=100");
    sandbox.host().sh("mkdir -p /var/lib/cni/networks; dd if=/dev/zero of=/var/lib/cni/ballast bs=4k count=1 status=none");
    let error = sandbox.cni("host-local").add(&conf, &pod, "eth0").error();
    assert!(
        error.msg.contains("no space left on device"),
        "{}",
        error.msg
    );
    let names = sandbox.list(conf::STATE);
    assert!(
        !names.iter().any(|name| name.starts_with("10.")),
        "{names:?}"
    );
}

#[test]
fn a_disk_without_inodes_fails_add_and_reserves_nothing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    // Root, networks/, testnet/ and the lock: nothing is left for the address.
    mount(&sandbox, "size=1m,nr_inodes=4");
    let error = sandbox
        .cni("host-local")
        .add(&conf_of("host-local"), &pod, "eth0")
        .error();
    assert!(
        error.msg.contains("no space left on device"),
        "{}",
        error.msg
    );
    let names = sandbox.list(conf::STATE);
    assert!(
        !names.iter().any(|name| name.starts_with("10.")),
        "{names:?}"
    );
}

#[test]
fn a_full_disk_does_not_stop_del() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let conf = conf_of("bridge");
    mount(&sandbox, "size=64k");
    sandbox.cni("bridge").add(&conf, &pod, "eth0").result();
    sandbox
        .host()
        .sh("dd if=/dev/zero of=/var/lib/cni/ballast bs=4k count=99 2>/dev/null || :");
    sandbox.cni("bridge").del(&conf, &pod, "eth0").silent();
    assert_eq!(sandbox.read(format!("{}/10.1.0.2", conf::STATE)), None);
}

#[test]
fn a_file_where_the_state_directory_should_be_is_an_error() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    sandbox.write("/var/lib/cni", "");
    let error = sandbox
        .cni("host-local")
        .add(&conf_of("host-local"), &pod, "eth0")
        .error();
    assert!(error.msg.contains("not a directory"), "{}", error.msg);
}

#[test]
fn without_the_capability_to_change_the_network_add_fails_and_changes_nothing() {
    let sandbox = Sandbox::new();
    let pod = sandbox.pod("a");
    let snapshot = sandbox.snapshot();
    let weak = |plugin: &str| {
        let drop = [
            "setpriv",
            "--bounding-set",
            "-net_admin,-sys_admin",
            "--inh-caps",
            "-all",
        ];
        sandbox.cni(plugin).under(&drop)
    };
    let error = weak("bridge").add(&conf_of("bridge"), &pod, "eth0").error();
    assert!(
        error.msg.contains("operation not permitted"),
        "{}",
        error.msg
    );
    let error = weak("loopback").add(&conf::loopback(), &pod, "lo").error();
    assert!(
        error.msg.contains("operation not permitted"),
        "{}",
        error.msg
    );
    snapshot.assert_unchanged();
}

#[test]
fn a_closed_stdout_is_an_error_that_leaves_no_reservation() {
    beyond_peer(
        "style.md 1.2: the result is lost, the address with it",
        || {
            for stdout in [Stdout::NoReader, Stdout::Full] {
                let sandbox = Sandbox::new();
                let pod = sandbox.pod("a");
                let snapshot = sandbox.snapshot().allow_host_local(conf::NETWORK);
                let outcome = sandbox.cni("host-local").stdout(stdout).add(
                    &conf_of("host-local"),
                    &pod,
                    "eth0",
                );
                assert_eq!(outcome.code(), 1, "{outcome}");
                snapshot.assert_unchanged();
            }
        },
    );
}
