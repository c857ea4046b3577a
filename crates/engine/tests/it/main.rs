//! Real containers from a real image, each test in directories and a cgroup of its own. Needs root and Debian's
//! `busybox-static`.

mod basics;
mod confinement;
mod streams;
mod support;
mod survival;
