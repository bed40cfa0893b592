//! Places the boxes of a picture: in columns, from the pods on the left to the world on the right, and
//! in bands, one below the other, one for each bridge, network or parent with what is attached to it.
//! No two boxes share a column and a band without being stacked, so none overlap.
//!
//! A line goes straight from its box up to the gap before the column of the other box, and bends only
//! in that gap. Each pod has a height of its own, so nothing is in its way there.

use std::collections::HashMap;

use super::scene::{LINE, Label, Line, Look, PADDING, Placed, Rect, Scene, Stroke, TITLE};

/// Between columns; lines bend there.
const GAP: u32 = 64;
/// Between boxes that are stacked.
const SPACE: u32 = 10;
/// Between bands.
const BAND: u32 = 26;
/// Around the picture, and inside the frame of the node.
const MARGIN: u32 = 20;

/// A box that has no place yet.
#[derive(Clone, Debug)]
pub struct Item {
    /// How it looks.
    pub look: Look,
    /// Its text.
    pub label: Label,
}

/// A pod of its own.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its frame.
    pub pod: Label,
    /// Published ports, left of it.
    pub ports: Vec<Item>,
    /// Its interfaces, each with the other end of its veth pair.
    pub ends: Vec<(Item, Option<Item>)>,
}

/// Many pods in one frame.
#[derive(Clone, Debug)]
pub struct Group {
    /// The frame; lines of the pods begin there.
    pub frame: Label,
    /// The pods.
    pub pods: Vec<Item>,
}

/// What is in the first columns of a band.
#[derive(Clone, Debug)]
pub enum Member {
    /// A pod of its own.
    Row(Row),
    /// Many pods.
    Group(Group),
}

/// A band of the picture.
#[derive(Clone, Debug, Default)]
pub struct Band {
    /// The pods.
    pub members: Vec<Member>,
    /// Ends of veth pairs on the node that are no pod's.
    pub ends: Vec<Item>,
    /// What they are attached to.
    pub anchors: Vec<Item>,
    /// What else is attached to that: VXLAN devices, uplinks.
    pub others: Vec<Item>,
    /// Other nodes.
    pub peers: Vec<Item>,
}

/// A line between two objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    /// The ids of the objects.
    pub ends: [String; 2],
    /// How the line looks.
    pub stroke: Stroke,
}

/// A picture without places.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The frame around the columns of the node; without one, they have none.
    pub host: Option<Label>,
    /// The bands.
    pub bands: Vec<Band>,
    /// The last column of the node: what is attached to nothing.
    pub links: Vec<Item>,
    /// The lines.
    pub lines: Vec<Joined>,
    /// The key of the lines.
    pub legend: String,
}

/// The columns, from the left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Column {
    Ports,
    Pods,
    Ends,
    Anchors,
    Others,
    Links,
    Peers,
}

const COLUMNS: [Column; 7] = [
    Column::Ports,
    Column::Pods,
    Column::Ends,
    Column::Anchors,
    Column::Others,
    Column::Links,
    Column::Peers,
];
/// Those in the frame of the node.
const OF_HOST: [Column; 4] = [Column::Ends, Column::Anchors, Column::Others, Column::Links];

impl Plan {
    /// Gives every box its place.
    pub fn place(self) -> Scene {
        let columns = Columns::of(&self);
        let mut canvas = Canvas::default();
        let top = MARGIN
            + if self.host.is_some() {
                TITLE + SPACE
            } else {
                0
            };
        let links_end = canvas.stack(&columns, Column::Links, self.links, top);
        let mut y = top;
        for band in self.bands {
            // Lines to peers pass the last column of the node: below the boxes in it.
            if !band.peers.is_empty() {
                y = y.max(links_end + BAND);
            }
            y = canvas.band(&columns, band, y) + BAND;
        }
        let bottom = canvas.bottom().max(top + LINE);
        if let Some(host) = self.host {
            canvas.frame(&columns, host, bottom);
        }
        canvas.legend(self.legend, bottom + MARGIN);
        canvas.scene(&self.lines)
    }
}

/// Where columns begin, and how wide they are.
struct Columns {
    places: HashMap<Column, (u32, u32)>,
    /// The width of a pod of its own.
    rows: u32,
}

impl Columns {
    fn of(plan: &Plan) -> Self {
        let mut widths = HashMap::<Column, u32>::new();
        let mut rows = 0;
        let mut widen = |column, width: u32| {
            let known = widths.entry(column).or_default();
            *known = width.max(*known);
        };
        for item in &plan.links {
            widen(Column::Links, item.label.width());
        }
        for band in &plan.bands {
            for member in &band.members {
                match member {
                    Member::Row(row) => {
                        let ends = row.ends.iter().map(|(end, _)| end.label.width());
                        let widest = ends.max().unwrap_or_default() + 2 * PADDING;
                        rows = rows.max(widest).max(row.pod.width());
                        widen(Column::Pods, rows);
                        for port in &row.ports {
                            widen(Column::Ports, port.label.width());
                        }
                        for end in row.ends.iter().filter_map(|(_, end)| end.as_ref()) {
                            widen(Column::Ends, end.label.width());
                        }
                    }
                    Member::Group(group) => {
                        let (columns, width, _) = grid(group);
                        let inside = columns * (width + SPACE) - SPACE + 2 * PADDING;
                        widen(Column::Pods, inside.max(group.frame.width()));
                    }
                }
            }
            for (column, items) in [
                (Column::Ends, &band.ends),
                (Column::Anchors, &band.anchors),
                (Column::Others, &band.others),
                (Column::Peers, &band.peers),
            ] {
                for item in items {
                    widen(column, item.label.width());
                }
            }
        }
        // Beside a frame of many pods there is room for the ports, left of pods of their own.
        let ports = widths.get(&Column::Ports).copied().unwrap_or_default();
        let room = widths.get(&Column::Pods).copied().unwrap_or_default() - rows;
        let has_room = ports > 0 && room >= ports + GAP;
        if has_room {
            widths.remove(&Column::Ports);
        }
        let mut x = MARGIN;
        let mut places = HashMap::new();
        let framed = |column| plan.host.is_some() && OF_HOST.contains(&column);
        let mut was_framed = false;
        for column in COLUMNS {
            let Some(width) = widths.get(&column) else {
                continue;
            };
            if framed(column) != was_framed {
                // Into the frame, or out of it.
                x += MARGIN;
                was_framed = framed(column);
            }
            places.insert(column, (x, *width));
            x += width + GAP;
        }
        if has_room && let Some((pods, _)) = places.get(&Column::Pods) {
            places.insert(Column::Ports, (pods + room - GAP - ports, ports));
        }
        Self { places, rows }
    }

    fn at(&self, column: Column) -> (u32, u32) {
        self.places.get(&column).copied().unwrap_or((MARGIN, 0))
    }
}

/// How many columns a group has, and the size of each pod in it.
fn grid(group: &Group) -> (u32, u32, u32) {
    let count = group.pods.len() as u32;
    // Wider than high, as a screen is.
    let columns = (count * 2 / 5).isqrt().clamp(2, 16);
    let labels = || group.pods.iter().map(|it| &it.label);
    let width = labels().map(Label::width).max().unwrap_or_default();
    let height = labels().map(Label::height).max().unwrap_or_default();
    (columns, width, height)
}

fn height(items: &[Item]) -> u32 {
    let heights = items.iter().map(|it| it.label.height() + SPACE);
    heights.sum::<u32>().saturating_sub(SPACE)
}

fn member_height(member: &Member) -> u32 {
    match member {
        Member::Row(row) => {
            let ends = row.ends.iter().map(|it| end_height(it) + SPACE);
            let ends = ends.sum::<u32>().max(SPACE) - SPACE;
            (row.pod.height() + ends + PADDING).max(height(&row.ports))
        }
        Member::Group(group) => {
            let (columns, _, height) = grid(group);
            let rows = (group.pods.len() as u32).div_ceil(columns);
            group.frame.height() + rows * (height + SPACE) - SPACE + PADDING
        }
    }
}

fn end_height((end, other): &(Item, Option<Item>)) -> u32 {
    let other = other.as_ref().map(|it| it.label.height());
    end.label.height().max(other.unwrap_or_default())
}

/// The boxes that have their place.
#[derive(Default)]
struct Canvas {
    boxes: Vec<Placed>,
    by_node: HashMap<String, usize>,
}

impl Canvas {
    fn put(&mut self, look: Look, label: Label, rect: Rect) {
        if let Some(node) = &label.node {
            self.by_node.insert(node.clone(), self.boxes.len());
        }
        let label = label.cut_to(rect.width);
        self.boxes.push(Placed { rect, look, label });
    }

    /// Stacks boxes from `y` on, and returns where they end.
    fn stack(&mut self, columns: &Columns, column: Column, items: Vec<Item>, mut y: u32) -> u32 {
        let (x, width) = columns.at(column);
        for item in items {
            let height = item.label.height();
            let rect = Rect {
                x,
                y,
                width,
                height,
            };
            self.put(item.look, item.label, rect);
            y += height + SPACE;
        }
        y
    }

    /// Places a band from `top` on, and returns where it ends.
    fn band(&mut self, columns: &Columns, band: Band, top: u32) -> u32 {
        let members = band.members.iter().map(|it| member_height(it) + SPACE);
        let ends = height(&band.ends);
        let left = members.sum::<u32>() + ends;
        let stacks = [
            (Column::Anchors, band.anchors),
            (Column::Others, band.others),
            (Column::Peers, band.peers),
        ];
        let highest = stacks.iter().map(|(_, it)| height(it));
        let whole = highest.chain([left]).max().unwrap_or_default();
        let mut y = top + (whole - left) / 2;
        for member in band.members {
            let height = member_height(&member);
            match member {
                Member::Row(row) => self.row(columns, row, Span { y, height }),
                Member::Group(group) => self.group(columns, group, Span { y, height }),
            }
            y += height + SPACE;
        }
        self.stack(columns, Column::Ends, band.ends, y);
        for (column, items) in stacks {
            let y = top + (whole - height(&items)) / 2;
            self.stack(columns, column, items, y);
        }
        top + whole
    }

    fn row(&mut self, columns: &Columns, row: Row, span: Span) {
        let (x, whole) = columns.at(Column::Pods);
        // A frame of many pods may be much wider: then on the right, near to what it leads to.
        let width = columns.rows;
        let x = x + whole - width;
        let inside = x + PADDING;
        let mut y = span.y + row.pod.height();
        let rect = Rect {
            x,
            y: span.y,
            width,
            height: span.height,
        };
        let ports_top = span.y + (span.height - height(&row.ports)) / 2;
        self.stack(columns, Column::Ports, row.ports, ports_top);
        self.put(Look::Pod, row.pod, rect);
        let (end_x, end_width) = columns.at(Column::Ends);
        for pair in row.ends {
            let height = end_height(&pair);
            let (end, other) = pair;
            let rect = |x, width| Rect {
                x,
                y,
                width,
                height,
            };
            self.put(end.look, end.label, rect(inside, width - 2 * PADDING));
            if let Some(other) = other {
                self.put(other.look, other.label, rect(end_x, end_width));
            }
            y += height + SPACE;
        }
    }

    fn group(&mut self, columns: &Columns, group: Group, span: Span) {
        let (x, width) = columns.at(Column::Pods);
        let (count, _, height) = grid(&group);
        let y = span.y + group.frame.height();
        let rect = Rect {
            x,
            y: span.y,
            width,
            height: span.height,
        };
        self.put(Look::Group, group.frame, rect);
        let pod_width = (width - 2 * PADDING + SPACE) / count - SPACE;
        for (number, pod) in (0..).zip(group.pods) {
            let rect = Rect {
                x: x + PADDING + number % count * (pod_width + SPACE),
                y: y + number / count * (height + SPACE),
                width: pod_width,
                height,
            };
            self.put(pod.look, pod.label, rect);
        }
    }

    /// The frame of the node, behind its boxes.
    fn frame(&mut self, columns: &Columns, host: Label, bottom: u32) {
        let places = OF_HOST.iter().filter_map(|it| columns.places.get(it));
        let places: Vec<_> = places.collect();
        let x = places.iter().map(|it| it.0).min().unwrap_or(2 * MARGIN);
        let right = places.iter().map(|it| it.0 + it.1).max();
        let right = right.unwrap_or(x).max(x + host.width());
        let rect = Rect {
            x: x - MARGIN,
            y: MARGIN,
            width: right - x + 2 * MARGIN,
            height: bottom,
        };
        let label = host.cut_to(rect.width);
        let look = Look::Host;
        self.boxes.insert(0, Placed { rect, look, label });
        for place in self.by_node.values_mut() {
            *place += 1;
        }
    }

    fn legend(&mut self, text: String, y: u32) {
        let label = Label {
            title: text,
            ..Label::default()
        };
        let rect = Rect {
            x: MARGIN,
            y: y + MARGIN,
            // Longer than the widest box.
            width: super::scene::cells(&label.title) * 8 + 2 * PADDING,
            height: label.height(),
        };
        if !label.title.is_empty() {
            self.put(Look::Legend, label, rect);
        }
    }

    fn bottom(&self) -> u32 {
        let bottoms = self.boxes.iter().map(|it| it.rect.bottom());
        bottoms.max().unwrap_or_default()
    }

    fn scene(self, joined: &[Joined]) -> Scene {
        let mut lines = Vec::new();
        for Joined { ends, stroke } in joined {
            let place = |node: &String| self.by_node.get(node).copied();
            if let [Some(from), Some(to)] = [place(&ends[0]), place(&ends[1])] {
                lines.push(Line {
                    from,
                    to,
                    stroke: *stroke,
                });
            }
        }
        lines.sort();
        lines.dedup();
        let right = self.boxes.iter().map(|it| it.rect.right());
        Scene {
            width: right.max().unwrap_or_default() + MARGIN,
            height: self.bottom() + MARGIN,
            boxes: self.boxes,
            lines,
        }
    }
}

/// A part of a column.
#[derive(Clone, Copy)]
struct Span {
    y: u32,
    height: u32,
}

/// The way of a line, as the `d` of an SVG path.
pub fn path(scene: &Scene, line: &Line) -> String {
    let (mut a, mut b) = (scene.boxes[line.from].rect, scene.boxes[line.to].rect);
    if a.x > b.x {
        (a, b) = (b, a);
    }
    let (from, to) = (a.middle(), b.middle());
    if a.right() >= b.x {
        // In one column: around the side.
        let (right, out) = (a.right(), a.right() + GAP / 2);
        let other = b.right();
        return format!("M{right} {from}C{out} {from} {out} {to} {other} {to}");
    }
    let bend = b.x - GAP.min(b.x - a.right());
    let middle = (bend + b.x) / 2;
    format!(
        "M{} {from}H{bend}C{middle} {from} {middle} {to} {} {to}",
        a.right(),
        b.x
    )
}
