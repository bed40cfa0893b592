//! What happens to the packet, step by step.

use std::fmt::Write;

use serde::Serialize;

use crate::graph::scene::visible;

/// The way of a packet.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traced {
    /// Where it begins: the name of the pod.
    pub from: String,
    /// The source address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The destination, with its port.
    pub destination: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: &'static str,
    /// What happens to it.
    pub hops: Vec<Hop>,
    /// The hop where it is dropped, in words; absent where none drops it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<String>,
    /// What came back.
    pub answer: String,
    /// Whether it arrived, as far as can be seen from here.
    pub arrived: bool,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hop {
    /// Where: the name of the pod, or of the node.
    pub at: String,
    /// What decides: `route`, `neighbour`, `link`, `bridge`, `rule`, `translation`.
    pub step: &'static str,
    /// What it decides.
    pub text: String,
    /// What that means for the packet.
    pub passage: Passage,
}

/// What a step means for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Passage {
    /// It goes on.
    On,
    /// It does not.
    Dropped,
}

impl Hop {
    /// A step after which the packet goes on.
    pub fn on(at: &str, step: &'static str, text: impl Into<String>) -> Self {
        Self {
            at: at.to_owned(),
            step,
            text: text.into(),
            passage: Passage::On,
        }
    }

    /// A step that the packet does not get over.
    pub fn dropped(at: &str, step: &'static str, text: impl Into<String>) -> Self {
        Self {
            passage: Passage::Dropped,
            ..Self::on(at, step, text)
        }
    }
}

impl Traced {
    /// For people: a line for each step.
    pub fn text(&self) -> String {
        let from = match &self.source {
            Some(source) => format!("{} ({source})", visible(&self.from)),
            None => visible(&self.from),
        };
        let mut text = format!("{from} → {}, {}\n", self.destination, self.protocol);
        let widest = |part: fn(&Hop) -> &str| {
            let widths = self.hops.iter().map(|it| visible(part(it)).chars().count());
            widths.max().unwrap_or_default()
        };
        let (at, step) = (widest(|it| &it.at), widest(|it| it.step));
        for hop in &self.hops {
            let mark = match hop.passage {
                Passage::On => " ",
                Passage::Dropped => "✗",
            };
            let place = visible(&hop.at);
            let what = visible(&hop.text);
            let _ = writeln!(text, "{mark} {place:at$}  {:step$}  {what}", hop.step);
        }
        if let Some(dropped) = &self.dropped {
            let _ = writeln!(text, "dropped: {}", visible(dropped));
        }
        let _ = writeln!(text, "answer: {}", self.answer);
        text
    }
}
