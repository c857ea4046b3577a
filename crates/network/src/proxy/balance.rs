//! Where a new connection to a frontend goes: the maps of frontends and endpoints, and the chains that choose.
//!
//! A frontend leads to a chain. The chain for n endpoints draws a number below n, and the frontend's own fields with
//! that number are the key of an endpoint; all frontends of a kind with n endpoints share it. Where clients keep their
//! endpoint, the frontends have a chain of their own that names the endpoints, each with the set of its clients.
//!
//! No key is made of another map's result: `nft` up to 1.0.6 cannot show such a rule and aborts.

use std::net::SocketAddrV4;
use std::time::Duration;

use sys::net::nft::{Chain, Element, ElementValue, Expr, Header, Meta, Op, Reg, Set, Type, Value, Verdict};

use super::desired::Frontend;
use super::table::{destination, reject, source};

/// How many clients of one endpoint are remembered at once.
const CLIENTS_MAX: u32 = 65_536;

/// Kinds of frontends: each has a map of frontends and one of their endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// For traffic from outside the cluster, where it is treated differently; looked at first.
    pub external: bool,
    /// A port of every address of this node.
    pub node_port: bool,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self { external: false, node_port: false },
        Self { external: false, node_port: true },
        Self { external: true, node_port: false },
        Self { external: true, node_port: true },
    ];

    /// The kind of a frontend.
    pub fn of(frontend: &Frontend) -> Self {
        Self { external: frontend.external, node_port: frontend.address.is_none() }
    }

    /// The map of frontends: \[address .\] protocol . port → chain.
    pub fn frontends(self) -> &'static str {
        match (self.external, self.node_port) {
            (false, false) => "addresses",
            (false, true) => "node-ports",
            (true, false) => "external-addresses",
            (true, true) => "external-node-ports",
        }
    }

    /// The map of endpoints: \[address .\] protocol . port . index → address . port.
    pub fn endpoints(self) -> &'static str {
        match (self.external, self.node_port) {
            (false, false) => "address-endpoints",
            (false, true) => "node-port-endpoints",
            (true, false) => "external-address-endpoints",
            (true, true) => "external-node-port-endpoints",
        }
    }

    /// Both maps, empty.
    pub fn maps(self) -> [Set; 2] {
        let fields = [Type::ADDRESS, Type::PROTOCOL, Type::PORT, Type::NUMBER];
        let fields = if self.node_port { &fields[1..] } else { &fields[..] };
        let map = |name: &str, key: &[Type], value| Set {
            name: name.into(),
            key: Type::concat(key),
            value,
            dynamic_max: None,
        };
        let endpoint = Value::Data(Type::concat(&[Type::ADDRESS, Type::PORT]));
        [
            map(self.frontends(), &fields[..fields.len() - 1], Value::Verdict),
            map(self.endpoints(), fields, endpoint),
        ]
    }

    /// Loads the packet's key in the map of frontends, from register 0 on; and the register after it.
    fn key(self) -> (Vec<Expr>, Reg) {
        let protocol = |to| Expr::Meta(Meta::Protocol, to);
        let port = |to| Expr::Payload(Header::Transport, 2, 2, to);
        if self.node_port {
            (vec![protocol(Reg(0)), port(Reg(1))], Reg(2))
        } else {
            (vec![destination(Reg(0)), protocol(Reg(1)), port(Reg(2))], Reg(3))
        }
    }
}

/// Goes on in the chain of the packet's frontend, if it has one of this kind.
pub fn dispatch(kind: Kind) -> Vec<Expr> {
    let (mut rule, _) = kind.key();
    rule.push(Expr::VerdictMap(kind.frontends().into(), Reg(0)));
    rule
}

/// The key of a frontend in its kind's map.
pub fn frontend_key(frontend: &Frontend) -> Vec<u8> {
    let address = frontend.address.map(|address| address.octets());
    let rest = [[frontend.protocol, 0, 0, 0], padded(frontend.port)];
    address.into_iter().chain(rest).flatten().collect()
}

/// One endpoint of a frontend, by index, as an element of its kind's map.
pub fn endpoint_element(frontend: &Frontend, index: usize, endpoint: &SocketAddrV4) -> Element {
    let value = [endpoint.ip().octets(), padded(endpoint.port())].concat();
    Element { key: endpoint_key(frontend, index), value: ElementValue::Data(value) }
}

/// The key of a frontend's endpoint.
pub fn endpoint_key(frontend: &Frontend, index: usize) -> Vec<u8> {
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    [frontend_key(frontend), index.to_ne_bytes().to_vec()].concat()
}

/// What happens to a new connection to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// There is no endpoint: the client is told.
    Reject,
    /// There is no endpoint on this node, and only such may be used: upstream says to stay silent.
    Drop,
    /// Any of this many endpoints.
    Balance(Kind, usize),
    /// The endpoint that the client had before, of the group with this number.
    Keep(u32),
}

impl Target {
    /// The chain's name.
    pub fn chain(&self) -> String {
        match self {
            Self::Reject => "no-endpoint".into(),
            Self::Drop => "no-local-endpoint".into(),
            Self::Balance(kind, count) => format!("{}-{count}", kind.frontends()),
            Self::Keep(number) => format!("keep-{number}"),
        }
    }

    /// A frontend that leads here, as an element of its kind's map.
    pub fn element(&self, frontend: &Frontend) -> Element {
        Element { key: frontend_key(frontend), value: ElementValue::Verdict(Verdict::Goto(self.chain())) }
    }

    /// Makes the chain, where frontends of many Services share it. It is never removed.
    pub fn make_shared(&self) -> Vec<Op> {
        let rules = match *self {
            Self::Reject => reject(&[]),
            Self::Drop => vec![vec![Expr::Verdict(Verdict::Drop)]],
            Self::Balance(kind, count) => vec![balance(kind, count)],
            Self::Keep(_) => return Vec::new(),
        };
        chain(&self.chain(), rules)
    }
}

fn balance(kind: Kind, count: usize) -> Vec<Expr> {
    let (mut rule, index) = kind.key();
    rule.extend([
        random(count, index),
        Expr::Map(kind.endpoints().into(), Reg(0), Reg(4)),
        Expr::DestinationNat(Reg(4), Reg(5)),
    ]);
    rule
}

/// The endpoints of one group whose clients keep theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep<'a> {
    /// The group's number.
    pub number: u32,
    /// Its endpoints.
    pub endpoints: &'a [SocketAddrV4],
    /// How long after its last connection a client is remembered.
    pub timeout_s: u32,
}

impl Keep<'_> {
    fn chain(&self) -> String {
        Target::Keep(self.number).chain()
    }

    fn clients(&self, endpoint: &SocketAddrV4) -> String {
        format!("keep-{}-{}-{}", self.number, endpoint.ip(), endpoint.port())
    }

    /// Makes the chain, or makes it anew if there was one; clients of endpoints that stay are not forgotten.
    pub fn make(&self, before: Option<Self>) -> Vec<Op> {
        let mut ops: Vec<_> = before.iter().map(|before| Op::FlushChain(before.chain())).collect();
        let held = before.map_or(&[][..], |before| before.endpoints);
        ops.extend(self.endpoints.iter().filter(|endpoint| !held.contains(endpoint)).map(|endpoint| {
            Op::AddSet(Set {
                name: self.clients(endpoint),
                key: Type::ADDRESS,
                value: Value::None,
                dynamic_max: Some(CLIENTS_MAX),
            })
        }));
        ops.extend(chain(&self.chain(), self.rules()));
        ops
    }

    /// Removes what is not in `now`. No rule and no frontend uses it any more.
    pub fn remove(&self, now: Option<Self>) -> Vec<Op> {
        let kept = now.map_or(&[][..], |now| now.endpoints);
        let gone = self.endpoints.iter().filter(|endpoint| !kept.contains(endpoint));
        let chain = || [Op::FlushChain(self.chain()), Op::DeleteChain(self.chain())];
        let chain = now.is_none().then(chain).into_iter().flatten();
        chain.chain(gone.map(|endpoint| Op::DeleteSet(self.clients(endpoint)))).collect()
    }

    /// A client that is remembered goes where it went; another one to any endpoint, each with the same chance.
    fn rules(&self) -> Vec<Vec<Expr>> {
        let count = self.endpoints.len();
        let remembered = self.endpoints.iter().map(|endpoint| {
            let known = [source(Reg(0)), Expr::InSet(self.clients(endpoint), Reg(0))];
            [&known[..], &self.send(endpoint)].concat()
        });
        let fresh = self.endpoints.iter().enumerate().map(|(index, endpoint)| {
            let left = count - index;
            let drawn = [random(left, Reg(0)), Expr::Cmp(Reg(0), true, vec![0; 4])];
            let drawn = if left == 1 { &[][..] } else { &drawn[..] };
            [drawn, &[source(Reg(0))], &self.send(endpoint)].concat()
        });
        remembered.chain(fresh).collect()
    }

    /// Remembers the client in register 0 and sends it to an endpoint.
    fn send(&self, endpoint: &SocketAddrV4) -> [Expr; 4] {
        let timeout = Duration::from_secs(u64::from(self.timeout_s));
        [
            Expr::Remember(self.clients(endpoint), Reg(0), timeout),
            Expr::Immediate(endpoint.ip().octets().to_vec(), Reg(1)),
            Expr::Immediate(endpoint.port().to_be_bytes().to_vec(), Reg(2)),
            Expr::DestinationNat(Reg(1), Reg(2)),
        ]
    }
}

fn chain(name: &str, rules: Vec<Vec<Expr>>) -> Vec<Op> {
    let made = Op::AddChain(Chain { name: name.into(), base: None });
    [made].into_iter().chain(rules.into_iter().map(|rule| Op::AddRule(name.into(), rule))).collect()
}

fn random(below: usize, to: Reg) -> Expr {
    Expr::Random(u32::try_from(below).unwrap_or(u32::MAX), to)
}

fn padded(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}
