//! What the containers of a pod are allotted, which need not be what the API asks for at the moment: a pod can be resized
//! while it runs. Source: KEP-1287, `pkg/kubelet/allocation`.

mod allocation;
mod shown;

pub(crate) use allocation::Allocation;
pub(crate) use shown::shown;
