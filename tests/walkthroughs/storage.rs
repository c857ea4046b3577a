//! The lecture's storage chapter: volumes, claims and classes as its slides have them, with what they need on a machine
//! that is in no cloud. What is missing for a volume is named by the events of those who wait for it.

use testbed::Testbed;

use crate::terminal::Terminal;

/// The slide's volume on an NFS server, whose address is to be put in its place.
const NFS: &str = "
apiVersion: v1
kind: PersistentVolume
metadata:
  name: pv-name
spec:
  capacity:
    storage: 5Gi
  volumeMode: Filesystem
  accessModes:
    - ReadWriteOnce
  persistentVolumeReclaimPolicy: Recycle
  storageClassName: slow
  mountOptions:
    - hard
    - nfsvers=4.0
  nfs:
    path: /dir/path/on/nfs/server
    server: 127.0.0.1";

const GCE: &str = "
apiVersion: v1
kind: PersistentVolume
metadata:
  name: test-volume
  labels:
    failure-domain.beta.kubernetes.io/zone: us-central1-a__us-central1-b
spec:
  capacity:
    storage: 400Gi
  accessModes:
    - ReadWriteOnce
  gcePersistentDisk:
    pdName: my-data-disk
    fsType: ext4";

const CLASS: &str = "
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: storage-class-name
provisioner: kubernetes.io/aws-ebs
parameters:
  type: io1
  iopsPerGB: \"10\"
  fsType: ext4";

/// What an administrator makes for the class `manual` of the slide's claim.
const MANUAL: &str = "
apiVersion: v1
kind: PersistentVolume
metadata:
  name: manual
spec:
  capacity:
    storage: 10Gi
  accessModes:
    - ReadWriteOnce
  storageClassName: manual
  hostPath:
    path: PATH";

/// The slide's claim, of a class and a size, with more in its specification.
fn claim(name: &str, class: &str, size: &str, more: &str) -> String {
    format!(
        "
kind: PersistentVolumeClaim
apiVersion: v1
metadata:
  name: {name}
spec:
  storageClassName: \"{class}\"
  volumeMode: Filesystem
  accessModes:
    - ReadWriteOnce
  resources:
    requests:
      storage: {size}
  {more}"
    )
}

/// The slide's pod, with an image that the host has.
fn pod(name: &str, claim: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: myfrontend
      image: busybox
      imagePullPolicy: Never
      command: [sh, -c, \"echo hello > /var/www/html/index.html; sleep 100000\"]
      volumeMounts:
        - mountPath: \"/var/www/html\"
          name: mypd
  volumes:
    - name: mypd
      persistentVolumeClaim:
        claimName: {claim}"
    )
}

fn apply(terminal: &Terminal<'_>, manifest: &str) {
    terminal.types(&format!("kubectl apply -f - <<'END'\n{manifest}\nEND\n"));
}

/// Waits until an event of a reason says something.
fn told(terminal: &Terminal<'_>, reason: &str, text: &str) {
    let columns = "custom-columns=R:.reason,M:.message --no-headers";
    let mut events = terminal.starts(&format!("kubectl get events -A --watch -o {columns}"));
    events.until(|line| line.starts_with(&format!("{reason} ")) && line.contains(text));
}

fn phase(terminal: &Terminal<'_>, of: &str, wanted: &str) {
    terminal.types(&format!("kubectl wait {of} --for=jsonpath='{{.status.phase}}'={wanted} --timeout=120s"));
}

#[test]
fn the_lectures_volumes_claims_and_classes() {
    let bed = Testbed::new().unwrap();
    let host = bed.host().unwrap();
    let home = host.directory().join("home");
    host.must_sh(&format!("mkdir -p {}", home.display()));
    let terminal = Terminal::open(&host, &home);
    terminal.types("skiff up");
    let archive = testbed::base_image("busybox-bookworm.tar").unwrap();
    terminal.types(&format!("skiff load -i {}", archive.display()));

    for manifest in [NFS, GCE, CLASS] {
        apply(&terminal, manifest);
    }
    let volumes = terminal.table("kubectl get pv --no-headers");
    let shown =
        |name: &str| volumes.iter().find(|row| row[0] == name).unwrap_or_else(|| panic!("{volumes:?}"));
    assert_eq!(shown("pv-name")[1..6], ["5Gi", "RWO", "Recycle", "Available", "slow"]);
    assert_eq!(shown("test-volume")[1..5], ["400Gi", "RWO", "Retain", "Available"]);

    // `manual`: somebody makes the volume. Until then the claim says what it waits for.
    apply(&terminal, &claim("pvc-name", "manual", "10Gi", ""));
    apply(&terminal, &pod("mypod", "pvc-name"));
    told(&terminal, "ProvisioningFailed", "storageclass.storage.k8s.io \"manual\" not found");
    let disk = home.join("disk");
    apply(&terminal, &MANUAL.replace("PATH", &disk.display().to_string()));
    phase(&terminal, "pvc pvc-name", "Bound");
    terminal.types("kubectl wait pod mypod --for=condition=Ready --timeout=120s");
    terminal.types("kubectl exec mypod -- sh -c 'until [ -s /var/www/html/index.html ]; do sleep 0.1; done'");
    assert_eq!(terminal.types(&format!("cat {}/index.html", disk.display())), "hello\n");

    // Any other class: its provisioner makes the volume, which has to be there.
    apply(&terminal, &claim("of-a-class", "storage-class-name", "1Gi", ""));
    told(&terminal, "ExternalProvisioning", "external provisioner 'ebs.csi.aws.com'");

    // Volumes that are there and cannot be had on this machine.
    apply(&terminal, &claim("of-a-server", "slow", "5Gi", ""));
    phase(&terminal, "pvc of-a-server", "Bound");
    apply(&terminal, &pod("on-a-server", "of-a-server"));
    told(&terminal, "FailedMount", "mount failed: mounting 127.0.0.1:/dir/path/on/nfs/server: ");
    apply(&terminal, &claim("of-a-cloud", "", "400Gi", "volumeName: test-volume"));
    phase(&terminal, "pvc of-a-cloud", "Bound");
    apply(&terminal, &pod("in-a-cloud", "of-a-cloud"));
    told(&terminal, "FailedMount", "driver name pd.csi.storage.gke.io not found");

    // Nobody recycles: the volume says so, and the pods that wait can go.
    terminal.types("kubectl delete pod on-a-server in-a-cloud mypod --timeout=120s");
    terminal.types("kubectl delete pvc of-a-server --timeout=120s");
    phase(&terminal, "pv pv-name", "Failed");
    told(&terminal, "VolumeFailedRecycle", "No recycler plugin found");
    assert_eq!(terminal.types(&format!("cat {}/index.html", disk.display())), "hello\n", "users' data stays");

    assert_eq!(bed.leaked_packets().unwrap(), 0, "{}", bed.leaks().unwrap());
    host.must_skiff(&["down", "--purge"]);
    let left: Vec<_> = host.processes().unwrap().into_iter().filter(|line| line.contains("skiff")).collect();
    assert_eq!(left, Vec::<String>::new());
}
