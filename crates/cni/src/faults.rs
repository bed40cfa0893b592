//! What is wrong with the values of a configuration: every fault with its key.
//!
//! A plugin reports the first fault and stops; `podwire validate` reports all of
//! them. Both call the same `Plan::new`, which collects them with [`Checks`].

use crate::error::{Code, Error};

/// The key of a fault in `CNI_ARGS`, which no key of the configuration has.
pub const CNI_ARGS: &str = "";

/// A value that contradicts another, or that its key cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The path of the key as the JSON document has it: `vlanTrunk[0].minID`. Empty if the fault
    /// concerns the configuration as a whole, or none of its keys ([`CNI_ARGS`]).
    pub key: String,
    /// The error that ADD reports.
    pub error: Error,
}

impl Fault {
    /// `error` at `key`.
    pub fn at(key: impl Into<String>, error: Error) -> Self {
        Self {
            key: key.into(),
            error,
        }
    }

    /// A fault with code 7 and the text `msg`.
    pub fn new(key: impl Into<String>, msg: impl Into<String>) -> Self {
        Self::at(key, Code::InvalidConfig.err(msg))
    }
}

impl From<Error> for Fault {
    /// A fault that concerns no key of the configuration.
    fn from(error: Error) -> Self {
        Self::at("", error)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        fault.error
    }
}

impl From<Fault> for anyhow::Error {
    fn from(fault: Fault) -> Self {
        fault.error.into()
    }
}

/// All faults of a configuration: at least one. As an error it is the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults {
    first: Fault,
    others: Vec<Fault>,
}

impl Faults {
    /// The fault that ADD reports.
    pub fn first(&self) -> &Fault {
        &self.first
    }

    /// The same faults in a larger configuration.
    pub fn map(self, mut change: impl FnMut(Fault) -> Fault) -> Self {
        Self {
            first: change(self.first),
            others: self.others.into_iter().map(change).collect(),
        }
    }
}

impl IntoIterator for Faults {
    type Item = Fault;
    type IntoIter = std::iter::Chain<std::iter::Once<Fault>, std::vec::IntoIter<Fault>>;

    fn into_iter(self) -> Self::IntoIter {
        std::iter::once(self.first).chain(self.others)
    }
}

impl From<Fault> for Faults {
    fn from(first: Fault) -> Self {
        Self {
            first,
            others: Vec::new(),
        }
    }
}

impl From<Error> for Faults {
    fn from(error: Error) -> Self {
        Fault::from(error).into()
    }
}

impl From<Faults> for Error {
    fn from(faults: Faults) -> Self {
        faults.first.error
    }
}

impl From<Faults> for anyhow::Error {
    fn from(faults: Faults) -> Self {
        faults.first.error.into()
    }
}

/// Collects faults, in the order in which a plugin reports them.
///
/// ```
/// # use cni::faults::{Checks, Fault, Faults};
/// # fn check(mtu: i64) -> Result<i64, Fault> { Ok(mtu) }
/// # fn plan(mtu: i64, vlan: i64) -> Result<(i64, i64), Faults> {
/// let mut checks = Checks::default();
/// if vlan > 4094 {
///     checks.add(Fault::new("vlan", "invalid VLAN ID"));
/// }
/// let mtu = checks.take(check(mtu));
/// checks.finish(|| Some((mtu?, vlan)))
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Checks(Vec<Fault>);

impl Checks {
    /// Keeps a fault.
    pub fn add(&mut self, fault: Fault) {
        self.0.push(fault);
    }

    /// The value, or `None` after its faults were kept.
    pub fn take<T>(&mut self, checked: Result<T, impl Into<Faults>>) -> Option<T> {
        match checked {
            Ok(value) => Some(value),
            Err(faults) => {
                self.0.extend(faults.into());
                None
            }
        }
    }

    /// Reads each item of the list `key`: `read` gets the key of the item, such as `servers[0]`,
    /// and its value. Faults are kept, and their items are left out.
    pub fn each<K, T, F: Into<Faults>>(
        &mut self,
        key: &str,
        list: &[K],
        read: impl Fn(&str, &K) -> Result<T, F>,
    ) -> Vec<T> {
        let items = list.iter().enumerate();
        let items = items.filter_map(|(at, item)| self.take(read(&format!("{key}[{at}]"), item)));
        items.collect()
    }

    /// The value that `build` makes of all checked values, or the faults that were kept.
    ///
    /// # Panics
    /// If `build` returns `None` although no fault was kept.
    pub fn finish<T>(self, build: impl FnOnce() -> Option<T>) -> Result<T, Faults> {
        let mut faults = self.0.into_iter();
        match faults.next() {
            Some(first) => Err(Faults {
                first,
                others: faults.collect(),
            }),
            None => Ok(build().expect("every value is there when no check failed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(one: Result<i64, Fault>, other: Result<i64, Fault>) -> Result<i64, Faults> {
        let mut checks = Checks::default();
        let (one, other) = (checks.take(one), checks.take(other));
        checks.finish(|| Some(one? + other?))
    }

    #[test]
    fn each_item_has_its_key() {
        let mut checks = Checks::default();
        let read = |key: &str, item: &i64| match item {
            0 => Err(Fault::new(key, "zero")),
            item => Ok(*item),
        };
        assert_eq!(checks.each("list", &[1, 0, 3], read), [1, 3]);
        let faults = checks.finish(|| Some(())).unwrap_err();
        assert_eq!(faults.first(), &Fault::new("list[1]", "zero"));
    }

    #[test]
    fn all_faults_are_kept_and_the_first_is_the_error() {
        assert_eq!(sum(Ok(1), Ok(2)).unwrap(), 3);
        let faults = sum(Err(Fault::new("a", "x")), Err(Fault::new("b", "y"))).unwrap_err();
        let keys: Vec<_> = faults.clone().into_iter().map(|it| it.key).collect();
        assert_eq!(keys, ["a", "b"]);
        let error = anyhow::Error::from(faults);
        assert_eq!(Error::from_chain(&error), Code::InvalidConfig.err("x"));
    }
}
