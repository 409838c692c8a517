//! Takes the fields of a YAML tree one by one and collects what is wrong with them.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use super::{
    error::{ConfigError, Invalid, Place},
    node::{Key, Node, Value},
    values::parse_duration,
};

/// The faults found so far.
#[derive(Default)]
pub(super) struct Faults(pub Vec<ConfigError>);

impl Faults {
    pub(super) fn push(
        &mut self,
        at: Place,
        field: &str,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        self.0.push(ConfigError {
            at,
            field: field.to_owned(),
            what: what.into(),
            fix: fix.into(),
        });
    }
}

/// A value and its path.
pub(super) struct Entry<'a> {
    pub path: String,
    node: &'a Node,
}

/// A mapping whose fields are being taken. [`Map::close`] complains about the ones that nobody took.
pub(super) struct Map<'a> {
    path: String,
    at: Place,
    entries: &'a [(Key, Node)],
    known: Vec<&'static str>,
}

impl<'a> Entry<'a> {
    pub(super) fn root(node: &'a Node) -> Self {
        Self {
            path: String::new(),
            node,
        }
    }

    pub(super) fn at(&self) -> Place {
        self.node.at
    }

    /// Records a fault of this value.
    pub(super) fn fault(
        &self,
        faults: &mut Faults,
        what: impl Into<String>,
        fix: impl Into<String>,
    ) {
        faults.push(self.node.at, &self.path, what, fix);
    }

    fn expected<T>(&self, faults: &mut Faults, kind: &str, fix: &str) -> Option<T> {
        let found = self.node.value.kind();
        self.fault(faults, format!("{found} where {kind} belongs"), fix);
        None
    }

    pub(super) fn map(&self, faults: &mut Faults) -> Option<Map<'a>> {
        match &self.node.value {
            Value::Map(entries) => Some(Map {
                path: self.path.clone(),
                at: self.node.at,
                entries,
                known: Vec::new(),
            }),
            _ => self.expected(
                faults,
                "a mapping",
                "write it in braces, as {field: value}, or indented below",
            ),
        }
    }

    pub(super) fn list(&self, faults: &mut Faults) -> Option<Vec<Self>> {
        match &self.node.value {
            Value::List(nodes) => {
                let entry = |(index, node)| Self {
                    path: format!("{}[{index}]", self.path),
                    node,
                };
                Some(nodes.iter().enumerate().map(entry).collect())
            }
            _ => self.expected(faults, "a list", "write it in brackets, as [a, b]"),
        }
    }

    pub(super) fn text(&self, faults: &mut Faults) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Null => self.expected(faults, "text", "give it a value, or remove it"),
            _ => self.expected(faults, "text", "put it in quotes"),
        }
    }

    /// A list's elements that parse.
    pub(super) fn parse_list<T: FromStr<Err = Invalid>>(&self, faults: &mut Faults) -> Vec<T> {
        let entries = self.list(faults).unwrap_or_default();
        entries
            .iter()
            .filter_map(|entry| entry.parse(faults))
            .collect()
    }

    pub(super) fn parse<T: FromStr<Err = Invalid>>(&self, faults: &mut Faults) -> Option<T> {
        match self.text(faults)?.parse() {
            Ok(value) => Some(value),
            Err(Invalid { what, fix }) => {
                self.fault(faults, what, fix);
                None
            }
        }
    }

    pub(super) fn boolean(&self, faults: &mut Faults) -> Option<bool> {
        match self.node.value {
            Value::Bool(value) => Some(value),
            _ => self.expected(
                faults,
                "true or false",
                "write true or false, without quotes",
            ),
        }
    }

    pub(super) fn number<T>(&self, range: RangeInclusive<T>, faults: &mut Faults) -> Option<T>
    where
        T: TryFrom<i128> + PartialOrd + Display,
    {
        let Value::Integer(value) = self.node.value else {
            return self.expected(
                faults,
                "a whole number",
                "write it in digits, without quotes",
            );
        };
        let number = T::try_from(value)
            .ok()
            .filter(|number| range.contains(number));
        if number.is_none() {
            self.fault(
                faults,
                format!("{value} is out of range"),
                format!("use {} to {}", range.start(), range.end()),
            );
        }
        number
    }

    pub(super) fn duration(
        &self,
        range: RangeInclusive<Duration>,
        faults: &mut Faults,
    ) -> Option<Duration> {
        let read = self.text(faults)?;
        match parse_duration(read) {
            Ok(duration) if range.contains(&duration) => Some(duration),
            Ok(_) => {
                let (start, end) = (range.start(), range.end());
                self.fault(
                    faults,
                    format!("{read} is out of range"),
                    format!("use {start:?} to {}s", end.as_secs()),
                );
                None
            }
            Err(Invalid { what, fix }) => {
                self.fault(faults, what, fix);
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn word<T: Copy>(
        &self,
        words: &[(&'static str, T)],
        faults: &mut Faults,
    ) -> Option<T> {
        let text = self.text(faults)?;
        let found = words.iter().find(|(word, _)| *word == text);
        if found.is_none() {
            let all: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            self.fault(
                faults,
                format!("\"{text}\" is not known"),
                format!("use {}", all.join(" or ")),
            );
        }
        found.map(|(_, value)| *value)
    }
}

impl<'a> Map<'a> {
    pub(super) fn take(&mut self, name: &'static str) -> Option<Entry<'a>> {
        self.known.push(name);
        let (_, node) = self.entries.iter().find(|(key, _)| key.name == name)?;
        Some(Entry {
            path: self.field(name),
            node,
        })
    }

    /// Takes a field that must be there.
    pub(super) fn require(&mut self, name: &'static str, faults: &mut Faults) -> Option<Entry<'a>> {
        let entry = self.take(name);
        if entry.is_none() {
            faults.push(
                self.at,
                &self.path,
                format!("`{name}` is missing"),
                "add it",
            );
        }
        entry
    }

    /// Takes a field that is a mapping, if it is there.
    pub(super) fn take_map(&mut self, name: &'static str, faults: &mut Faults) -> Option<Map<'a>> {
        self.take(name)?.map(faults)
    }

    /// Complains about every field that was not taken.
    pub(super) fn close(self, faults: &mut Faults) {
        for (key, _) in self.entries {
            if !self.known.contains(&key.name.as_str()) {
                faults.push(
                    key.at,
                    &self.field(&key.name),
                    "unknown field",
                    format!("known here: {}", self.known.join(", ")),
                );
            }
        }
    }

    fn field(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}
