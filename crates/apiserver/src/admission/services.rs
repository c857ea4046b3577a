//! DenyServiceExternalIPs, which no chain has unless it is asked for: Services take no addresses of others.
//! Source: `plugin/pkg/admission/network/denyserviceexternalips`, CVE-2020-8554.

use std::collections::BTreeSet;

use api::Status;
use async_trait::async_trait;
use serde_json::Value;

use super::lifecycle::{forbidden, is};
use super::{Link, Operation, Review, World};
use crate::tree;

/// The link.
#[derive(Debug, Default, Clone, Copy)]
pub struct DenyServiceExternalIps;

#[async_trait]
impl Link for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn about(&self) -> &'static [(&'static str, &'static str)] {
        &[("", "services")]
    }

    async fn validate(
        &self,
        review: &Review<'_>,
        object: Option<&Value>,
        _: &dyn World,
    ) -> Result<(), Status> {
        let writes = matches!(review.operation, Operation::Create | Operation::Update);
        let Some(service) = object.filter(|_| writes && is(review, "", "services", "")) else {
            return Ok(());
        };
        if addresses(service).is_subset(&review.old.map(addresses).unwrap_or_default()) {
            return Ok(());
        }
        Err(forbidden(review, "Use of external IPs is denied by admission control."))
    }
}

fn addresses(service: &Value) -> BTreeSet<&str> {
    tree::items(service, &["spec", "externalIPs"]).iter().filter_map(Value::as_str).collect()
}
