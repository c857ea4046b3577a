//! The engine fulfils the contract, and nothing of it is left afterwards.

use crate::support::with;

engine_api::runtime_contract!(with);
engine_api::images_contract!(with);

/// Cases that show what cgroups are for, but for limits: their controllers may be bound to version 1 on this machine.
const ON_VERSION_2: [&str; 7] = [
    "contract::containers_run_log_and_tell_how_they_ended",
    "contract::a_container_that_is_removed_is_gone",
    "contract::stopping_asks_first_and_kills_after_the_grace",
    "contract::a_container_runs_again",
    "contract::processes_are_executed_in_running_containers",
    "contract::only_the_default_devices_can_be_used",
    "escape::the_kernels_ways_out_are_closed",
];

#[test]
fn the_contract_holds_where_only_version_2_of_cgroups_is_mounted() {
    let alone = "umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";
    let mut command = std::process::Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sh", "-c", alone, "sh"]);
    command.arg(crate::support::own_program()).args(["--exact", "--test-threads", "2"]);
    command.args(ON_VERSION_2);
    let ran = command.output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{text}\n{}", String::from_utf8_lossy(&ran.stderr));
    assert!(text.contains("7 passed"), "{text}");
}
