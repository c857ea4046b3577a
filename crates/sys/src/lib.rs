//! The only home of unsafe code: kernel calls behind handles.
