//! The testbed itself: hosts reach each other and nobody else, reboot, and leave nothing. Needs root.

use testbed::Testbed;

#[test]
fn hosts_reach_each_other_and_nothing_leaves() {
    let bed = Testbed::new().unwrap();
    let (one, mut two) = (bed.host().unwrap(), bed.host().unwrap());
    assert_eq!(one.sh("hostname").unwrap().ok().unwrap().trim(), one.name);
    one.sh(&format!("ping -c1 -W2 {}", two.address)).unwrap().ok().unwrap();
    assert_eq!(bed.leaked_packets().unwrap(), 0);
    // An address that nobody has is counted at the switch and goes no further.
    assert_ne!(one.sh("ping -c1 -W1 198.51.100.7").unwrap().code, 0);
    assert_eq!(bed.leaked_packets().unwrap(), 1);

    let boot_id = two.sh("cat /proc/sys/kernel/random/boot_id").unwrap().ok().unwrap();
    two.sh("echo kept > /var/lib/$SKIFF_NAME/file; sleep 1000 >/dev/null 2>&1 & exit 0")
        .unwrap()
        .ok()
        .unwrap();
    let before = two.pid();
    two.reboot().unwrap();
    bed.connect(&two).unwrap();
    assert!(!std::path::Path::new(&format!("/proc/{before}/ns")).exists());
    assert_ne!(two.sh("cat /proc/sys/kernel/random/boot_id").unwrap().ok().unwrap(), boot_id);
    assert_eq!(two.sh("cat /var/lib/$SKIFF_NAME/file").unwrap().ok().unwrap(), "kept\n");
    one.sh(&format!("ping -c1 -W2 {}", two.address)).unwrap().ok().unwrap();
    assert_eq!(two.processes().unwrap(), Vec::<String>::new());
}
