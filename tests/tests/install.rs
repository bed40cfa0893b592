//! `make install`, `podwire install` and `uninstall`: what is placed, what comes back, and what a runtime meets meanwhile.

use std::path::{Path, PathBuf};

use sandbox::{Finished, Sandbox, Suite, beyond_peer};

const WHY: &str = "podwire installs, and it is not among the Go plugins";

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A directory of the sandbox, in memory: there is no disk to wait for.
const ROOT: &str = "/run/root";

/// A shell on the node, in the project, with `$root` for [`ROOT`].
fn shell(sandbox: &Sandbox, script: &str) -> Finished {
    let bin = Suite::Ours.dir().display();
    let script = format!(
        "export PATH={bin}:$PATH; bin={bin} root={ROOT}; cd {}; mkdir -p $root
         install() {{ podwire install --from $bin --root $root \"$@\"; }}
         uninstall() {{ podwire uninstall --root $root \"$@\"; }}
         until_true() {{ for _ in $(seq 300); do ! \"$@\" || return 0; sleep 0.1; done; echo never: \"$@\"; exit 1; }}
         {script}",
        project().display(),
    );
    sandbox.host().run(&["bash", "-euc", &script])
}

#[track_caller]
fn good(done: Finished) -> String {
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

#[test]
fn what_is_installed_is_what_was_built() {
    let sandbox = Sandbox::new();
    let there = Path::new(ROOT);
    let installed = |dir: &str| sandbox.list(there.join(dir)).join(" ");
    let mut plugins: Vec<&str> = sandbox::table().iter().map(|it| &*it.name).collect();
    plugins.sort_unstable();
    for layout in ["", "LAYOUT=one", ""] {
        let script = "make -s -o build install DESTDIR=$root CNI_BIN_DIR=/cni SBIN_DIR=/sbin UNIT_DIR=/units";
        good(shell(&sandbox, &format!("{script} {layout}")));
        assert_eq!(installed("cni"), plugins.join(" "));
        assert_eq!(installed("sbin"), "podwire podwired");
        let units = "cni-dhcp.service cni-dhcp.socket podwired.service";
        assert_eq!(installed("units"), units);
        let file = if layout.is_empty() {
            "${file##*/}"
        } else {
            "suite"
        };
        good(shell(
            &sandbox,
            &format!("for file in $root/cni/*; do cmp $file $bin/{file}; done"),
        ));
    }
    let service = sandbox.read(there.join("units/cni-dhcp.service"));
    let service = service.expect("the unit of the daemon");
    assert!(
        service.contains("ExecStart=/cni/dhcp daemon\n"),
        "{service}"
    );
    let service = sandbox.read(there.join("units/podwired.service"));
    let service = service.expect("the unit of the agent");
    assert!(service.contains("ExecStart=/sbin/podwired\n"), "{service}");
}

#[test]
fn an_install_meets_no_call_with_a_missing_or_unfinished_file() {
    let sandbox = Sandbox::new();
    let script = "install() {
             make -s -o build install DESTDIR=$root CNI_BIN_DIR=/cni SBIN_DIR=/sbin UNIT_DIR=/units LAYOUT=$1
         }
         install many
         (for round in 1 2 3; do install one || exit; install many || exit; done; : > $root/done) &
         calls=0
         until [ -e $root/done ]; do
             kill -0 $! || [ -e $root/done ]
             for plugin in bridge host-local static loopback; do
                 versions=$(CNI_COMMAND=VERSION $root/cni/$plugin)
                 case $versions in *1.0.0*) ;; *) echo $plugin: $versions; exit 1;; esac
             done
             $root/sbin/podwire --version > /dev/null
             grep -q ^ExecStart= $root/units/cni-dhcp.service
             grep -q ^ListenStream= $root/units/cni-dhcp.socket
             calls=$((calls + 1))
         done
         wait
         [ $calls -gt 4 ]
         for file in $root/cni/*; do cmp $file $bin/${file##*/}; done
         find $root -name '.*'";
    assert_eq!(good(shell(&sandbox, script)), "", "left behind");
}

#[test]
fn one_file_is_all_plugins_and_a_pod_lives_by_it() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let pod = sandbox.pod("blue");
        let script = format!(
            "install --layout one --sbin-dir /opt/cni/bin --conf netconf-examples/10-bridge.conflist >$root/output
             dir=$root/opt/cni/bin
             rm -f $dir/podwired
             [ $(stat -c %h $dir/bridge) = $(ls $dir | wc -l) ]
             [ $(du -k --apparent-size $bin/suite | cut -f1) -ge $(($(du -k --apparent-size $dir | cut -f1) - 100)) ]
             export CNI_PATH=$dir NETCONFPATH=$root/etc/cni/net.d
             for verb in status add check del; do $dir/podwire $verb example-bridge {0} >$root/output; done
             $dir/podwire version | grep -c '(podwire '",
            pod.path()
        );
        let plugins = good(shell(&sandbox, &script));
        let expected = sandbox::table().len().to_string();
        assert_eq!(plugins.trim(), expected);
    });
}

/// Of an optimised build; the separate programs take 60 MB.
#[test]
fn the_suite_is_small_as_one_file() {
    beyond_peer(WHY, || {
        let size = |name: &str| {
            let file = Suite::Ours.dir().join(name);
            std::fs::metadata(file).map_or(0, |it| it.len() / 1024)
        };
        let is_optimised = size("loopback") < 4 * 1024;
        assert!(
            !is_optimised || size("suite") <= 10 * 1024,
            "{} kB",
            size("suite")
        );
    });
}

#[test]
fn the_way_back_restores_what_was_there() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let script = "
            bin_dir=$root/opt/cni/bin conf_dir=$root/etc/cni/net.d
            mkdir -p $bin_dir $conf_dir
            echo go > $bin_dir/bridge; echo other > $bin_dir/other; ln -s ../other $bin_dir/portmap
            echo '{}' > $conf_dir/10-bridge.conflist
            state() { (cd $root && find . -printf '%p %m %l\\n' | sort; cat $bin_dir/bridge $conf_dir/*); }
            before=$(state)
            some=bridge,portmap,host-local,ptp
            install --conf netconf-examples/10-bridge.conflist --plugins $some
            cmp $bin/bridge $bin_dir/bridge; cmp $bin/portmap $bin_dir/portmap
            cmp netconf-examples/10-bridge.conflist $conf_dir/10-bridge.conflist
            [ $(cat $bin_dir/other) = other ]
            # Again, and in the other layout: what was there first is kept.
            [ $(install --plugins $some --json | jq -r '.placed | length') = 0 ]
            install --layout one --plugins bridge,portmap
            uninstall
            diff <(echo \"$before\") <(state)
            uninstall
            install --keep-others --plugins bridge,ptp --json | jq -r '.others[], .placed[]' | sed s,$root,,
            [ $(cat $bin_dir/bridge) = go ]
            uninstall
            diff <(echo \"$before\") <(state)
            # From a directory that has no other plugins.
            mkdir $root/few; cp $bin/podwire $bin/tap $root/few
            ! $root/few/podwire install --root $root --plugins tap,ptp 2>&1 || exit
            $root/few/podwire install --root $root --plugins tap
            cmp $bin/tap $bin_dir/tap";
        let chosen = good(shell(&sandbox, script));
        let refused = format!("podwire: no plugin ptp in {ROOT}/few");
        let expected = ["/opt/cni/bin/bridge", "/opt/cni/bin/ptp", &refused];
        assert_eq!(chosen.lines().collect::<Vec<_>>(), expected);
    });
}

#[test]
fn a_faulty_configuration_stops_the_install_before_anything_is_placed() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let script = "
            cd $root
            plugins() { echo '{\"cniVersion\": \"1.0.0\", \"name\": \"n\", \"plugins\": ['$1']}' > 10-n.conflist; }
            refused() { ! install \"$@\" 2>output; cat output; [ ! -e opt ] && [ ! -e etc ]; }
            plugins '{\"type\": \"bridge\", \"mtu\": true}'
            refused --conf 10-n.conflist
            plugins '{\"type\": \"calico\"}'
            refused --conf 10-n.conflist
            plugins '{\"type\": \"loopback\"}, {\"type\": \"portmap\"}'
            refused --conf 10-n.conflist --plugins ptp,loopback
            refused --conf absent.conflist
            cp 10-n.conflist n.txt
            refused --conf n.txt
            refused --plugins brigde
            refused --bin-dir bin";
        let output = good(shell(&sandbox, script));
        let lines: Vec<&str> = output.lines().collect();
        let expected = [
            "10-n.conflist: plugins[0].mtu: invalid type: boolean `true`, expected an integer or \"auto\"; podwire validate 10-n.conflist prints every fault",
            "10-n.conflist: the plugin calico is neither installed nor in /opt/cni/bin",
            "10-n.conflist: the plugin portmap is neither installed nor in /opt/cni/bin",
            "absent.conflist: : cannot be read: no such file or directory",
            "n.txt: runtimes read only *.conflist, *.conf and *.json",
            "no plugin brigde; there are ",
            "bin is not an absolute path",
        ];
        assert_eq!(lines.len(), expected.len(), "{output}");
        for (line, expected) in lines.iter().zip(expected) {
            assert!(line.contains(expected), "{line}\n{expected}");
        }
    });
}

/// Killed at each call that changes a file: every file is the old or the new one, a repeated run completes the work, and the
/// way back, killed at the same call, leads to the beginning.
#[test]
fn killed_at_any_point_a_repeated_run_mends() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let script = "
            killed() { # killed CALL POINT COMMAND...: whether it was killed there
                local call=$1 point=$2; shift 2
                code=0; strace -qq -o $root/trace -e inject=$call:signal=KILL:when=$point \"$@\" >/dev/null || code=$?
                [ $code = 137 ]
            }
            old() {
                rm -rf $root/bin $root/net; mkdir $root/bin $root/net
                echo old > $root/bin/static; echo old > $root/net/10-n.conflist
            }
            installed() { for it in static host-local; do cmp $bin/$it $root/bin/$it; done; cmp $conf $root/net/10-n.conflist; }
            gone() {
                [ $(cat $root/bin/static $root/net/10-n.conflist | xargs | tr ' ' ,) = old,old ]
                [ \"$(find $root/bin $root/net -mindepth 1 | wc -l)\" = 2 ] || { find $root/bin $root/net; exit 1; }
            }
            whole() { [ ! -e $2 ] || cmp -s $1 $2 || [ \"$(cat $2)\" = old ]; }
            conf=$root/10-n.conflist
            echo '{\"cniVersion\": \"1.0.0\", \"name\": \"n\", \"plugins\": [{\"type\": \"host-local\"}]}' > $conf
            dirs='--root / --bin-dir '$root/bin' --conf-dir '$root/net
            place=\"podwire install --from $bin --plugins static,host-local --conf $conf $dirs\"
            points=0
            # strace counts each call by itself.
            for call in renameat ?renameat2 linkat fsync write fchmod; do for point in $(seq 1 30); do
                old
                killed $call $point $place || break
                points=$((points + 1))
                whole $bin/static $root/bin/static; whole $bin/host-local $root/bin/host-local; whole $conf $root/net/10-n.conflist
                [ -e $root/bin/static ] && [ -e $root/net/10-n.conflist ]
                # A configuration is there only after its plugins.
                ! cmp -s $conf $root/net/10-n.conflist || cmp $bin/host-local $root/bin/host-local
                $place
                installed; podwire uninstall $dirs; gone
            done; done
            for call in ?rename ?renameat ?renameat2 ?unlink ?unlinkat ?rmdir fsync; do for point in $(seq 1 30); do
                old; $place
                killed $call $point podwire uninstall $dirs || break
                points=$((points + 1))
                [ -e $root/bin/static ] && [ -e $root/net/10-n.conflist ]
                podwire uninstall $dirs; gone
            done; done
            [ $points -gt 30 ]";
        good(shell(&sandbox, script));
    });
}

#[test]
fn what_a_package_wipes_is_placed_again() {
    beyond_peer(WHY, || {
        let sandbox = Sandbox::new();
        let script = "
            podwire install --from $bin --root $root --plugins bridge,host-local --watch &
            pid=$!
            dir=$root/opt/cni/bin
            is_ours() { cmp -s $bin/$1 $dir/$1; }
            until_true is_ours host-local
            rm -rf $dir
            until_true is_ours host-local
            # A package that replaces a plugin as dpkg does.
            echo go > $dir/bridge.dpkg-new; mv $dir/bridge.dpkg-new $dir/bridge
            until_true is_ours bridge
            kill $pid; wait $pid
            uninstall
            cat $dir/bridge";
        assert_eq!(good(shell(&sandbox, script)), "go\n");
    });
}
