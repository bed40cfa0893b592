//! Markdown, as the pages of this project use it, in the language of manual pages (man(7)). A row of a table becomes
//! a paragraph with a tag: the first cell.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use roff::{Inline, Roff, bold, italic, roman};

/// Appends `text` to `page`, below a heading. Returns where its links lead.
pub fn append(page: &mut Roff, text: &str) -> Vec<String> {
    let mut writer = Writer {
        page,
        line: Vec::new(),
        below_heading: true,
        strong: false,
        emphasis: false,
        image: false,
        code: false,
        cells: Vec::new(),
        columns: Vec::new(),
        lists: Vec::new(),
        item: Item::None,
        links: Vec::new(),
    };
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        writer.event(event);
    }
    writer.links
}

struct Writer<'a> {
    page: &'a mut Roff,
    /// What is written since the last paragraph, item or cell.
    line: Vec<Inline>,
    /// A heading begins the paragraph that follows it.
    below_heading: bool,
    strong: bool,
    emphasis: bool,
    image: bool,
    code: bool,
    /// Of the row.
    cells: Vec<Vec<Inline>>,
    /// The table's headings.
    columns: Vec<String>,
    /// The number of the next item; `None` without numbers. The innermost list is the last.
    lists: Vec<Option<u64>>,
    item: Item,
    links: Vec<String>,
}

/// Where in a list the writer is.
#[derive(PartialEq)]
enum Item {
    /// Not in a list.
    None,
    /// In an item of which nothing is written yet.
    Begins,
    /// In an item.
    Continues,
}

impl Writer<'_> {
    fn event(&mut self, event: Event) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) if self.code => self.example(&text),
            Event::Text(text) => self.text(text.into_string()),
            Event::Code(text) => self.line.push(bold(text.into_string())),
            Event::SoftBreak => self.text(" ".to_owned()),
            Event::HardBreak => self.line.push(roff::line_break()),
            // No page has others; what HTML there is has no words.
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag) {
        match tag {
            Tag::Strong => self.strong = true,
            Tag::Emphasis => self.emphasis = true,
            Tag::Image { .. } => self.image = true,
            Tag::Link { dest_url, .. } => self.links.push(dest_url.into_string()),
            Tag::List(number) => self.start_list(number),
            Tag::Item => self.item = Item::Begins,
            Tag::CodeBlock(_) => {
                self.code = true;
                self.paragraph();
                self.below_heading = false;
                self.page.control("EX", []);
            }
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Strong => self.strong = false,
            TagEnd::Emphasis => self.emphasis = false,
            TagEnd::Image => self.image = false,
            TagEnd::Heading(level) => self.heading(level),
            TagEnd::Paragraph => self.paragraph(),
            TagEnd::Item => {
                self.paragraph();
                self.item = Item::Continues;
            }
            TagEnd::List(_) => self.end_list(),
            TagEnd::CodeBlock => {
                self.code = false;
                self.page.control("EE", []);
            }
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.line);
                self.cells.push(cell);
            }
            TagEnd::TableHead => {
                let cells = std::mem::take(&mut self.cells);
                self.columns = cells.iter().map(|it| words(it)).collect();
            }
            TagEnd::TableRow => self.row(),
            _ => {}
        }
    }

    fn text(&mut self, text: String) {
        match (self.image, self.strong, self.emphasis) {
            (true, ..) => {}
            (_, true, _) => self.line.push(bold(text)),
            (_, _, true) => self.line.push(italic(text)),
            _ => self.line.push(roman(text)),
        }
    }

    fn heading(&mut self, level: HeadingLevel) {
        let line = std::mem::take(&mut self.line);
        let words = words(&line);
        match level {
            HeadingLevel::H1 | HeadingLevel::H2 => section(self.page, &words),
            _ => drop(self.page.control("SS", [argument(&words).as_str()])),
        }
        self.below_heading = true;
    }

    /// Ends a paragraph, if anything was written.
    fn paragraph(&mut self) {
        if self.line.is_empty() {
            return;
        }
        match self.item {
            Item::None if self.below_heading => {}
            Item::None => drop(self.page.control("PP", [])),
            Item::Begins => drop(self.mark()),
            Item::Continues => drop(self.page.control("IP", [])),
        }
        self.below_heading = false;
        if self.item == Item::Begins {
            self.item = Item::Continues;
        }
        let line = std::mem::take(&mut self.line);
        self.page.text(line);
    }

    fn mark(&mut self) -> &mut Roff {
        let mark = match self.lists.last_mut() {
            Some(Some(number)) => {
                *number += 1;
                format!("{}.", *number - 1)
            }
            _ => r"\(bu".to_owned(),
        };
        self.page.control("IP", [mark.as_str(), "4"])
    }

    fn start_list(&mut self, number: Option<u64>) {
        // The words before a list that is inside an item.
        self.paragraph();
        if !self.lists.is_empty() {
            self.page.control("RS", ["4"]);
        }
        self.lists.push(number);
    }

    fn end_list(&mut self) {
        self.lists.pop();
        if self.lists.is_empty() {
            self.item = Item::None;
        } else {
            self.page.control("RE", []);
        }
    }

    fn example(&mut self, text: &str) {
        for line in text.trim_end().lines() {
            self.page.text([roman(line)]);
        }
    }

    /// The first cell, then what the others say under their headings; the last needs none.
    fn row(&mut self) {
        self.below_heading = false;
        let mut cells = std::mem::take(&mut self.cells).into_iter();
        self.page.control("TP", []);
        let tag = cells.next().unwrap_or_default();
        self.page.text(or_dash(tag));
        let mut line = Vec::new();
        let last = self.columns.len().saturating_sub(1);
        for (column, cell) in self.columns.iter().zip(1..).skip(1).zip(cells) {
            let ((name, number), cell) = (column, cell);
            if cell.is_empty() {
                continue;
            }
            if number <= last && !name.is_empty() {
                line.push(italic(name.clone()));
                line.push(roman(": "));
                line.extend(cell);
                line.push(roff::line_break());
            } else {
                line.extend(cell);
            }
        }
        while line.last() == Some(&roff::line_break()) {
            line.pop();
        }
        self.page.text(or_dash(line));
    }
}

/// Nothing is no paragraph of man(7).
fn or_dash(line: Vec<Inline>) -> Vec<Inline> {
    if line.is_empty() {
        return vec![roman("-")];
    }
    line
}

/// The beginning of a section.
pub fn section(page: &mut Roff, title: &str) {
    page.control("SH", [argument(&title.to_uppercase()).as_str()]);
}

/// A word or several as an argument of a macro: quotes would end it.
fn argument(words: &str) -> String {
    words.replace('\\', r"\e").replace('"', r"\(dq")
}

/// Without fonts.
fn words(line: &[Inline]) -> String {
    let text = |it: &Inline| match it {
        Inline::Roman(text) | Inline::Italic(text) | Inline::Bold(text) => text.clone(),
        Inline::LineBreak => " ".to_owned(),
    };
    line.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered(text: &str) -> String {
        let mut page = Roff::new();
        append(&mut page, text);
        page.to_roff()
    }

    #[test]
    fn headings_paragraphs_and_fonts() {
        assert_eq!(
            rendered("## Keys of `a`\n\nOne **two**\nand `.x`.\n"),
            ".SH \"KEYS OF A\"\nOne \\fBtwo\\fR and \\fB.x\\fR.\n"
        );
    }

    #[test]
    fn a_row_is_a_tag_and_what_the_columns_say() {
        let table =
            "| key | type | default | meaning |\n|---|---|---|---|\n| `mtu` | number | | bytes |\n";
        assert_eq!(
            rendered(table),
            ".TP\n\\fBmtu\\fR\n\\fItype\\fR: number\n.br\nbytes\n"
        );
    }

    #[test]
    fn lists_have_marks_and_their_second_paragraphs_none() {
        assert_eq!(
            rendered("1. a\n\n   b\n2. c\n\nd\n"),
            ".IP 1. 4\na\n.IP\nb\n.IP 2. 4\nc\n.PP\nd\n"
        );
        assert_eq!(
            rendered("- a\n  - b\n- c\n"),
            ".IP \\(bu 4\na\n.RS 4\n.IP \\(bu 4\nb\n.RE\n.IP \\(bu 4\nc\n"
        );
    }

    #[test]
    fn examples_keep_their_lines() {
        assert_eq!(
            rendered("```json\n{\n    \"a\": 1\n}\n```\n"),
            ".EX\n{\n    \"a\": 1\n}\n.EE\n"
        );
    }

    #[test]
    fn links_are_words_and_are_returned() {
        let mut page = Roff::new();
        let links = append(&mut page, "[words](../a.md#b) ![picture](c.png)\n");
        assert_eq!(page.to_roff(), "words \n");
        assert_eq!(links, ["../a.md#b"]);
    }
}
