//! Everything that is not an object: version, discovery, OpenAPI, token keys, health.

use std::net::SocketAddr;

use api::connect::Body;
use api::openapi::{V2_PROTOBUF, V2_PROTOBUF_OLD, V3_PROTOBUF, V3_PROTOBUF_OLD};
use api::{Reason, Status};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use super::body::{compress, takes_gzip, text};
use super::kept::{self, Document};
use super::negotiate::{self, Clause, Encoding, JSON, clauses};
use super::respond::{encoded, mark_packed, typed_response};
use super::{Front, Parts};
use crate::aggregation;
use crate::strategy::View as _;
use crate::words::documents;

const TEXT: &str = "text/plain; charset=utf-8";

/// What the server runs on, in Go's words.
pub(super) const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

impl Front {
    pub(super) async fn document(&self, parts: &Parts<'_>) -> Result<http::Response<Body>, Status> {
        if let Some(response) = self.health(parts).await {
            return Ok(response);
        }
        let segments: Vec<&str> = parts.path.split('/').filter(|segment| !segment.is_empty()).collect();
        let reads = matches!(*parts.method, Method::GET | Method::HEAD);
        if !reads && self.is_routed(&segments) {
            return Err(Status::new(
                Reason::MethodNotAllowed,
                "the server does not allow this method on the requested resource",
            ));
        }
        match self.found(parts, &segments).await {
            // Below what is routed, upstream's router answers; elsewhere nobody does.
            Err(status) if status.code == 404 && !self.is_routed(&segments) => Ok(nothing_here()),
            answer => answer,
        }
    }

    async fn found(&self, parts: &Parts<'_>, segments: &[&str]) -> Result<http::Response<Body>, Status> {
        let (rows, remotes) = (self.pipeline.catalog().rows(), self.aggregator.remotes());
        let (catalog, remotes) = (&*rows, &*remotes);
        let tokens = self.pipeline.tokens();
        let accept = text(parts.headers, header::ACCEPT);
        match segments {
            [] | ["index.html"] => json_document(parts, &documents::root(catalog, remotes)),
            ["metrics"] => Ok(self.metrics_page().await),
            ["debug", "api_priority_and_fairness", what] => {
                let details = parts.query.get("includeRequestDetails").is_some_and(|said| !said.is_empty());
                let table = self.flow.dump(what, details).ok_or_else(not_found)?;
                Ok(typed_response(StatusCode::OK, "text/plain; charset=utf-8", table))
            }
            // Indented whoever asks, as upstream's.
            ["version"] => etagged(parts, JSON, format!("{:#}", self.version()).into()),
            ["api" | "apis"] => {
                let core = segments[0] == "api";
                match negotiate::encoding(accept, is_aggregated) {
                    Some(encoding) => {
                        let make = || documents::aggregated(catalog, remotes, core);
                        self.aggregated(parts, segments[0], encoding, make).await
                    }
                    None if core => discovery(parts, Some(documents::core_versions(&self.address()))),
                    None => discovery(parts, Some(documents::groups(catalog, remotes))),
                }
            }
            ["apis", group] => discovery(parts, documents::group(catalog, remotes, group)),
            ["api", version] => discovery(parts, documents::resources(catalog, "", version)),
            ["apis", group, version] => discovery(parts, documents::resources(catalog, group, version)),
            ["openapi", "v2"] => self.openapi_v2(parts).await,
            ["openapi", "v3"] => {
                let make = || {
                    let mut index = api::openapi::v3_index(catalog, self.release());
                    aggregation::into_index(&mut index, remotes);
                    one("openapi/v3", Some(index))
                };
                self.kept(parts, JSON, "openapi/v3", make).await
            }
            ["openapi", "v3", rest @ ..] => self.openapi_v3(parts, &rest.join("/")).await,
            [".well-known", "openid-configuration"] => json_document(
                parts,
                &json!({
                    "issuer": tokens.issuer(),
                    "jwks_uri": format!("{}/openid/v1/jwks", tokens.issuer()),
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["ES256"],
                }),
            ),
            ["openid", "v1", "jwks"] => {
                let keys = Bytes::from(tokens.jwks().to_string());
                Ok(typed_response(StatusCode::OK, "application/jwk-set+json", keys))
            }
            _ => Err(not_found()),
        }
    }

    /// Whether upstream's router has routes below a path, which are all for reading: it says so where nothing fits. Below
    /// `/apis` those are of the groups that this server has by itself. Source: `director.ServeHTTP` of
    /// `apiserver/pkg/server/handler.go`, the web services of `endpoints/discovery` and of `server/routes`.
    fn is_routed(&self, segments: &[&str]) -> bool {
        match segments {
            ["apis", group, ..] => {
                let rows = self.pipeline.catalog().rows();
                rows.rows().any(|row| row.group == *group && row.custom.is_none())
            }
            ["api" | "apis" | "version", ..] => true,
            [".well-known", "openid-configuration"] | ["openid", ..] => true,
            _ => false,
        }
    }

    /// A document of OpenAPI version 3. Under its hash it never changes; under another it is found elsewhere. As
    /// protobuf it has the tag of its JSON. Source: `HandleGroupVersion` of `kube-openapi/pkg/handler3`, and `kube-aggregator`'s, which
    /// answers 404 where there is none.
    async fn openapi_v3(&self, parts: &Parts<'_>, path: &str) -> Result<http::Response<Body>, Status> {
        let rows = self.pipeline.catalog().rows();
        let Some(hash) = api::openapi::v3_hash(&rows, path, self.release()) else {
            return Ok(typed_response(StatusCode::NOT_FOUND, TEXT, Bytes::new()));
        };
        let accept = text(parts.headers, header::ACCEPT);
        let wanted = clauses(accept).find_map(|clause| match clause.media {
            V3_PROTOBUF | V3_PROTOBUF_OLD => Some(V3_PROTOBUF),
            JSON | "application/*" | "*/*" | "*/json" => Some(JSON),
            _ => None,
        });
        let Some(media) = wanted.or(accept.is_empty().then_some(JSON)) else {
            return Ok(typed_response(StatusCode::NOT_ACCEPTABLE, TEXT, Bytes::new()));
        };
        let asked = parts.query.get("hash").filter(|asked| !asked.is_empty());
        if asked.is_some_and(|asked| asked != hash) {
            let mut moved = typed_response(StatusCode::MOVED_PERMANENTLY, JSON, Bytes::new());
            let to = HeaderValue::try_from(format!("/openapi/v3/{path}?hash={hash}"));
            moved.headers_mut().extend(to.ok().map(|to| (header::LOCATION, to)));
            moved.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
            return Ok(moved);
        }
        let name = format!("openapi/v3/{path} {media}");
        let make = || {
            let tree = api::openapi::v3(&rows, path, self.release()).ok_or_else(not_found)?;
            let json = Document::json(&tree)?;
            let document = match media {
                JSON => json,
                _ => Document::plain(&api::openapi::v3_protobuf(&tree))?.with_tag_of(&json),
            };
            Ok(vec![(name.clone(), document)])
        };
        let mut response = self.kept(parts, media, &name, make).await?;
        if asked.is_some() {
            let headers = response.headers_mut();
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
            headers.extend(in_a_year(self.pipeline.now()).map(|expires| (header::EXPIRES, expires)));
        }
        Ok(response)
    }

    async fn openapi_v2(&self, parts: &Parts<'_>) -> Result<http::Response<Body>, Status> {
        let accept = text(parts.headers, header::ACCEPT);
        // The first that the client names and the server has.
        let wanted = clauses(accept).find_map(|clause| match clause.media {
            V2_PROTOBUF | V2_PROTOBUF_OLD => Some(V2_PROTOBUF),
            JSON | "*/*" | "application/*" => Some(JSON),
            _ => None,
        });
        if wanted.is_none() && !accept.is_empty() {
            let says = "OpenAPI v2 is served as application/json and as protobuf";
            return Err(Status::new(Reason::NotAcceptable, says));
        }
        let media = wanted.unwrap_or(JSON);
        // The tree is by far the largest part of the work: both forms are made of one.
        let make = || {
            let mut tree = api::openapi::v2(&self.pipeline.catalog().rows(), self.release());
            aggregation::into_document(&mut tree, &self.aggregator.remotes());
            let protobuf = Document::plain(&api::openapi::v2_protobuf(&tree))?;
            Ok(vec![(JSON.to_owned(), Document::json(&tree)?), (V2_PROTOBUF.to_owned(), protobuf)])
        };
        self.kept(parts, media, media, make).await
    }

    /// Aggregated discovery of a path (`api`, `apis`). In each encoding it has the tag of its JSON; clients may keep it.
    /// Source: `apiserver/pkg/endpoints/discovery/aggregated/etag.go`.
    async fn aggregated(
        &self,
        parts: &Parts<'_>,
        path: &str,
        encoding: Encoding,
        tree: impl FnOnce() -> Value,
    ) -> Result<http::Response<Body>, Status> {
        let name = format!("{path} {encoding:?}");
        let make = || {
            let tree = tree();
            let json = Document::json(&tree)?;
            let document = match encoding {
                Encoding::Json => json,
                _ => {
                    let (_, bytes) = encoded(encoding, tree.to_string().into())?;
                    Document::plain(&bytes)?.with_tag_of(&json)
                }
            };
            Ok(vec![(name.clone(), document)])
        };
        let mut response = self.kept(parts, aggregated_media_type(encoding), &name, make).await?;
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
        Ok(response)
    }

    /// Answers with a document that is kept under a name, and made where it is not.
    async fn kept(
        &self,
        parts: &Parts<'_>,
        media: &'static str,
        name: &str,
        make: impl FnOnce() -> Result<Vec<(String, Document)>, Status>,
    ) -> Result<http::Response<Body>, Status> {
        let made_of = (&self.pipeline.catalog().rows(), &*self.aggregator.remotes());
        let document = self.documents.find(made_of, name, make).await?.ok_or_else(not_found)?;
        tagged(parts, media, &document.etag, |gzip| document.sent(gzip))
    }

    /// Where clients that are not told otherwise reach the server.
    fn address(&self) -> String {
        let bootstrap = self.bootstrap.lock();
        bootstrap
            .addresses
            .first()
            .map_or_else(String::new, |address| SocketAddr::new(*address, bootstrap.port).to_string())
    }

    /// `v1.37.0`: the version without Skiff's own part.
    fn release(&self) -> &str {
        self.git_version.split('+').next().unwrap_or_default()
    }

    fn version(&self) -> Value {
        json!({
            "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
            "minCompatibilityMajor": "1", "minCompatibilityMinor": "36", "gitVersion": self.git_version, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
            "platform": PLATFORM,
        })
    }
}

/// When a year has passed, as HTTP writes it.
fn in_a_year(now: jiff::Timestamp) -> Option<HeaderValue> {
    let expires = now.checked_add(jiff::SignedDuration::from_hours(365 * 24)).ok()?;
    HeaderValue::try_from(expires.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()).ok()
}

/// What is answered where nothing is. Source: Go's `http.NotFound`.
pub(super) fn nothing_here() -> http::Response<Body> {
    let mut response = typed_response(StatusCode::NOT_FOUND, TEXT, "404 page not found\n");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn not_found() -> Status {
    Status::new(Reason::NotFound, "the server could not find the requested resource")
}

fn json_document(parts: &Parts<'_>, value: &Value) -> Result<http::Response<Body>, Status> {
    etagged(parts, JSON, value.to_string().into())
}

/// A document of discovery that names one group or version, or all of them.
fn discovery(parts: &Parts<'_>, value: Option<Value>) -> Result<http::Response<Body>, Status> {
    let mut value = value.ok_or_else(not_found)?;
    let encoding = negotiate::encoding(text(parts.headers, header::ACCEPT), |clause| clause.is_plain())
        .ok_or_else(|| negotiate::not_acceptable(false))?;
    if encoding == Encoding::Protobuf {
        // As text `APIVersions` says no version; on the wire everything has one.
        value["apiVersion"] = "v1".into();
    }
    let (media, body) = encoded(encoding, value.to_string().into())?;
    etagged(parts, media, body)
}

/// A document that is made, if there is one, under its name.
fn one(name: &str, value: Option<Value>) -> Result<Vec<(String, Document)>, Status> {
    let made = value.map(|value| Document::json(&value)).transpose()?;
    Ok(made.map(|document| (name.to_owned(), document)).into_iter().collect())
}

/// A document with its digest as ETag; 304 where the client has it.
fn etagged(parts: &Parts<'_>, media: &'static str, body: Bytes) -> Result<http::Response<Body>, Status> {
    let etag = kept::tag(&Sha512::digest(&body));
    tagged(parts, media, &etag, |gzip| Ok(compress(body, gzip)))
}

fn tagged(
    parts: &Parts<'_>,
    media: &'static str,
    etag: &str,
    body: impl FnOnce(bool) -> Result<(Bytes, bool), Status>,
) -> Result<http::Response<Body>, Status> {
    let known = text(parts.headers, header::IF_NONE_MATCH) == etag;
    let (code, (body, packed)) = if known {
        (StatusCode::NOT_MODIFIED, (Bytes::new(), false))
    } else {
        (StatusCode::OK, body(takes_gzip(parts.headers))?)
    };
    let mut response = typed_response(code, media, body);
    if let Ok(value) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if packed {
        mark_packed(&mut response);
    }
    Ok(response)
}

/// Whether a clause asks for aggregated discovery; plain ones are passed over. Upstream has its first version
/// (`v2beta1`) no more. Source: `discovery/aggregated/negotiation.go`.
fn is_aggregated(clause: &Clause<'_>) -> bool {
    ["as", "g", "v"].map(|name| clause.parameter(name))
        == [Some("APIGroupDiscoveryList"), Some("apidiscovery.k8s.io"), Some("v2")]
}

fn aggregated_media_type(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Json => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        Encoding::Yaml => "application/yaml;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        Encoding::Protobuf => {
            "application/vnd.kubernetes.protobuf;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated_discovery_goes_before_plain() {
        let list = |media: &str, version: &str| {
            format!("{media};as=APIGroupDiscoveryList;g=apidiscovery.k8s.io;v={version}")
        };
        let (json, protobuf) = ("application/json", "application/vnd.kubernetes.protobuf");
        for (accept, wanted) in [
            (list(json, "v2"), Some(Encoding::Json)),
            (list("*/*", "v2"), Some(Encoding::Json)),
            (list(protobuf, "v2"), Some(Encoding::Protobuf)),
            (list("application/yaml", "v2"), Some(Encoding::Yaml)),
            (format!("{},{}", list(protobuf, "v2"), list(json, "v2")), Some(Encoding::Protobuf)),
            (format!("{};q=0.5,{}", list(protobuf, "v2"), list(json, "v2")), Some(Encoding::Json)),
            (format!("{json},{}", list(json, "v2")), Some(Encoding::Json)),
            (format!("{};profile=nopeer", list(protobuf, "v2")), Some(Encoding::Protobuf)),
            (format!("{};stream=watch", list(protobuf, "v2")), Some(Encoding::Protobuf)),
            (format!("{};stream=watch", list("application/yaml", "v2")), None),
            (format!("{};sv=v1", list(json, "v2")), None),
            (format!("{},{json}", list(json, "v2beta1")), None),
            (format!("{json};g=apidiscovery.k8s.io;v=v2"), None),
            (list("text/plain", "v2"), None),
            (json.to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(negotiate::encoding(&accept, is_aggregated), wanted, "{accept}");
        }
    }
}
