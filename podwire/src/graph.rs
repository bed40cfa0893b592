//! `podwire graph`: what is attached to what.
//!
//! A graph is made of what `crates/survey` has read of the node ([`host`], [`user`]): a pure function,
//! and the JSON is the graph itself. Pictures are made in two steps: [`picture`] decides which boxes
//! there are and in which band of the picture, [`layout`] where they are.
//!
//! The layout is our own, of 400 lines. A graph of a node has one form: pods, their ends on the node,
//! bridges, what is behind them. With a column for each, nothing overlaps by construction, and a
//! picture changes little when a pod comes. The crates for general graphs do not know namespaces as
//! boxes around boxes (layout-rs), or execute Graphviz.

pub mod dot;
pub mod host;
pub mod layout;
pub mod model;
pub mod page;
pub mod picture;
pub mod rules;
pub mod scene;
pub mod selection;
pub mod svg;
pub mod text;
pub mod user;

pub use model::{Graph, View};
