//! What pods that are here ask for beyond what they have: granted where the node has it, and asked about again when
//! somebody leaves or shrinks. Source: KEP-1287, `pkg/kubelet/allocation/allocation_manager.go`.

use std::cmp::Reverse;

use api::Object;

use super::asked::{Asked, Machine};
use super::decide::resize_refusal;
use super::{Door, Taken};
use crate::pod::PodView;
use crate::resize::{Allocation, Answer, INFEASIBLE, Resized};

/// What a pod wants to have.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    asked: Asked,
    wanted: Allocation,
    generation: i64,
    /// Who wished before is asked about before.
    number: u64,
}

impl Wish {
    /// Who comes first: those that ask for no more than they have, then the more important ones.
    /// Source: `sortPendingResizes`.
    fn rank(&self, granted: &Asked) -> (bool, Reverse<i32>, bool, u64) {
        let grows = ["memory", "cpu"].iter().any(|name| self.asked.request(name) > granted.request(name));
        let priority = Reverse(self.asked.priority.unwrap_or(0));
        (grows, priority, self.asked.qos != "Guaranteed", self.number)
    }
}

impl Taken {
    /// Answers to what a pod asks for now. `None` where the pod has no place.
    fn wish(
        &mut self,
        uid: &str,
        (asked, wanted): (Asked, Allocation),
        generation: i64,
        machine: &Machine,
        lives: impl Fn(&str) -> bool,
    ) -> Option<Resized> {
        let number = self.places.values().filter_map(|place| Some(place.wish.as_ref()?.number)).max();
        let place = self.places.get_mut(uid)?;
        if place.granted == wanted {
            place.wish = None;
            return Some(Resized { generation, answer: Answer::Settled });
        }
        let number = place.wish.as_ref().map(|wish| wish.number).or(number.map(|last| last + 1)).unwrap_or(0);
        place.wish = Some(Wish { asked, wanted, generation, number });
        self.answer(uid, machine, lives)
    }

    /// Decides about a pod's wish.
    fn answer(&mut self, uid: &str, machine: &Machine, lives: impl Fn(&str) -> bool) -> Option<Resized> {
        let wish = self.places.get(uid)?.wish.clone()?;
        let refusal = self
            .of_own_cpus(uid, &wish)
            .or_else(|| resize_refusal(&wish.asked, &self.others(uid, lives), machine));
        let generation = wish.generation;
        if let Some((reason, message)) = refusal {
            return Some(Resized { generation, answer: Answer::Pending(reason, message, wish.wanted) });
        }
        let place = self.places.get_mut(uid)?;
        place.wish = None;
        place.asked = wish.asked;
        place.granted.clone_from(&wish.wanted);
        Some(Resized { generation, answer: Answer::Granted(wish.wanted) })
    }

    /// Why a pod that may have CPUs for itself cannot have more or fewer. Source: `canResizePod`,
    /// `guaranteedPodResourceResizeRequired`.
    fn of_own_cpus(&self, uid: &str, wish: &Wish) -> Option<(&'static str, String)> {
        let place = self.places.get(uid)?;
        let fixed = self.fixed_cpus && wish.asked.qos == "Guaranteed";
        (fixed && place.granted.other_cpus(&wish.wanted)).then(|| {
            let why = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy";
            (INFEASIBLE, why.to_owned())
        })
    }

    /// Who has a wish, those that come first before others.
    fn wishing(&self) -> Vec<String> {
        let mut wishing: Vec<_> = self
            .places
            .iter()
            .filter_map(|(uid, place)| Some((place.wish.as_ref()?.rank(&place.asked), uid)))
            .collect();
        wishing.sort_unstable();
        wishing.into_iter().map(|(_, uid)| uid.clone()).collect()
    }
}

impl Door {
    /// A pod that is taken asks for something now, perhaps for something else.
    pub(crate) fn changed(&self, object: &Object) {
        let Ok(pod) = PodView::decode(object) else { return };
        if pod.metadata.is_terminating() || pod.is_terminal() {
            return;
        }
        let (Ok(asked), Ok(machine)) = (Asked::of(object, &pod), self.machine()) else { return };
        let wanted = Allocation::of(&pod);
        let (uid, generation) = (pod.uid(), pod.metadata.generation);
        let answer =
            self.taken.lock().wish(uid, (asked, wanted), generation, &machine, |uid| self.lives(uid));
        let Some(answer) = answer else { return };
        let granted = matches!(answer.answer, Answer::Granted(_));
        self.tell(uid, answer);
        if granted {
            self.freed();
        }
    }

    /// Somebody has left, is over or has become smaller: others may have what they wished for.
    pub(crate) fn freed(&self) {
        let wishing = self.taken.lock().wishing();
        if wishing.is_empty() {
            return;
        }
        let Ok(machine) = self.machine() else { return };
        for uid in wishing {
            let answer = self.taken.lock().answer(&uid, &machine, |uid| self.lives(uid));
            if let Some(answer) = answer {
                self.tell(&uid, answer);
            }
        }
    }

    fn tell(&self, uid: &str, answer: Resized) {
        if let Some(mailbox) = self.workers.lock().get(uid) {
            mailbox.resized(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::admission::tests::{asked, machine};
    use crate::pod::tests::pod;
    use crate::resize::DEFERRED;

    fn sized(cpu: &str, priority: i32) -> Value {
        let resources = json!({ "requests": { "cpu": cpu } });
        json!({ "priority": priority, "containers": [{ "name": "c", "image": "x", "resources": resources }] })
    }

    fn of(cpu: &str, priority: i32) -> (Asked, Allocation) {
        (asked("p", sized(cpu, priority)), Allocation::of(&pod(sized(cpu, priority))))
    }

    #[test]
    fn whoever_may_have_cpus_for_itself_keeps_as_many() {
        let node =
            machine(json!({ "status": { "allocatable": { "cpu": "4", "memory": "1Gi", "pods": "10" } } }));
        let of = |cpu: &str, memory: &str| {
            let resources = json!({ "limits": { "cpu": cpu, "memory": memory } });
            let spec = json!({ "containers": [{ "name": "c", "image": "x", "resources": resources }] });
            (asked("p", spec.clone()), Allocation::of(&pod(spec)))
        };
        let answer = |fixed_cpus: bool, cpu: &str, memory: &str| {
            let mut taken = Taken { fixed_cpus, ..Taken::default() };
            let (asked, granted) = of("1", "1Mi");
            taken.put("a", asked, granted);
            taken.wish("a", of(cpu, memory), 2, &node, |_| true).unwrap().answer
        };
        let told = "Resize is infeasible for Guaranteed Pods alongside CPU Manager static policy";
        let refused = Answer::Pending(INFEASIBLE, told.to_owned(), of("2", "1Mi").1);
        assert_eq!(answer(true, "2", "1Mi"), refused);
        assert!(matches!(answer(true, "1", "2Mi"), Answer::Granted(_)));
        assert!(matches!(answer(false, "2", "1Mi"), Answer::Granted(_)));
    }

    #[test]
    fn wishes_wait_for_room_and_the_important_ones_come_first() {
        let node = machine(json!({ "status": { "allocatable": { "cpu": "4", "pods": "10" } } }));
        let all = |_: &str| true;
        let mut taken = Taken::default();
        for (uid, priority) in [("a", 0), ("b", 0), ("c", 5)] {
            let (asked, granted) = of("1", priority);
            taken.put(uid, asked, granted);
        }
        let told = |resized: Option<Resized>| match resized.map(|resized| resized.answer) {
            Some(Answer::Pending(reason, _, _)) => reason,
            Some(Answer::Granted(_)) => "Granted",
            Some(Answer::Settled) => "Settled",
            None => "",
        };
        assert_eq!(told(taken.wish("a", of("1", 0), 1, &node, all)), "Settled");
        assert_eq!(told(taken.wish("a", of("5", 0), 2, &node, all)), INFEASIBLE);
        assert_eq!(told(taken.wish("a", of("2", 0), 3, &node, all)), "Granted");
        assert_eq!(told(taken.wish("b", of("3", 0), 2, &node, all)), DEFERRED);
        assert_eq!(told(taken.wish("c", of("2", 5), 2, &node, all)), DEFERRED);
        assert_eq!(told(taken.wish("d", of("2", 5), 2, &node, all)), "", "who is not here has no wishes");
        // What is only wished for takes no room from others.
        assert_eq!(taken.places["b"].asked.request("cpu"), 1000);
        assert_eq!(taken.wishing(), ["c", "b"]);
        taken.places.remove("a");
        assert_eq!(told(taken.answer("c", &node, all)), "Granted");
        assert_eq!(told(taken.answer("b", &node, all)), DEFERRED);
        assert_eq!(
            told(taken.wish("b", of("1", 0), 3, &node, all)),
            "Settled",
            "it has thought better of it"
        );
        assert_eq!(taken.wishing(), [""; 0]);
    }
}
