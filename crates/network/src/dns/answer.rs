//! From a query message to an answer out of the zone.

use std::net::IpAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record as Resource, RecordType};

use super::zone::{Found, Record, Zone};

/// Seconds that clients may keep an answer. Short: endpoints come and go.
const TTL: u32 = 5;

/// How many names of the cluster may stand for each other one after the other.
const ALIASES_MAX: usize = 8;

/// What is to be done with a query.
pub(super) enum Verdict {
    /// Send this.
    Answer(Box<Message>),
    /// Ask the host's resolvers; the answer begins with these records (an alias that leads outside).
    Forward(Vec<Resource>, Query),
}

/// Where a name belongs.
enum Place {
    Zone(Vec<String>),
    Reverse(IpAddr),
    Elsewhere,
}

/// Decides one query. `domain` is the cluster's domain in lower case without a final dot.
pub(super) fn decide(query: &Message, zone: &Zone, domain: &str) -> Verdict {
    let Some(mut question) = query.queries.first().cloned() else {
        return Verdict::Answer(Box::new(refuse(query, ResponseCode::FormErr)));
    };
    let mut aliases = Vec::new();
    while aliases.len() <= ALIASES_MAX {
        let found = match place(question.name(), domain) {
            Place::Elsewhere => return Verdict::Forward(aliases, question),
            Place::Zone(labels) => zone.lookup(&labels.iter().map(String::as_str).collect::<Vec<_>>()),
            Place::Reverse(ip) => match zone.reverse(ip) {
                // Addresses of others have names elsewhere.
                Found::NoName => return Verdict::Forward(aliases, question),
                found => found,
            },
        };
        if let Found::Records(records) = &found
            && let Some((alias, target)) = alias_of(records, &question)
        {
            aliases.push(alias);
            question = Query::query(target, question.query_type());
            continue;
        }
        return Verdict::Answer(Box::new(answer(query, aliases, &question, &found, domain)));
    }
    tracing::debug!(name = %question.name(), "Services of the type ExternalName name each other");
    Verdict::Answer(Box::new(refuse(query, ResponseCode::ServFail)))
}

/// What the zone says about `question`, to which `aliases` led. Source: RFC 6604 for the code of such an answer.
fn answer(query: &Message, aliases: Vec<Resource>, question: &Query, found: &Found, domain: &str) -> Message {
    let mut answer = respond(query);
    answer.metadata.authoritative = true;
    answer.add_answers(aliases);
    let before = answer.answers.len();
    match found {
        Found::NoName => answer.metadata.response_code = ResponseCode::NXDomain,
        Found::Records(records) => {
            answer.add_answers(records.iter().filter_map(|record| resource(record, question, domain)));
        }
    }
    if answer.answers.len() == before {
        answer.authorities.extend(soa(domain));
    }
    answer
}

/// An empty answer to a query, with its id, question and wish for recursion.
pub(super) fn respond(query: &Message) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries.clone_from(&query.queries);
    answer
}

/// An answer that says only why there is none.
pub(super) fn refuse(query: &Message, code: ResponseCode) -> Message {
    let mut answer = respond(query);
    answer.metadata.response_code = code;
    answer
}

fn place(name: &Name, domain: &str) -> Place {
    let text = name.to_ascii().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    if let Some(ip) = reverse_address(text) {
        return Place::Reverse(ip);
    }
    match text.strip_suffix(domain) {
        Some("") => Place::Zone(Vec::new()),
        Some(rest) if rest.ends_with('.') => {
            Place::Zone(rest[..rest.len() - 1].split('.').map(str::to_owned).collect())
        }
        _ => Place::Elsewhere,
    }
}

/// The address of a name below `in-addr.arpa` or `ip6.arpa`.
fn reverse_address(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let text: Vec<&str> = octets.split('.').rev().collect();
        return text.join(".").parse().ok();
    }
    let nibbles: String = name.strip_suffix(".ip6.arpa")?.split('.').rev().collect();
    if nibbles.len() != 32 || !nibbles.is_ascii() {
        return None;
    }
    let groups: Vec<&str> = (0..8).map(|group| &nibbles[group * 4..group * 4 + 4]).collect();
    groups.join(":").parse().ok()
}

fn alias_of(records: &[Record], question: &Query) -> Option<(Resource, Name)> {
    let [Record::Alias(target)] = records else { return None };
    if question.query_type() == RecordType::CNAME {
        return None;
    }
    let target = absolute(target)?;
    let data = RData::CNAME(CNAME(target.clone()));
    Some((Resource::from_rdata(question.name().clone(), TTL, data), target))
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_ascii(format!("{}.", name.trim_end_matches('.'))).ok()
}

/// The record in wire form, if it is of the type asked for.
fn resource(record: &Record, question: &Query, domain: &str) -> Option<Resource> {
    let any = question.query_type() == RecordType::ANY;
    let asked = |kind| any || question.query_type() == kind;
    let in_zone = |name: &str| absolute(&format!("{name}.{domain}"));
    let data = match record {
        Record::Address(IpAddr::V4(ip)) if asked(RecordType::A) => RData::A(A(*ip)),
        Record::Address(IpAddr::V6(ip)) if asked(RecordType::AAAA) => RData::AAAA(AAAA(*ip)),
        Record::Service(port, target) if asked(RecordType::SRV) => {
            RData::SRV(SRV::new(0, 100, *port, in_zone(target)?))
        }
        Record::Alias(target) if asked(RecordType::CNAME) => RData::CNAME(CNAME(absolute(target)?)),
        Record::Pointer(name) if asked(RecordType::PTR) => RData::PTR(PTR(in_zone(name)?)),
        Record::Text(text) if asked(RecordType::TXT) => RData::TXT(TXT::new(vec![text.clone()])),
        _ => return None,
    };
    Some(Resource::from_rdata(question.name().clone(), TTL, data))
}

/// The zone's SOA, which tells how long a "no" may be kept.
fn soa(domain: &str) -> Option<Resource> {
    let (zone, server) = (absolute(domain)?, absolute(&format!("ns.dns.{domain}"))?);
    let soa = SOA::new(server, absolute(&format!("hostmaster.{domain}"))?, 1, 7200, 1800, 86_400, TTL);
    Some(Resource::from_rdata(zone, TTL, RData::SOA(soa)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::{Key, Object};

    fn zone() -> Zone {
        let mut zone = Zone::default();
        let web = r#"{"metadata":{"name":"web","namespace":"a"},"spec":{"type":"ClusterIP","clusterIPs":["10.43.0.9"]}}"#;
        let web = Object::parse(web.into()).unwrap();
        zone.set_service(&Key::new("a", "web"), Some(&web));
        for (name, target) in [
            ("inside", "web.a.svc.cluster.local"),
            ("outside", "example.com"),
            ("itself", "itself.a.svc.cluster.local"),
        ] {
            let object = format!(
                r#"{{"metadata":{{"name":"{name}","namespace":"a"}},"spec":{{"type":"ExternalName","externalName":"{target}"}}}}"#
            );
            let object = Object::parse(object.into()).unwrap();
            zone.set_service(&object.key(), Some(&object));
        }
        zone
    }

    fn ask(name: &str, kind: RecordType) -> Verdict {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        decide(&query, &zone(), "cluster.local")
    }

    fn answer(name: &str, kind: RecordType) -> Message {
        match ask(name, kind) {
            Verdict::Answer(message) => *message,
            Verdict::Forward(..) => panic!("{name} was forwarded"),
        }
    }

    #[test]
    fn names_are_answered_whatever_their_case() {
        let found = answer("WEB.a.svc.Cluster.Local.", RecordType::A);
        assert_eq!(found.answers[0].data, RData::A(A([10, 43, 0, 9].into())));
        assert_eq!(found.metadata.response_code, ResponseCode::NoError);
    }

    #[test]
    fn no_name_and_no_data_carry_the_soa() {
        let none = answer("gone.a.svc.cluster.local.", RecordType::A);
        assert_eq!((none.metadata.response_code, none.authorities.len()), (ResponseCode::NXDomain, 1));
        let empty = answer("web.a.svc.cluster.local.", RecordType::AAAA);
        assert_eq!((empty.metadata.response_code, empty.authorities.len()), (ResponseCode::NoError, 1));
    }

    #[test]
    fn external_names_are_followed_inside_and_handed_on_outside() {
        let found = answer("inside.a.svc.cluster.local.", RecordType::A);
        assert_eq!(found.answers[0].data.to_string(), "web.a.svc.cluster.local.");
        assert_eq!(found.answers[1].data, RData::A(A([10, 43, 0, 9].into())));
        assert_eq!(found.answers[1].name.to_string(), "web.a.svc.cluster.local.");
        let Verdict::Forward(first, next) = ask("outside.a.svc.cluster.local.", RecordType::A) else {
            panic!("answered from the zone")
        };
        assert_eq!((first.len(), next.name().to_string().as_str()), (1, "example.com."));
        let circle = answer("itself.a.svc.cluster.local.", RecordType::A);
        assert_eq!(circle.metadata.response_code, ResponseCode::ServFail);
    }

    #[test]
    fn addresses_have_names_and_foreign_names_are_forwarded() {
        let found = answer("9.0.43.10.in-addr.arpa.", RecordType::PTR);
        assert_eq!(found.answers[0].data.to_string(), "web.a.svc.cluster.local.");
        for name in ["example.com.", "notcluster.local.", "1.2.3.4.in-addr.arpa.", "xcluster.local."] {
            assert!(matches!(ask(name, RecordType::A), Verdict::Forward(..)), "{name}");
        }
    }
}
