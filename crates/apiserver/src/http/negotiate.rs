//! Content negotiation: which form the client wants, which form it sent. Pure. Source:
//! `apiserver/pkg/endpoints/handlers/negotiation`, whose parsing is `goautoneg`'s.

use std::cmp::Reverse;

use api::{Reason, Status, protobuf};

/// What objects are encoded in.
pub(super) const JSON: &str = "application/json";
pub(super) const YAML: &str = "application/yaml";

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// The object as it is.
    Plain,
    /// `meta.k8s.io` Table.
    Table,
    /// `PartialObjectMetadata`, or a list of them.
    Metadata,
}

/// The encoding of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

/// In the order in which the server prefers them.
const ENCODINGS: [(&str, Encoding); 3] =
    [(JSON, Encoding::Json), (YAML, Encoding::Yaml), (protobuf::MEDIA_TYPE, Encoding::Protobuf)];

/// What a resource can be answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offer {
    /// Its objects have a protobuf form; custom resources have none.
    pub(super) protobuf: bool,
    /// The answer is a stream of events, which YAML has no form for.
    pub(super) stream: bool,
    /// It can be shown as rows.
    pub(super) table: bool,
}

/// A form in an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Accepted {
    pub(super) form: Form,
    pub(super) encoding: Encoding,
    /// The `apiVersion` of tables and metadata.
    pub(super) meta_version: &'static str,
    /// Indented, for people.
    pub(super) pretty: bool,
}

impl Accepted {
    /// JSON as it is stored.
    pub(super) const PLAIN: Self =
        Self { form: Form::Plain, encoding: Encoding::Json, meta_version: META_V1, pretty: false };
}

const META_V1: &str = "meta.k8s.io/v1";

/// One clause of an `Accept` header: media type and parameters.
pub(super) struct Clause<'a> {
    pub(super) media: &'a str,
    /// In thousandths.
    quality: u32,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    fn parse(clause: &'a str) -> Self {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts.filter_map(|part| part.split_once('=')).collect();
        let quality = parameters.iter().find(|(name, _)| *name == "q");
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
        let quality = quality
            .and_then(|(_, value)| value.parse::<f32>().ok())
            .map_or(1000, |quality| (quality.clamp(0.0, 1.0) * 1000.0) as u32);
        Self { media, quality, parameters }
    }

    pub(super) fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }

    /// Ranges of types come after types.
    fn rank(&self) -> (Reverse<u32>, bool, bool) {
        (Reverse(self.quality), self.media.starts_with("*/"), self.media.ends_with("/*"))
    }

    fn takes(&self, media: &str) -> bool {
        self.media == media || matches!(self.media, "*/*" | "application/*")
    }

    /// Whether it asks for what there is as it is.
    pub(super) fn is_plain(&self) -> bool {
        ["as", "g", "v"].iter().all(|name| self.parameter(name).is_none())
    }

    /// Whether what it says of streams can be in this encoding: of YAML there are none.
    fn streams(&self, encoding: Encoding) -> bool {
        match self.parameter("stream") {
            None | Some("") => true,
            Some(stream) => stream == "watch" && encoding != Encoding::Yaml,
        }
    }

    /// The form that the clause asks for, with its `apiVersion`, if there is such a form in this encoding.
    fn form(&self, encoding: Encoding) -> Option<(Form, &'static str)> {
        let (Some(kind), group, version) = (self.parameter("as"), self.parameter("g"), self.parameter("v"))
        else {
            return self.is_plain().then_some((Form::Plain, META_V1));
        };
        let version = match (group, version) {
            (Some("meta.k8s.io"), Some("v1")) => META_V1,
            (Some("meta.k8s.io"), Some("v1beta1")) => "meta.k8s.io/v1beta1",
            _ => return None,
        };
        match kind {
            "Table" if encoding != Encoding::Protobuf => Some((Form::Table, version)),
            "PartialObjectMetadata" | "PartialObjectMetadataList" => Some((Form::Metadata, version)),
            _ => None,
        }
    }
}

/// The clauses of an `Accept` header, the most wanted first; what is not wanted at all (`q=0`) is none.
pub(super) fn clauses(accept: &str) -> impl Iterator<Item = Clause<'_>> {
    let mut clauses: Vec<_> = accept.split(',').map(Clause::parse).collect();
    clauses.retain(|clause| clause.quality > 0);
    clauses.sort_by_key(Clause::rank);
    clauses.into_iter()
}

/// The most wanted form and encoding that the server has; `None`: 406.
pub(super) fn accepted(accept: &str, offer: Offer) -> Option<Accepted> {
    if accept.trim().is_empty() {
        return Some(Accepted::PLAIN);
    }
    clauses(accept).find_map(|clause| {
        ENCODINGS.into_iter().filter(|(media, _)| clause.takes(media)).find_map(|(_, encoding)| {
            let (form, meta_version) = clause.form(encoding)?;
            let shown = form != Form::Table || offer.table;
            let spoken = encoding != Encoding::Protobuf || offer.protobuf || form == Form::Metadata;
            let fits =
                shown && spoken && clause.streams(encoding) && !(offer.stream && encoding == Encoding::Yaml);
            let pretty = clause.parameter("pretty") == Some("1");
            fits.then_some(Accepted { form, encoding, meta_version, pretty })
        })
    })
}

/// The encoding of the most wanted clause of those that ask for a document in the right way; `None`: 406. Who says
/// nothing takes JSON, if that is a right way.
pub(super) fn encoding(accept: &str, right: impl Fn(&Clause<'_>) -> bool) -> Option<Encoding> {
    let accept = if accept.trim().is_empty() { JSON } else { accept };
    // Upstream lets nobody choose the version of a group.
    let free = |clause: &Clause<'_>| clause.parameter("sv").is_none_or(str::is_empty);
    clauses(accept).filter(|clause| free(clause) && right(clause)).find_map(|clause| {
        let mut encodings = ENCODINGS.into_iter();
        let found = encodings.find(|(media, encoding)| clause.takes(media) && clause.streams(*encoding));
        found.map(|(_, encoding)| encoding)
    })
}

/// The 406 of a request that accepts nothing that there is.
pub(super) fn not_acceptable(stream: bool) -> Status {
    let types = if stream {
        format!("{JSON};stream=watch, {};stream=watch", protobuf::MEDIA_TYPE)
    } else {
        format!("{JSON}, {YAML}, {}", protobuf::MEDIA_TYPE)
    };
    Status::new(Reason::NotAcceptable, format!("only the following media types are accepted: {types}"))
}

/// The 415 of a body that is in none of these.
pub(super) fn unsupported(accepted: &[&str]) -> Status {
    let types = accepted.join(", ");
    Status::new(
        Reason::UnsupportedMediaType,
        format!("the body of the request was in an unknown format - accepted media types include: {types}"),
    )
}

/// Whether people read the answer: they say so, or their tool is known. Source: `negotiate.go`, `isPrettyPrint`.
pub(super) fn pretty(parameter: Option<&str>, user_agent: &str) -> bool {
    match parameter.filter(|value| !value.is_empty()) {
        Some(value) => matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"),
        None => ["curl", "Wget", "Mozilla/5.0"].iter().any(|tool| user_agent.starts_with(tool)),
    }
}

/// The media type of a `Content-Type` header, without parameters.
pub(super) fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILTIN: Offer = Offer { protobuf: true, stream: false, table: true };
    const CUSTOM: Offer = Offer { protobuf: false, stream: false, table: true };
    const WATCH: Offer = Offer { protobuf: true, stream: true, table: true };

    #[test]
    fn the_most_wanted_form_that_there_is_wins() {
        use Encoding::{Json, Protobuf, Yaml};
        use Form::{Metadata, Plain, Table};
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let go = "application/vnd.kubernetes.protobuf,application/json";
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        let cases = [
            ("", BUILTIN, Some((Plain, Json))),
            ("*/*", BUILTIN, Some((Plain, Json))),
            ("application/*", BUILTIN, Some((Plain, Json))),
            ("text/html", BUILTIN, None),
            ("text/html,*/*;q=0.8", BUILTIN, Some((Plain, Json))),
            ("application/yaml", BUILTIN, Some((Plain, Yaml))),
            ("application/json;q=0.1,application/yaml;q=0.9", BUILTIN, Some((Plain, Yaml))),
            ("*/*,application/yaml", BUILTIN, Some((Plain, Yaml))),
            ("application/yaml;q=0,*/*", BUILTIN, Some((Plain, Json))),
            ("application/cbor", BUILTIN, None),
            ("application/cbor,application/json", BUILTIN, Some((Plain, Json))),
            (kubectl, BUILTIN, Some((Table, Json))),
            (go, BUILTIN, Some((Plain, Protobuf))),
            (go, CUSTOM, Some((Plain, Json))),
            (protobuf::MEDIA_TYPE, CUSTOM, None),
            (metadata, CUSTOM, Some((Metadata, Protobuf))),
            ("application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", BUILTIN, None),
            ("application/json;as=Table;g=meta.k8s.io", BUILTIN, None),
            ("application/json;as=Nothing;g=meta.k8s.io;v=v1", BUILTIN, None),
            ("application/yaml", WATCH, None),
            ("application/vnd.kubernetes.protobuf;stream=watch", WATCH, Some((Plain, Protobuf))),
        ];
        for (accept, offer, wanted) in cases {
            let found = accepted(accept, offer).map(|accepted| (accepted.form, accepted.encoding));
            assert_eq!(found, wanted, "{accept} {offer:?}");
        }
        assert_eq!(accepted(kubectl, BUILTIN).unwrap().meta_version, "meta.k8s.io/v1");
        let old = "application/json;as=Table;v=v1beta1;g=meta.k8s.io;pretty=1";
        let old = accepted(old, BUILTIN).unwrap();
        assert!(old.pretty && old.meta_version == "meta.k8s.io/v1beta1");
    }

    #[test]
    fn people_get_indented_answers() {
        assert!(pretty(Some("true"), "") && pretty(None, "curl/8.0") && pretty(Some(""), "Wget/1"));
        assert!(
            !pretty(Some("false"), "curl/8.0") && !pretty(None, "kubectl/v1.37") && !pretty(Some("yes"), "")
        );
    }
}
