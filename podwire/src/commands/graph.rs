//! `podwire graph`: draw what is attached to what.

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::Verdict;
use crate::graph::host::{self, Read};
use crate::graph::svg::{self, Colours};
use crate::graph::{Graph, View, dot, page, picture, selection, text, user};
use crate::options::SurveyDirs;
use crate::output::{Output, print};

/// Draw what is attached to what.
///
/// The view of the host has namespaces, interfaces and rules, as the kernel has them; that of the user
/// has pods, networks and published ports. With a NETWORK or POD, only what belongs to it.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Draw {
    /// Name of a network; name, container id (or its beginning) or namespace of a pod
    #[arg(value_name = "NETWORK|POD")]
    subject: Option<String>,
    /// What to show
    #[arg(long, value_enum, default_value_t = View::Host, hide_possible_values = true, value_name = "host|user")]
    view: View,
    /// The form: text, svg, dot (for Graphviz), json, or html: a page of its own
    #[arg(short, long, value_enum, default_value_t = Form::Text, hide_possible_values = true, value_name = "FORM")]
    output: Form,
    /// Colours of svg: auto (those that the reader prefers), light or dark
    #[arg(long, value_enum, default_value_t = Colours::Auto, hide_possible_values = true, value_name = "COLOURS")]
    colours: Colours,
    #[command(flatten)]
    dirs: SurveyDirs,
}

const OUTCOME: &str = "\
What cannot be read is reported on standard error and left out.

Exit status: 0 when drawn, 1 when the node cannot be read or there is no such
network or pod, 2 for a wrong command line.

Examples:
  podwire graph
  podwire graph --view user -o svg >networks.svg
  podwire graph mynet -o html >mynet.html
  podwire graph -o dot | dot -Tpdf >node.pdf
";

/// A form of output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Text,
    Svg,
    Dot,
    Json,
    Html,
}

impl Draw {
    pub fn run(&self, output: &Output) -> Result<Verdict> {
        let survey = self.dirs.survey()?;
        for unread in &survey.unread {
            cni::log(format_args!("podwire: {unread}"));
        }
        let read = Read::with(&survey, |error| {
            cni::log(format_args!("podwire: rules: {error:#}"));
        })?;
        let mut graph = match self.view {
            View::Host => host::graph(&read),
            View::User => user::graph(&read),
        };
        if let Some(subject) = &self.subject {
            graph = selection::select(graph, subject)?;
        }
        self.write(&graph, &read.name, output)?;
        Ok(Verdict::Good)
    }

    fn write(&self, graph: &Graph, node: &str, output: &Output) -> Result<()> {
        let title = match &self.subject {
            Some(subject) => format!("{subject} on {node}"),
            None => node.to_owned(),
        };
        match self.output {
            _ if output.is_json() => output.print_json(graph),
            Form::Json => output.print_json(graph),
            Form::Text => print(&text::text(graph)),
            Form::Dot => print(&dot::document(graph)),
            Form::Svg => print(&svg::document(
                &picture::picture(graph),
                &title,
                self.colours,
            )),
            Form::Html => print(&page::document(graph, &title)?),
        }
    }
}
