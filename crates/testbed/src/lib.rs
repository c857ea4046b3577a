//! Hosts on one machine, for tests: each is a set of namespaces (network, mounts, processes, host name) with data
//! directories of its own, wired to a switch that leads nowhere. Nothing touches the machine's own network, and a host
//! ends with its first process, which ends with the test: also when the test is killed. Its files and cgroups are then
//! removed by the next testbed on the machine.

mod directory;
mod held;
mod host;
mod load;
mod sandbox;
mod tools;

pub use held::{Daemon, Held};
pub use host::{Host, Ran};
pub use load::{Failure, Load, LoadConfig, LoadReport};
pub use sandbox::Testbed;
pub use tools::{base_image, cached, end, example_images, kubectl, repository, skiff_binary};
