//! A picture as SVG. All text is escaped; colours follow the reader's scheme, light or dark.

use std::fmt::Write;

use super::layout::path;
use super::scene::{LINE, Look, PADDING, Placed, Scene, TITLE, visible};

/// The colours of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Colours {
    /// Those that the reader prefers (prefers-color-scheme)
    Auto,
    /// Dark on light
    Light,
    /// Light on dark
    Dark,
}

/// Rules for texts, and the colours of a light picture.
const LIGHT: &str = include_str!("light.css");
/// The colours of a dark one.
const DARK: &str = include_str!("dark.css");

/// The style sheet.
pub fn style(colours: Colours) -> String {
    match colours {
        Colours::Light => LIGHT.to_owned(),
        Colours::Dark => format!("{LIGHT}{DARK}"),
        Colours::Auto => format!("{LIGHT}@media (prefers-color-scheme: dark) {{\n{DARK}}}\n"),
    }
}

/// A document of its own.
pub fn document(scene: &Scene, title: &str, colours: Colours) -> String {
    let style = style(colours);
    let (title, body) = (escaped(title), drawing(scene));
    let (width, height) = (scene.width, scene.height);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"graph\" role=\"img\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n<title>{title}</title>\n<style>\n{style}</style>\n\
         <rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>\n{body}</svg>\n"
    )
}

/// What is inside the document: lines, then boxes, but the frames before the lines.
pub fn drawing(scene: &Scene) -> String {
    let mut svg = String::new();
    let is_frame = |it: &&Placed| matches!(it.look, Look::Host | Look::Pod | Look::Group);
    for placed in scene.boxes.iter().filter(is_frame) {
        draw(&mut svg, placed);
    }
    for line in &scene.lines {
        let class = line.stroke.class();
        let ends = [line.from, line.to].map(|it| scene.boxes[it].label.node.as_deref());
        let [from, to] = ends.map(|it| escaped(it.unwrap_or_default()));
        let way = path(scene, line);
        let _ = writeln!(
            svg,
            "<path class=\"line {class}\" data-from=\"{from}\" data-to=\"{to}\" d=\"{way}\"/>"
        );
    }
    for placed in scene.boxes.iter().filter(|it| !is_frame(it)) {
        draw(&mut svg, placed);
    }
    svg
}

fn draw(svg: &mut String, placed: &Placed) {
    let (rect, label) = (&placed.rect, &placed.label);
    let (x, y, width, height) = (rect.x, rect.y, rect.width, rect.height);
    let class = placed.look.class();
    let node = label.node.as_ref();
    let node = node.map(|it| format!(" data-node=\"{}\"", escaped(it)));
    let node = node.unwrap_or_default();
    let _ = write!(
        svg,
        "<g class=\"box {class}\"{node}><rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"5\"/>"
    );
    let left = x + PADDING;
    let mut text = |class: &str, x: u32, y: u32, text: &str| {
        if !text.is_empty() {
            let text = escaped(text);
            let _ = write!(
                svg,
                "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{text}</text>"
            );
        }
    };
    let first = y + TITLE - 4;
    text("title", left, first, &label.title);
    text("aside", x + width - PADDING, first, &label.aside);
    for (number, line) in (1..).zip(&label.lines) {
        text("line", left, first + number * LINE, line);
    }
    svg.push_str("</g>\n");
}

/// Text for a document: without control characters, and with the letters that have a meaning in it
/// replaced.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in visible(text).chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            letter => escaped.push(letter),
        }
    }
    escaped
}
