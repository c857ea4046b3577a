//! Content negotiation: which form the client wants, which form it sent. Pure.

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The object as it is.
    Plain,
    /// `meta.k8s.io` Table.
    Table,
    /// `PartialObjectMetadata`, or a list of them.
    Metadata,
}

/// The encoding of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Json,
    Yaml,
}

/// A form in an encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Accepted {
    pub(super) form: Form,
    pub(super) encoding: Encoding,
}

/// One clause of an `Accept` header: media type and parameters.
pub(super) struct Clause<'a> {
    pub(super) media: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    pub(super) fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
    }
}

/// The clauses of an `Accept` header in the client's order (quality values only exclude: `q=0`).
pub(super) fn clauses(accept: &str) -> impl Iterator<Item = Clause<'_>> {
    accept
        .split(',')
        .map(|clause| {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            Clause { media, parameters: parts.filter_map(|part| part.split_once('=')).collect() }
        })
        .filter(|clause| clause.parameter("q") != Some("0"))
}

/// The first form and encoding that the server has; `None`: 406.
pub(super) fn accepted(accept: &str) -> Option<Accepted> {
    if accept.trim().is_empty() {
        return Some(Accepted { form: Form::Plain, encoding: Encoding::Json });
    }
    clauses(accept).find_map(|clause| {
        let encoding = match clause.media {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => return None,
        };
        let form = match (clause.parameter("as"), clause.parameter("g")) {
            (None, _) => Form::Plain,
            (Some("Table"), Some("meta.k8s.io")) => Form::Table,
            (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), Some("meta.k8s.io")) => {
                Form::Metadata
            }
            _ => return None,
        };
        let versioned = matches!(clause.parameter("v"), None | Some("v1" | "v1beta1"));
        (form == Form::Plain || versioned).then_some(Accepted { form, encoding })
    })
}

/// The media type of a `Content-Type` header, without parameters.
pub(super) fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_clause_that_can_be_served_wins() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accepted(kubectl).unwrap().form, Form::Table);
        let protobuf = "application/vnd.kubernetes.protobuf,application/json";
        assert_eq!(accepted(protobuf), Some(Accepted { form: Form::Plain, encoding: Encoding::Json }));
        assert_eq!(accepted("application/yaml").unwrap().encoding, Encoding::Yaml);
        assert_eq!(accepted("text/html"), None);
        assert!(accepted("").is_some() && accepted("*/*").is_some());
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
        assert_eq!(accepted(metadata).unwrap().form, Form::Metadata);
    }
}
