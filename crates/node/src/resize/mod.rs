//! What the containers of a pod are allotted, which need not be what the API asks for at the moment: a pod can be resized
//! while it runs. What it asks for is granted by the door (`admission`), noted, and brought about by the pod's worker
//! (`worker::resize`). Source: KEP-1287, `pkg/kubelet/allocation`.

mod allocation;
mod progress;
mod shown;
mod steps;

pub(crate) use allocation::Allocation;
pub(crate) use progress::{
    Answer, DEFERRED, IN_PROGRESS, INFEASIBLE, PENDING, Progress, Resized, Told, message,
};
pub(crate) use shown::shown;
pub(crate) use steps::{Steps, group_limits, memory_refusal, steps};
