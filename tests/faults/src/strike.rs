//! The fault that a traced program gets, and the report about it.

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::calls;

/// The kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// Nothing: calls are listed.
    Watch,
    /// The plugin, its delegates and their helpers are killed at once, as a runtime ends a process group or a node a unit.
    KillChain,
    /// The plugin alone is killed: its delegates continue.
    KillPlugin,
    /// The plugin's delegate is killed; the points are the delegate's calls alone.
    KillDelegate,
    /// The DHCP daemon that the plugin asks is killed; the points are its calls alone, from its start to its end.
    KillDaemon,
    /// All processes are paused before the call, for so many milliseconds.
    Pause {
        /// How many.
        milliseconds: u64,
    },
    /// The call fails, in its `choice`th way.
    Fail {
        /// Which of [`crate::calls::errors`].
        choice: usize,
    },
    /// The same with a call of the DHCP daemon.
    FailDaemon {
        /// As above.
        choice: usize,
    },
}

impl Deed {
    /// Whether the fault is the daemon's.
    pub fn is_daemons(self) -> bool {
        matches!(self, Self::KillDaemon | Self::FailDaemon { .. })
    }

    /// Which error a call gets, if it gets one.
    pub fn choice(self) -> Option<usize> {
        match self {
            Self::Fail { choice } | Self::FailDaemon { choice } => Some(choice),
            _ => None,
        }
    }

    /// The same fault with another error.
    pub fn with(self, choice: usize) -> Self {
        match self {
            Self::Fail { .. } => Self::Fail { choice },
            Self::FailDaemon { .. } => Self::FailDaemon { choice },
            deed => deed,
        }
    }
}

/// A fault, and the call at which it is injected: its number among those of all threads and processes, from 1.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    /// The kind of fault.
    pub deed: Deed,
    /// The number of the call.
    pub point: usize,
    /// Only calls of this name are counted, so that other threads do not matter.
    pub call: Option<&'static str>,
}

impl Strike {
    /// As words on a command line; [`Strike::parse`] reads them.
    pub fn words(self) -> [String; 2] {
        let deed = match self.deed {
            Deed::Watch => "watch".to_owned(),
            Deed::KillChain => "kill-chain".to_owned(),
            Deed::KillPlugin => "kill-plugin".to_owned(),
            Deed::KillDelegate => "kill-delegate".to_owned(),
            Deed::KillDaemon => "kill-daemon".to_owned(),
            Deed::Pause { milliseconds } => format!("pause-{milliseconds}"),
            Deed::Fail { choice } => format!("fail-{choice}"),
            Deed::FailDaemon { choice } => format!("fail-daemon-{choice}"),
        };
        let point = match self.call {
            Some(call) => format!("{call}:{}", self.point),
            None => self.point.to_string(),
        };
        [deed, point]
    }

    /// Reads what [`Strike::words`] wrote.
    ///
    /// # Errors
    /// When it did not.
    pub fn parse(deed: &str, point: &str) -> Result<Self> {
        let (call, point) = match point.split_once(':') {
            Some((call, point)) => (Some(calls::known(call).context("a call")?), point),
            None => (None, point),
        };
        let point = point.parse().context("point")?;
        if let Some(choice) = deed.strip_prefix("fail-daemon-") {
            let deed = Deed::FailDaemon {
                choice: choice.parse()?,
            };
            return Ok(Self { deed, point, call });
        }
        if let Some(milliseconds) = deed.strip_prefix("pause-") {
            let milliseconds = milliseconds.parse().context("milliseconds")?;
            let deed = Deed::Pause { milliseconds };
            return Ok(Self { deed, point, call });
        }
        let deed = match (deed, deed.strip_prefix("fail-")) {
            ("watch", _) => Deed::Watch,
            ("kill-chain", _) => Deed::KillChain,
            ("kill-plugin", _) => Deed::KillPlugin,
            ("kill-delegate", _) => Deed::KillDelegate,
            ("kill-daemon", _) => Deed::KillDaemon,
            (_, Some(choice)) => Deed::Fail {
                choice: choice.parse()?,
            },
            (other, None) => bail!("unknown deed {other:?}"),
        };
        Ok(Self { deed, point, call })
    }
}

/// Where the fault was injected.
#[derive(Clone, Debug, Default)]
pub struct Struck {
    /// The program that was about to call.
    pub program: String,
    /// The call.
    pub call: String,
    /// The error that it got; 0 where it was killed.
    pub errno: i32,
}

/// The tracer's report.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Exit status of the plugin; 128 and the signal where one ended it.
    pub status: i32,
    /// Calls up to the strike, or all.
    pub counted: usize,
    /// `None` when the program ended before the point, or its call has no such error.
    pub struck: Option<Struck>,
    /// [`Deed::Watch`]: all calls in their order.
    pub calls: Vec<Call>,
}

/// A system call that was made.
#[derive(Clone, Debug)]
pub struct Call {
    /// The program that made it.
    pub program: String,
    /// Its name.
    pub name: String,
    /// Whether the plugin itself made it, or its delegate.
    pub by_delegate: bool,
}

impl Report {
    /// As JSON; [`Report::parse`] reads it.
    pub fn encode(&self) -> String {
        let struck = self.struck.as_ref();
        json!({
            "status": self.status,
            "counted": self.counted,
            "struck": struck.map(|it| json!({"program": it.program, "call": it.call, "errno": it.errno})),
            "calls": self.calls.iter().map(|it| json!([it.program, it.name, it.by_delegate])).collect::<Vec<_>>(),
        })
        .to_string()
    }

    /// Reads what [`Report::encode`] wrote.
    ///
    /// # Errors
    /// When it did not.
    pub fn parse(text: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(text).context("read the tracer's report")?;
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let struck = &value["struck"];
        Ok(Self {
            status: number(&value["status"]).try_into()?,
            counted: number(&value["counted"]).try_into()?,
            struck: struck.is_object().then(|| Struck {
                program: word(&struck["program"]),
                call: word(&struck["call"]),
                errno: number(&struck["errno"]) as i32,
            }),
            calls: value["calls"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|call| Call {
                    program: word(&call[0]),
                    name: word(&call[1]),
                    by_delegate: call[2] == true,
                })
                .collect(),
        })
    }
}
