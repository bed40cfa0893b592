//! What a picture has: boxes with text in them, and lines between boxes. All measures are pixels.

/// How a box looks: the class of its rectangle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Look {
    /// A frame around other boxes: the node.
    Host,
    /// A frame: a pod.
    Pod,
    /// A frame: many pods of the same networks.
    Group,
    /// An interface.
    Interface,
    /// A bridge, or a network.
    Bridge,
    /// A VXLAN device.
    Tunnel,
    /// Another node, or the world outside.
    Outside,
    /// A published port.
    Port,
    /// The key of the lines.
    Legend,
}

impl Look {
    /// The word for style sheets.
    pub fn class(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Pod => "pod",
            Self::Group => "group",
            Self::Interface => "interface",
            Self::Bridge => "bridge",
            Self::Tunnel => "tunnel",
            Self::Outside => "outside",
            Self::Port => "port",
            Self::Legend => "legend",
        }
    }
}

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stroke {
    /// A wire: a veth pair, a port of a bridge.
    Wire,
    /// On top of another interface.
    Parent,
    /// Through a tunnel.
    Tunnel,
    /// A published port.
    Port,
}

impl Stroke {
    /// The word for style sheets.
    pub fn class(self) -> &'static str {
        match self {
            Self::Wire => "wire",
            Self::Parent => "parent",
            Self::Tunnel => "tunnel",
            Self::Port => "port",
        }
    }
}

/// A text in a box.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// The id of the object that it shows, if it shows one.
    pub node: Option<String>,
    /// The first line.
    pub title: String,
    /// What is beside it: the kind of an interface.
    pub aside: String,
    /// The other lines.
    pub lines: Vec<String>,
}

/// A rectangle with its upper left corner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words say it")]
pub struct Rect {
    pub x: u32,
    pub y: u32,
    pub width: u32,
    pub height: u32,
}

impl Rect {
    /// The x of the right edge.
    pub fn right(&self) -> u32 {
        self.x + self.width
    }

    /// The y of the lower edge.
    pub fn bottom(&self) -> u32 {
        self.y + self.height
    }

    /// The y of the middle.
    pub fn middle(&self) -> u32 {
        self.y + self.height / 2
    }
}

/// A box at its place.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Where.
    pub rect: Rect,
    /// How it looks.
    pub look: Look,
    /// Its text.
    pub label: Label,
}

/// A line between two boxes, by their places in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the words say it")]
pub struct Line {
    pub from: usize,
    pub to: usize,
    pub stroke: Stroke,
}

/// A picture. Frames come before the boxes inside them.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// The boxes.
    pub boxes: Vec<Placed>,
    /// The lines.
    pub lines: Vec<Line>,
    /// The whole picture.
    pub width: u32,
    /// The whole picture.
    pub height: u32,
}

/// Space between the edge of a box and its text.
pub const PADDING: u32 = 8;
/// The height of a first line, and where its letters stand.
pub const TITLE: u32 = 20;
/// The height of a further line.
pub const LINE: u32 = 16;
/// Boxes are not narrower, not even with less text.
const NARROWEST: u32 = 130;
/// Boxes are not wider: longer text is cut. An IPv6 address with its prefix fits.
const WIDEST: u32 = 330;

impl Label {
    /// The width that all of the text needs.
    pub fn width(&self) -> u32 {
        let aside = match self.aside.as_str() {
            "" => 0,
            aside => small(aside) + 2 * PADDING,
        };
        let title = cells(&self.title) * 15 / 2 + 1 + aside;
        let lines = self.lines.iter().map(|it| small(it));
        let widest = lines.chain([title]).max().unwrap_or_default();
        (widest + 2 * PADDING).clamp(NARROWEST, WIDEST)
    }

    /// The height that all lines need.
    pub fn height(&self) -> u32 {
        TITLE + LINE * self.lines.len() as u32 + PADDING
    }

    /// The same, with what does not fit into `width` cut off.
    pub fn cut_to(self, width: u32) -> Self {
        let inside = width.saturating_sub(2 * PADDING);
        let aside = fit(&self.aside, inside / 2 / 7);
        let beside = match aside.as_str() {
            "" => 0,
            aside => small(aside) + PADDING,
        };
        Self {
            title: fit(&self.title, inside.saturating_sub(beside) * 2 / 15),
            lines: self.lines.iter().map(|it| fit(it, inside / 7)).collect(),
            aside,
            node: self.node,
        }
    }
}

/// The width of a further line. The letters of all monospaced fonts are at most 0.61 of their size
/// wide: 6.8 pixels of 11, 7.4 of 12.
fn small(text: &str) -> u32 {
    cells(text) * 7
}

/// How many columns of a terminal a text takes: two for a letter that may be wide.
pub fn cells(text: &str) -> u32 {
    text.chars().map(|it| if narrow(it) { 1 } else { 2 }).sum()
}

fn narrow(letter: char) -> bool {
    letter.is_ascii() || "…→·–—│├└─".contains(letter)
}

/// A text of at most `most` columns.
fn fit(text: &str, most: u32) -> String {
    if cells(text) <= most {
        return text.to_owned();
    }
    let (mut short, mut width) = (String::new(), 1);
    for letter in text.chars() {
        width += if narrow(letter) { 1 } else { 2 };
        if width > most {
            break;
        }
        short.push(letter);
    }
    short.push('…');
    short
}

/// A name as it may be shown. A pod chooses names, and could write to the terminal of the reader with
/// control characters, or turn the order of letters around.
pub fn visible(text: &str) -> String {
    let hidden = |it: char| {
        it.is_control()
            || matches!(it, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
    };
    text.chars()
        .map(|it| if hidden(it) { '\u{fffd}' } else { it })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_to_the_box_and_names_cannot_hide_anything() {
        assert_eq!(fit("abcdef", 6), "abcdef");
        assert_eq!(fit("abcdef", 4), "abc…");
        assert_eq!(fit("日本語", 5), "日本…");
        assert_eq!(visible("a\x1b[2Jb\u{202e}c"), "a\u{fffd}[2Jb\u{fffd}c");
    }

    #[test]
    fn a_label_fits_its_own_width() {
        let label = Label {
            title: "veth1a2b3c4d".into(),
            aside: "veth".into(),
            lines: vec!["2001:db8:1111:2222:3333:4444:5555:6666/64".into()],
            node: None,
        };
        let width = label.width();
        assert!(width < WIDEST);
        assert_eq!(label.clone().cut_to(width), label);
        assert_ne!(label.clone().cut_to(100), label);
    }
}
