//! The tests are in `tests/`; this package has no code of its own.
