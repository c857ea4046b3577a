//! Extenders as a configuration names them. Shape: `kubescheduler.config.k8s.io/v1` `Extender`.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Identity, Url};
use serde::Deserialize;

use super::Extender;
use super::address::Address;
use crate::config::check::Problems;

/// So long an extender may take. Source: `DefaultExtenderTimeout`.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct ExtenderFile {
    url_prefix: String,
    filter_verb: String,
    preempt_verb: String,
    prioritize_verb: String,
    weight: i64,
    pub(crate) bind_verb: String,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<TlsFile>,
    http_timeout: Option<String>,
    node_cache_capable: bool,
    pub(crate) managed_resources: Vec<ManagedFile>,
    ignorable: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct ManagedFile {
    pub(crate) name: String,
    /// Whether the scheduler does not count it by itself.
    pub(crate) ignored_by_scheduler: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct TlsFile {
    insecure: bool,
    server_name: String,
    cert_file: String,
    key_file: String,
    ca_file: String,
    cert_data: String,
    key_data: String,
    ca_data: String,
}

/// What a file or the data in its place says; nothing if there is neither.
fn contents(file: &str, data: &str) -> Result<Option<Vec<u8>>, String> {
    if !data.is_empty() {
        return STANDARD.decode(data).map(Some).map_err(|error| format!("no base64: {error}"));
    }
    if file.is_empty() {
        return Ok(None);
    }
    std::fs::read(file).map(Some).map_err(|error| format!("{file}: {error}"))
}

impl ExtenderFile {
    /// The extender, with what is wrong with it told. Source: `validateExtenders`, `makeTransport`.
    pub(crate) fn read(self, at: &str, problems: &mut Problems) -> Option<Extender> {
        if !self.prioritize_verb.is_empty() && self.weight <= 0 {
            let why = "must have a positive weight applied to it";
            problems.invalid(&format!("{at}.weight"), &self.weight.to_string(), why);
        }
        for (number, managed) in self.managed_resources.iter().enumerate() {
            let at = format!("{at}.managedResources[{number}].name");
            problems.label_name(&at, &managed.name);
            if !crate::resources::is_extended(&managed.name) {
                problems.invalid(&at, &format!("{:?}", managed.name), "is an invalid extended resource name");
            }
        }
        let timeout = match self.http_timeout.as_deref().map(str::parse::<jiff::SignedDuration>) {
            None => TIMEOUT,
            Some(Ok(timeout)) => {
                Duration::try_from(timeout).ok().filter(|it| !it.is_zero()).unwrap_or(TIMEOUT)
            }
            Some(Err(error)) => {
                problems.add(&format!("{at}.httpTimeout"), &error.to_string());
                TIMEOUT
            }
        };
        match self.client(timeout) {
            Ok((http, address)) => Some(Extender {
                http,
                address,
                url: self.url_prefix,
                filter: self.filter_verb,
                prioritize: self.prioritize_verb,
                preempt: self.preempt_verb,
                bind: self.bind_verb,
                weight: self.weight,
                knows_nodes: self.node_cache_capable,
                managed: self.managed_resources.into_iter().map(|managed| managed.name).collect(),
                ignorable: self.ignorable,
                timeout,
            }),
            Err(why) => {
                problems.add(&format!("{at}.tlsConfig"), &why);
                None
            }
        }
    }

    /// The name that the extender's certificate has to bear, where it is not the host of its URL; without TLS none counts.
    fn address(&self, name: &str) -> Result<Option<Address>, String> {
        let url: Option<Url> = self.url_prefix.parse().ok().filter(|url: &Url| url.scheme() == "https");
        url.filter(|_| !name.is_empty()).map(|url| Address::new(url, name)).transpose()
    }

    fn client(&self, timeout: Duration) -> Result<(reqwest::Client, Option<Address>), String> {
        let mut builder = reqwest::Client::builder()
            .connect_timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("skiff/", env!("CARGO_PKG_VERSION")));
        let none = TlsFile::default();
        let tls = self.tls_config.as_ref().unwrap_or(&none);
        let address = self.address(&tls.server_name)?;
        if let Some(address) = &address {
            builder = address.reached(builder);
        }
        let authorities = contents(&tls.ca_file, &tls.ca_data)?;
        let believes_all = tls.insecure || (self.enable_https && authorities.is_none());
        if let Some(pem) = authorities {
            let certificates =
                Certificate::from_pem_bundle(&pem).map_err(|error| base::error::chain(&error))?;
            builder = builder.tls_certs_only(certificates);
        }
        if believes_all {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let certificate = contents(&tls.cert_file, &tls.cert_data)?;
        match (certificate, contents(&tls.key_file, &tls.key_data)?) {
            (Some(certificate), Some(key)) => {
                let pem = [certificate, b"\n".to_vec(), key].concat();
                let identity = Identity::from_pem(&pem).map_err(|error| base::error::chain(&error))?;
                builder = builder.identity(identity);
            }
            (None, None) => {}
            _ => return Err("certificate and key belong together".to_owned()),
        }
        let http = builder.build().map_err(|error| base::error::chain(&error))?;
        Ok((http, address))
    }
}

/// All extenders; those that can be done without are asked last. Source: `buildExtenders`.
pub(crate) fn read_all(files: Vec<ExtenderFile>, problems: &mut Problems) -> Vec<Extender> {
    let binders = files.iter().filter(|file| !file.bind_verb.is_empty()).count();
    if binders > 1 {
        let found = format!("\"found {binders} extenders implementing bind\"");
        problems.invalid("extenders", &found, "only one extender can implement bind");
    }
    let mut seen: Vec<String> = Vec::new();
    for (number, file) in files.iter().enumerate() {
        for (at, managed) in file.managed_resources.iter().enumerate() {
            if seen.contains(&managed.name) {
                let field = format!("extenders[{number}].managedResources[{at}].name");
                problems.invalid(
                    &field,
                    &format!("{:?}", managed.name),
                    "duplicate extender managed resource name",
                );
            }
            seen.push(managed.name.clone());
        }
    }
    let read = files.into_iter().enumerate();
    let mut extenders: Vec<Extender> =
        read.filter_map(|(number, file)| file.read(&format!("extenders[{number}]"), problems)).collect();
    extenders.sort_by_key(|extender| extender.ignorable);
    extenders
}
