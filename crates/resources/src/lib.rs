//! What is special about each kind: strategy, defaults, validation, columns.
