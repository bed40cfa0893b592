//! Changes of the rule set as data. Tests compare them as nft's text. The kernel gets them in one
//! batch, and makes all of them or none.

use std::borrow::Cow;
use std::fmt;

use nix::libc;
use transport::Error;

use crate::expression::{Statement, compile, list};
use crate::family::Family;
use crate::listing::Listed;
use crate::nfta::*;
use crate::set::{Element, Set};
use crate::socket::{Refused, Socket, request};
use crate::userdata::comment_data;
use crate::{Attributes, Request};

/// A table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
    /// A comment for readers; empty for none. Kernels before 5.10 do not keep it.
    pub comment: &'static str,
    /// Whether the kernel deletes it with the socket that made it. No other program can change it.
    pub owned: bool,
}

impl Table {
    /// A table without a comment.
    pub const fn new(family: Family, name: &'static str) -> Self {
        Self::commented(family, name, "")
    }

    /// A table with a comment.
    pub const fn commented(family: Family, name: &'static str, comment: &'static str) -> Self {
        Self {
            family,
            name,
            comment,
            owned: false,
        }
    }

    /// The same table, which the kernel deletes when the socket that made it is closed, so also
    /// when its process is killed. Kernels before 5.12 refuse it (`EOPNOTSUPP`).
    pub const fn owned(self) -> Self {
        Self {
            owned: true,
            ..self
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}

/// Where packets enter a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hook {
    kind: &'static str,
    point: Point,
    priority: i32,
}

/// The points on a packet's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum Point {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl Point {
    /// `NF_INET_*` (the numbers of bridges, `NF_BR_*`, are the same), and nft's name.
    fn hook(self) -> (i32, &'static str) {
        match self {
            Self::Prerouting => (libc::NF_INET_PRE_ROUTING, "prerouting"),
            Self::Input => (libc::NF_INET_LOCAL_IN, "input"),
            Self::Forward => (libc::NF_INET_FORWARD, "forward"),
            Self::Output => (libc::NF_INET_LOCAL_OUT, "output"),
            Self::Postrouting => (libc::NF_INET_POST_ROUTING, "postrouting"),
        }
    }
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: Cow<'static, str>,
    /// `None` for a chain that only other chains lead to.
    hook: Option<Hook>,
    /// A comment for readers; empty for none.
    comment: &'static str,
}

impl Chain {
    /// A chain that other chains lead to.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            hook: None,
            comment: "",
        }
    }

    /// A chain of `kind` (`nat`, `filter`) that packets enter at `point`; a chain with a lower
    /// `priority` comes first.
    pub fn hooked(
        name: impl Into<Cow<'static, str>>,
        kind: &'static str,
        point: Point,
        priority: i32,
    ) -> Self {
        Self {
            hook: Some(Hook {
                kind,
                point,
                priority,
            }),
            ..Self::new(name)
        }
    }

    /// The same chain with a comment.
    pub fn comment(self, comment: &'static str) -> Self {
        Self { comment, ..self }
    }

    /// The text after the chain's name in nft's syntax.
    fn definition(&self) -> String {
        let mut parts = String::new();
        if let Some(hook) = self.hook {
            let (kind, (_, point), priority) = (hook.kind, hook.point.hook(), hook.priority);
            parts += &format!(" type {kind} hook {point} priority {priority} ; policy accept ;");
        }
        if !self.comment.is_empty() {
            parts += &format!(" comment \"{}\" ;", self.comment);
        }
        if parts.is_empty() {
            parts
        } else {
            format!(" {{{parts} }}")
        }
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, then the action.
    pub statements: Vec<Statement>,
    /// The purpose of the rule, or its owner.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(statements: impl Into<Vec<Statement>>) -> Self {
        Self {
            statements: statements.into(),
            comment: None,
        }
    }

    /// The same rule with a comment.
    pub fn comment(self, comment: impl Into<String>) -> Self {
        Self {
            comment: Some(comment.into()),
            ..self
        }
    }

    /// The rule as nft prints it in a table of `family`.
    pub fn text(&self, family: Family) -> String {
        let mut words: Vec<_> = self.statements.iter().map(|it| it.text(family)).collect();
        if let Some(comment) = &self.comment {
            words.push(format!("comment \"{comment}\""));
        }
        words.join(" ")
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    verb: Verb,
    table: Table,
    object: Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    /// Does nothing if the object exists. Adds a rule after the other rules of its chain.
    Add,
    /// Adds a rule before the other rules of its chain.
    Insert,
    /// Fails if the object exists.
    Create,
    Delete,
    Flush,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Object {
    Table,
    Chain(Chain),
    Set(Set),
    Rule(Cow<'static, str>, Rule),
    /// A rule, by the kernel's number.
    Handle(String, u64),
    Element(Element),
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Insert => "insert",
            Self::Create => "create",
            Self::Delete => "delete",
            Self::Flush => "flush",
        }
    }

    fn deletes(self) -> bool {
        matches!(self, Self::Delete | Self::Flush)
    }
}

impl Change {
    /// The change in the text of an error: `add rule to chain inet t c`.
    pub fn describe(&self) -> String {
        let table = self.table;
        match &self.object {
            Object::Rule(chain, _) => format!("add rule to chain {table} {chain}"),
            Object::Handle(chain, _) => format!("delete rule of chain {table} {chain}"),
            Object::Element(it) => {
                let (verb, to) = match self.verb {
                    Verb::Create => ("add", "to"),
                    _ => ("delete", "of"),
                };
                format!("{verb} {} {to} {table} {}", it.key_text(), it.set.name)
            }
            Object::Table | Object::Chain(_) | Object::Set(_) => self.command(false),
        }
    }

    /// The change as a line of nft's syntax; the definition of what is added only if `whole`.
    fn command(&self, whole: bool) -> String {
        let (verb, table) = (self.verb.name(), self.table);
        let (noun, object) = match &self.object {
            Object::Table => ("table", String::new()),
            Object::Chain(chain) => ("chain", format!(" {}", chain.name)),
            Object::Set(set) => (set.noun(), format!(" {}", set.name)),
            Object::Rule(chain, rule) => ("rule", format!(" {chain} {}", rule.text(table.family))),
            Object::Handle(chain, handle) => ("rule", format!(" {chain} handle {handle}")),
            Object::Element(it) => {
                let text = match self.verb {
                    Verb::Create => it.text(),
                    _ => it.key_text(),
                };
                ("element", format!(" {} {{ {text} }}", it.set.name))
            }
        };
        let definition = match &self.object {
            _ if !whole || self.verb != Verb::Add => String::new(),
            Object::Table if !table.comment.is_empty() => {
                format!(" {{ comment \"{}\" ; }}", table.comment)
            }
            Object::Chain(chain) => chain.definition(),
            Object::Set(set) => format!(" {{ {} ; }}", set.definition(table.family)),
            _ => String::new(),
        };
        format!("{verb} {noun} {table}{object}{definition}")
    }

    fn request(&self, id: u32) -> Request {
        let flags = match (self.verb, &self.object) {
            (Verb::Add, Object::Rule(..)) => libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            (Verb::Add | Verb::Insert, _) => libc::NLM_F_CREATE,
            (Verb::Create, _) => libc::NLM_F_CREATE | libc::NLM_F_EXCL,
            (Verb::Delete | Verb::Flush, _) => 0,
        };
        let (new, delete) = match (&self.object, self.verb) {
            (Object::Table, _) => (libc::NFT_MSG_NEWTABLE, libc::NFT_MSG_DELTABLE),
            (Object::Rule(..) | Object::Handle(..), _) | (Object::Chain(_), Verb::Flush) => {
                (libc::NFT_MSG_NEWRULE, libc::NFT_MSG_DELRULE)
            }
            (Object::Chain(_), _) => (libc::NFT_MSG_NEWCHAIN, libc::NFT_MSG_DELCHAIN),
            (Object::Set(_), _) => (libc::NFT_MSG_NEWSET, libc::NFT_MSG_DELSET),
            (Object::Element(_), _) => (libc::NFT_MSG_NEWSETELEM, libc::NFT_MSG_DELSETELEM),
        };
        let kind = if self.verb.deletes() { delete } else { new };
        request(kind, flags, self.table.family, &self.attributes(id))
    }

    fn attributes(&self, id: u32) -> Attributes {
        let (table, whole) = (self.table.name, !self.verb.deletes());
        let it = Attributes::new();
        match &self.object {
            Object::Table if whole => {
                let flags = if self.table.owned {
                    NFT_TABLE_F_OWNER
                } else {
                    0
                };
                let it = it.text(NFTA_TABLE_NAME, table).u32(NFTA_TABLE_FLAGS, flags);
                commented(it, NFTA_TABLE_USERDATA, self.table.comment)
            }
            Object::Table => it.text(NFTA_TABLE_NAME, table),
            Object::Chain(chain) if self.verb == Verb::Flush => it
                .text(NFTA_RULE_TABLE, table)
                .text(NFTA_RULE_CHAIN, &chain.name),
            Object::Chain(chain) => {
                let mut it = it
                    .text(NFTA_CHAIN_TABLE, table)
                    .text(NFTA_CHAIN_NAME, &chain.name);
                if let Some(hook) = chain.hook {
                    let place = Attributes::new()
                        .u32(NFTA_HOOK_HOOKNUM, hook.point.hook().0 as u32)
                        .u32(NFTA_HOOK_PRIORITY, hook.priority as u32);
                    it = it
                        .text(NFTA_CHAIN_TYPE, hook.kind)
                        .u32(NFTA_CHAIN_POLICY, libc::NF_ACCEPT as u32)
                        .nest(NFTA_CHAIN_HOOK, &place);
                }
                commented(it, NFTA_CHAIN_USERDATA, chain.comment)
            }
            Object::Set(set) if whole => set.attributes(self.table.family, table, id),
            Object::Set(set) => it.text(NFTA_SET_TABLE, table).text(NFTA_SET_NAME, set.name),
            Object::Rule(chain, rule) => {
                let expressions = list(&compile(self.table.family, &rule.statements));
                let it = it
                    .text(NFTA_RULE_TABLE, table)
                    .text(NFTA_RULE_CHAIN, chain)
                    .nest(NFTA_RULE_EXPRESSIONS, &expressions);
                commented(
                    it,
                    NFTA_RULE_USERDATA,
                    rule.comment.as_deref().unwrap_or_default(),
                )
            }
            Object::Handle(chain, handle) => it
                .text(NFTA_RULE_TABLE, table)
                .text(NFTA_RULE_CHAIN, chain)
                .u64(NFTA_RULE_HANDLE, *handle),
            Object::Element(element) => element.attributes(table, whole),
        }
    }
}

fn commented(it: Attributes, kind: u16, comment: &str) -> Attributes {
    if comment.is_empty() {
        it
    } else {
        it.bytes(kind, &comment_data(comment))
    }
}

/// Changes that happen all at once or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction(Vec<Change>);

impl Transaction {
    /// A transaction without changes.
    pub fn new() -> Self {
        Self::default()
    }

    fn push(&mut self, verb: Verb, table: Table, object: Object) {
        self.0.push(Change {
            verb,
            table,
            object,
        });
    }

    /// Adds a table, unless there is one of its name.
    pub fn add_table(&mut self, table: Table) {
        self.push(Verb::Add, table, Object::Table);
    }

    /// Deletes a table with all that is in it.
    pub fn delete_table(&mut self, table: Table) {
        self.push(Verb::Delete, table, Object::Table);
    }

    /// Adds a chain, unless there is one of its name.
    pub fn add_chain(&mut self, table: Table, chain: Chain) {
        self.push(Verb::Add, table, Object::Chain(chain));
    }

    /// Deletes a chain with its rules; no rule may lead to it any more.
    pub fn delete_chain(&mut self, table: Table, chain: impl Into<Cow<'static, str>>) {
        self.push(Verb::Delete, table, Object::Chain(Chain::new(chain)));
    }

    /// Gives a chain these rules and no others; adds the chain if it does not exist.
    pub fn fill_chain(
        &mut self,
        table: Table,
        chain: Chain,
        rules: impl IntoIterator<Item = Rule>,
    ) {
        let name = chain.name.clone();
        self.add_chain(table, chain);
        self.refill_chain(table, name, rules);
    }

    /// Gives an existing chain these rules and no others.
    pub fn refill_chain(
        &mut self,
        table: Table,
        name: impl Into<Cow<'static, str>>,
        rules: impl IntoIterator<Item = Rule>,
    ) {
        let name = name.into();
        self.push(Verb::Flush, table, Object::Chain(Chain::new(name.clone())));
        for rule in rules {
            self.add_rule(table, name.clone(), rule);
        }
    }

    /// Adds a set or map, unless there is one of its name.
    pub fn add_set(&mut self, table: Table, set: Set) {
        self.push(Verb::Add, table, Object::Set(set));
    }

    /// Deletes a set with its elements; no rule may look into it any more.
    pub fn delete_set(&mut self, table: Table, set: Set) {
        self.push(Verb::Delete, table, Object::Set(set));
    }

    /// Adds a rule after the other rules of its chain.
    pub fn add_rule(&mut self, table: Table, chain: impl Into<Cow<'static, str>>, rule: Rule) {
        self.push(Verb::Add, table, Object::Rule(chain.into(), rule));
    }

    /// Adds a rule before the other rules of its chain.
    pub fn insert_rule(&mut self, table: Table, chain: impl Into<Cow<'static, str>>, rule: Rule) {
        self.push(Verb::Insert, table, Object::Rule(chain.into(), rule));
    }

    /// Deletes an existing rule.
    pub fn delete_rule(&mut self, rule: &Listed) {
        let object = Object::Handle(rule.chain.clone(), rule.handle);
        self.push(Verb::Delete, rule.table, object);
    }

    /// Adds an element; fails if another element has its key.
    pub fn create_element(&mut self, table: Table, element: Element) {
        self.push(Verb::Create, table, Object::Element(element));
    }

    /// Deletes the element that has this key.
    pub fn delete_element(&mut self, table: Table, element: Element) {
        self.push(Verb::Delete, table, Object::Element(element));
    }

    /// Appends the changes of `more`.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
    }

    /// The changes, in their order.
    pub fn changes(&self) -> &[Change] {
        &self.0
    }

    /// Whether it has no changes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether it deletes this table.
    pub fn deletes_table(&self, table: Table) -> bool {
        let deletes = |it: &Change| it.verb == Verb::Delete && it.object == Object::Table;
        self.0.iter().any(|it| deletes(it) && it.table == table)
    }

    /// Sends the transaction to the kernel. With a `generation`, fails with `ERESTART` if the rule set
    /// has another number by now.
    ///
    /// # Errors
    /// The change that the kernel refuses.
    pub fn commit(&self, socket: &Socket, generation: Option<u32>) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let deletes = self.0.iter().any(|it| it.verb.deletes());
        let committed = socket.commit(self.requests(), generation, deletes);
        committed.map_err(|Refused { request, refusal }| {
            let change = request.and_then(|at| self.0.get(at));
            let op = change.map_or_else(|| "commit rules".into(), Change::describe);
            Error::refused(op, refusal)
        })
    }

    /// Checks whether the kernel would accept the transaction: `nft --check`.
    ///
    /// # Errors
    /// The reason why it would not.
    pub fn check(&self, socket: &Socket) -> Result<(), Error> {
        let checked = socket.check(self.requests());
        checked.map_err(|it| Error::refused("try nf_tables", it.refusal))
    }

    fn requests(&self) -> Vec<Request> {
        let numbered = self.0.iter().zip(1..);
        numbered.map(|(change, id)| change.request(id)).collect()
    }
}

impl fmt::Display for Transaction {
    /// The text for `nft -f -`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|it| writeln!(f, "{}", it.command(true)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Protocol;
    use crate::set::{Part, Type};

    #[test]
    fn errors_name_the_object() {
        const TYPES: [Type; 2] = [Type::Protocol, Type::Port];
        let key = [Part::Protocol(Protocol::Udp), Part::Port(53)];
        let value = [Part::Protocol(Protocol::Tcp), Part::Port(5353)];
        let element = Set::map("ports", &TYPES, &TYPES).element(key, value, "net/c/eth0");
        let mut changes = Transaction::new();
        changes.create_element(Table::new(Family::Ip, "t"), element);
        assert_eq!(changes.0[0].describe(), "add udp . 53 to ip t ports");
        assert_eq!(
            changes.to_string(),
            "create element ip t ports { udp . 53 comment \"net/c/eth0\" : tcp . 5353 }\n"
        );
    }
}
