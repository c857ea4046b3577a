//! Pods that come and go while daemon, shims and containers are killed at random moments.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testbed::Held;

use crate::support::{Cluster, Random, is_ready, pod, text};

/// How many pods `make test` starts and stops; `make soak` asks for more.
const PODS: u64 = 200;
/// So many at once.
const ROUND: u64 = 10;
/// Containers that end are started anew after a second: a round does not wait for upstream's ten. Each start is told.
const UP: [&str; 3] = ["up", "--max-container-restart-period", "1"];

/// What a pod is there for, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Runs until it is deleted.
    Steady,
    /// Two containers that see each other's processes, with volumes; runs until it is deleted.
    Shared,
    /// Ends with 7 and is not started again.
    Fails,
    /// Ends with 0 and is not started again.
    Done,
    /// Fails once and is started again.
    Repeats,
}

impl Kind {
    fn of(number: u64) -> Self {
        [Self::Steady, Self::Shared, Self::Fails, Self::Done, Self::Repeats]
            [usize::try_from(number % 5).unwrap()]
    }

    fn pod(self, name: &str) -> Value {
        let script = match self {
            Self::Steady | Self::Shared => "exec sleep 100003",
            Self::Fails => "sleep 0.3; exit 7",
            Self::Done => "exit 0",
            Self::Repeats => "test -f /kept/tried && exit 0; touch /kept/tried; exit 3",
        };
        let mut pod = pod(name, script);
        pod["metadata"]["labels"] = json!({"app": "churn"});
        let spec = &mut pod["spec"];
        spec["volumes"] =
            json!([{"name": "kept", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]);
        spec["containers"][0]["volumeMounts"] =
            json!([{"name": "kept", "mountPath": "/kept"}, {"name": "memory", "mountPath": "/memory"}]);
        match self {
            Self::Steady => {}
            Self::Shared => {
                spec["shareProcessNamespace"] = json!(true);
                let mut second = spec["containers"][0].clone();
                second["name"] = json!("second");
                spec["containers"].as_array_mut().unwrap().push(second);
            }
            Self::Fails | Self::Done => spec["restartPolicy"] = json!("Never"),
            Self::Repeats => spec["restartPolicy"] = json!("OnFailure"),
        }
        pod
    }

    /// Whether a pod has come to where it stays.
    fn is_settled(self, pod: &Value) -> bool {
        match self {
            Self::Steady | Self::Shared => is_ready(pod),
            _ => ["Succeeded", "Failed"].contains(&&*text(&pod["status"]["phase"])),
        }
    }

    /// The exit code of a pod that nothing was done to.
    fn code(self) -> Option<i64> {
        match self {
            Self::Steady | Self::Shared => None,
            Self::Fails => Some(7),
            Self::Done | Self::Repeats => Some(0),
        }
    }
}

/// What is killed in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Nobody,
    Daemon,
    Shim,
    Container,
    DaemonAndShim,
}

impl Victim {
    fn any(random: &mut Random) -> Self {
        let all =
            [Self::Nobody, Self::Daemon, Self::Daemon, Self::Shim, Self::Container, Self::DaemonAndShim];
        all[usize::try_from(random.below(all.len() as u64)).unwrap()]
    }

    /// Whether containers end by it.
    fn ends_containers(self) -> bool {
        !matches!(self, Self::Nobody | Self::Daemon)
    }
}

struct Story {
    cluster: Cluster,
    random: Random,
    /// The number of the next pod.
    next: u64,
    /// Restarts that were seen, by pod and container.
    restarts: BTreeMap<(String, String), u64>,
    /// Containers that were seen to have run.
    starts: u64,
}

impl Story {
    fn pause(&mut self, most_ms: u64) {
        let pause = format!("sleep 0.{:03}", self.random.below(most_ms.min(1000)));
        self.cluster.host.must_sh(&pause);
    }

    /// Kills one of the processes whose command line has a part, if there are any.
    fn kill_one(&mut self, mark: &str) {
        let all = self.cluster.processes_with(mark);
        if !all.is_empty() {
            let one = all[usize::try_from(self.random.below(all.len() as u64)).unwrap()];
            // It may have ended by itself.
            self.cluster.host.sh(&format!("kill -9 {one}")).unwrap();
        }
    }

    fn kill(&mut self, victim: Victim) {
        match victim {
            Victim::Nobody => {}
            Victim::Daemon => self.restart(),
            Victim::Shim => self.kill_one("skiff-shim-"),
            Victim::Container => self.kill_one("sleep "),
            Victim::DaemonAndShim => {
                self.cluster.kill_daemon();
                self.kill_one("skiff-shim-");
                self.cluster.host.must_skiff(&UP);
            }
        }
    }

    fn restart(&mut self) {
        self.cluster.kill_daemon();
        self.pause(300);
        self.cluster.host.must_skiff(&UP);
    }

    fn round(&mut self) {
        let numbers: Vec<u64> = (self.next..self.next + ROUND).collect();
        self.next += ROUND;
        let names: Vec<String> = numbers.iter().map(|number| format!("churn-{number}")).collect();
        let pods: Vec<Value> =
            numbers.iter().zip(&names).map(|(number, name)| Kind::of(*number).pod(name)).collect();
        let victim = Victim::any(&mut self.random);
        let waits = self.random.below(4) != 0;
        eprintln!(
            "pods {}..: kill {victim:?}, {}",
            numbers[0],
            if waits { "seen to their end" } else { "cut off" }
        );
        self.cluster.apply(&pods);
        self.pause(1000);
        self.note_all_restarts();
        self.kill(victim);
        if waits {
            self.check_settled(&names, victim);
        }
        let mut delete = vec!["delete", "pods", "--wait=false"];
        if self.random.below(5) == 0 {
            delete.extend(["--grace-period=0", "--force"]);
        }
        delete.extend(names.iter().map(String::as_str));
        self.cluster.host.must_kubectl(&delete);
        if self.random.below(3) == 0 {
            self.kill(Victim::Daemon);
        }
    }

    /// Notes how often the containers of all living pods were started anew: what is killed next has to keep that.
    fn note_all_restarts(&mut self) {
        for pod in self.cluster.list(&["pods", "-l", "app=churn"]) {
            if pod["metadata"]["deletionTimestamp"].is_null() {
                for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
                    self.note_restarts(&pod, status);
                }
            }
        }
    }

    /// How often a container was started anew, which is never less than was seen before.
    fn note_restarts(&mut self, pod: &Value, status: &Value) -> u64 {
        let key = (text(&pod["metadata"]["uid"]), text(&status["name"]));
        let restarts = status["restartCount"].as_u64().unwrap();
        let seen = self.restarts.insert(key, restarts).unwrap_or(0);
        assert!(seen <= restarts, "restarts were forgotten: {seen} before, {pod}");
        restarts
    }

    /// Waits until each pod of a round is where it stays, and looks at what is told of it.
    fn check_settled(&mut self, names: &[String], victim: Victim) {
        let kind = |name: &str| Kind::of(name.rsplit('-').next().unwrap().parse().unwrap());
        let settled = self.cluster.until_all(&["pods", "-l", "app=churn"], "settled", |pods| {
            names.iter().all(|name| pods.get(name).is_some_and(|pod| kind(name).is_settled(pod)))
        });
        for name in names {
            let (pod, kind) = (&settled[name], kind(name));
            for status in pod["status"]["containerStatuses"].as_array().unwrap() {
                let restarts = self.note_restarts(pod, status);
                self.starts += restarts + 1;
                for ended in [&status["state"]["terminated"], &status["lastState"]["terminated"]] {
                    assert_ne!(ended["reason"], "OOMKilled", "nothing was short of memory: {pod}");
                }
                let Some(expected) = kind.code() else { continue };
                let code = status["state"]["terminated"]["exitCode"].as_i64();
                let killed = victim.ends_containers() && code == Some(137);
                assert!(code == Some(expected) || killed, "{victim:?}: {expected} became {code:?}: {pod}");
                let phase = if code == Some(0) { "Succeeded" } else { "Failed" };
                assert_eq!(pod["status"]["phase"], phase, "{pod}");
                assert!(kind != Kind::Repeats || restarts >= 1, "{pod}");
            }
        }
    }

    /// Returns when nothing of any pod is there any more.
    fn await_end(&self) {
        self.cluster.until_gone(&["pods", "-A"]);
        // Pods that were deleted by force are gone from the API before they are from the node.
        let left = "ls -A /var/lib/$SKIFF_NAME/engine/sandboxes /var/lib/$SKIFF_NAME/node/pods 2>/dev/null | grep -v : | grep .";
        let waits = format!("timeout 180 sh -c 'while {left}; do sleep 0.2; done' > /dev/null");
        let ended = self.cluster.host.sh(&waits).unwrap();
        assert_eq!(ended.code, 0, "left: {}", self.cluster.host.sh(left).unwrap().out);
    }
}

fn churn(pods: u64) {
    let cluster = Cluster::up_after(|_| UP[1..].iter().map(|word| (*word).to_owned()).collect());
    let mut story = Story { cluster, random: Random::new(), next: 0, restarts: BTreeMap::new(), starts: 0 };
    // What is made once is there before it is counted.
    story.cluster.apply(&[Kind::Shared.pod("first")]);
    story.cluster.until(&["pod", "first"], "Ready", is_ready);
    story.cluster.host.must_kubectl(&["delete", "pod", "first"]);
    story.restart();
    story.await_end();
    let before = Held::on(&story.cluster.host);
    while story.next < pods {
        story.round();
    }
    story.await_end();
    let after = Held::on(&story.cluster.host);
    before.assert_nothing_left(&after);
    before.assert_daemon_did_not_grow(&after);
    eprintln!("{} containers of {} pods were seen to run; {:?}", story.starts, story.next, after.daemon);
    story.cluster.purge();
}

#[test]
fn two_hundred_pods_come_and_go_under_kills_and_leave_nothing() {
    churn(PODS);
}

#[test]
#[ignore = "runs for many minutes: make soak"]
fn soak_of_thousands_of_pods_under_kills() {
    let pods = std::env::var("SKIFF_SOAK_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(3000);
    churn(pods);
}
