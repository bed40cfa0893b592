//! The packet filters that a node may have, and all their rules as text.

use std::os::unix::fs::symlink;

use crate::cni::Cni;
use crate::netns::Netns;
use crate::sandbox::Sandbox;

/// A packet filter, and which programs are called `iptables`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackEnd {
    /// nf_tables.
    Nftables,
    /// iptables whose programs write to nf_tables.
    IptablesNft,
    /// iptables whose programs write to ip_tables.
    IptablesLegacy,
}

impl BackEnd {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Nftables, Self::IptablesNft, Self::IptablesLegacy];

    /// Those that are called iptables.
    pub const IPTABLES: [Self; 2] = [Self::IptablesNft, Self::IptablesLegacy];

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::IptablesNft | Self::IptablesLegacy => "iptables",
        }
    }

    /// Every program that rules may be written with.
    pub const PROGRAMS: [&str; 3] = [
        "/usr/sbin/nft",
        "/usr/sbin/xtables-nft-multi",
        "/usr/sbin/xtables-legacy-multi",
    ];

    /// The program behind the six names.
    fn program(self) -> &'static str {
        match self {
            Self::Nftables | Self::IptablesNft => "/usr/sbin/xtables-nft-multi",
            Self::IptablesLegacy => "/usr/sbin/xtables-legacy-multi",
        }
    }

    /// `PATH` on a node whose administrator chose this variant (`update-alternatives`).
    pub fn path(self, sandbox: &Sandbox) -> String {
        let dir = sandbox.dir().join(format!("programs-{self:?}"));
        if !dir.exists() {
            std::fs::create_dir(&dir).expect("make the directory of programs");
            for family in ["iptables", "ip6tables"] {
                for job in ["", "-save", "-restore"] {
                    let name = dir.join(format!("{family}{job}"));
                    symlink(self.program(), name).expect("link a program");
                }
            }
        }
        format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", dir.display())
    }
}

/// A node with one of the packet filters, and a machine outside.
pub struct FilterNode {
    /// The node.
    pub sandbox: Sandbox,
    /// See [`Sandbox::outside`].
    pub outside: Netns,
    /// Its packet filter.
    pub back_end: BackEnd,
}

impl FilterNode {
    /// Makes it.
    pub fn new(back_end: BackEnd) -> Self {
        let sandbox = Sandbox::new();
        let outside = sandbox.outside();
        Self {
            sandbox,
            outside,
            back_end,
        }
    }

    /// Runs `test` once per back end, each time on a node of its own. Which one it was
    /// stands above the message of a failure.
    pub fn each(back_ends: &[BackEnd], test: impl Fn(Self)) {
        for back_end in back_ends {
            eprintln!("{back_end:?}:");
            test(Self::new(*back_end));
        }
    }

    /// The node's own namespace.
    pub fn host(&self) -> Netns {
        self.sandbox.host()
    }

    /// A call of a plugin, which finds the programs of this back end.
    pub fn cni(&self, kind: &str) -> Cni {
        self.sandbox.cni_with(self.back_end, kind)
    }

    /// [`Netns::rules`] of the node.
    pub fn rules(&self) -> String {
        self.host().rules()
    }

    /// [`Netns::assert_rules`] of the node.
    #[track_caller]
    pub fn assert_rules(&self, before: &str) {
        eprintln!("{:?}:", self.back_end);
        self.host().assert_rules(before);
    }
}

/// Nothing can execute `/dev/null`. The mounts are gone with the plugin.
const WITHOUT: &str = r#"for it in $GONE; do mount --bind /dev/null $it; done; exec "$@""#;

impl Cni {
    /// Runs the plugin where these programs (paths) are no files, and so not installed.
    pub fn without(self, programs: &[&str]) -> Self {
        self.env("GONE", programs.join(" "))
            .under(&["unshare", "--mount", "sh", "-ec", WITHOUT, "sh"])
    }
}

impl Sandbox {
    /// As [`Sandbox::cni`], on a node with these programs.
    pub fn cni_with(&self, back_end: BackEnd, kind: &str) -> Cni {
        self.cni(kind).env("PATH", back_end.path(self))
    }
}

/// Comments with the date, and counters, go. nft does not show all that iptables has written.
const RULES: &str = r"
    nft -s list ruleset
    for program in iptables-nft-save ip6tables-nft-save iptables-legacy-save ip6tables-legacy-save; do
        echo $program
        $program | sed -e '/^#/d' -e 's/ \[[0-9:]*\]$//'
    done";

impl Netns {
    /// Every rule of every packet filter, without counters.
    pub fn rules(&self) -> String {
        self.sh(RULES)
    }

    /// Panics with the first lines that differ unless [`Netns::rules`] are `before` to the byte.
    #[track_caller]
    pub fn assert_rules(&self, before: &str) {
        let now = self.rules();
        if now == before {
            return;
        }
        let mut lines = Vec::new();
        for (sign, these, those) in [('+', now.as_str(), before), ('-', before, now.as_str())] {
            let those: Vec<&str> = those.lines().collect();
            let only = these.lines().filter(|line| !those.contains(line));
            lines.extend(only.map(|line| format!("{sign} {line}")));
        }
        lines.truncate(20);
        panic!("the rules differ, if only in order:\n{}", lines.join("\n"));
    }
}
