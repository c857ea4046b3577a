//! Container logs: the CRI format, and reading files of it as clients ask.

pub(crate) mod format;
pub(crate) mod reader;
