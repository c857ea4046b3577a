//! The fixed part of the table, and the chains that balance over a given count of endpoints.

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use sys::net::nft::{
    Chain, ChainType, Ct, Element, ElementValue, Expr, Header, Hook, Meta, Op, Reg, Reject, Set, SetOp, Type,
    Value, Verdict,
};

use crate::ranges::Ranges;

/// Frontends for everybody: address . protocol . port → number . class. A node port has the address 0.0.0.0.
pub const FRONTENDS: &str = "frontends";
/// Frontends for traffic from outside the cluster, where it is treated differently; looked at first.
pub const EXTERNAL: &str = "external";
/// Class → chain.
pub const CLASSES: &str = "classes";
/// Number . index → address . port.
pub const ENDPOINTS: &str = "endpoints";
/// Number . address . port of endpoints that keep their clients.
pub const KEPT: &str = "kept";
/// Client . number → address . port, until the time-out.
pub const AFFINITY: &str = "affinity";
/// Address . the same address of endpoints on this node, which may reach themselves through a Service.
pub const HAIRPIN: &str = "hairpin";

/// Addresses of pods that are about to be signalled: what their clients send is held back for a moment.
pub const PAUSED: &str = "paused";

/// How many pods are signalled at once at most; for more, nothing is held back.
const PAUSED_MAX: u32 = 65_536;
/// How many clients are remembered at once, over all Services.
const AFFINITY_MAX: u32 = 65_536;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;
const PORT_UNREACHABLE: u8 = 3;
/// `IFNAMSIZ`: names are compared whole, with the zeros after them.
const INTERFACE_NAME: usize = 16;
/// `PSH` among the flags of a TCP header, in its 14th byte: the packet ends what its sender had to say.
const TCP_FLAGS: u32 = 13;
const TCP_PUSH: u8 = 8;
const CT_NEW: u32 = 8;
const CT_TRANSLATED: u32 = 1 << 5;
const LOCAL: u32 = 2;
/// `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`, `NF_IP_PRI_RAW`, `NF_IP_PRI_FILTER`.
const BEFORE_ROUTING: i32 = -100;
const BEFORE_LEAVING: i32 = 100;
const BEFORE_TRACKING: i32 = -300;
const FILTER: i32 = 0;

/// What the fixed part depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fixed {
    /// The table's name.
    pub table: String,
    /// The bridge's name: where the routes to the cluster's ranges lead that no sandbox or node has a better one for.
    pub bridge: String,
    /// The gateway of this node's pods, an address of the host.
    pub gateway: Ipv4Addr,
    /// The cluster's ranges.
    pub ranges: Ranges,
    /// The pods of this node.
    pub node_pods: Ipv4Net,
    /// Whether forwarding was off before Skiff turned it on: then nothing but Skiff's traffic is forwarded.
    pub guard_forwarding: bool,
}

/// What happens to a new connection to a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// There is no endpoint: the client is told.
    Reject,
    /// There is no endpoint on this node, and only such may be used: upstream says to stay silent.
    Drop,
    /// Balance over the endpoints.
    Balance {
        /// The map that the frontend is in.
        external: bool,
        /// Whether the frontend is a node port.
        node_port: bool,
        /// How many endpoints there are.
        count: u32,
        /// How long a client keeps its endpoint, in seconds.
        affinity_s: Option<u32>,
    },
}

impl Class {
    /// The chain's name.
    pub fn chain(&self) -> String {
        match self {
            Self::Reject => "reject".into(),
            Self::Drop => "drop".into(),
            Self::Balance { external, node_port, count, affinity_s } => {
                let kind = match (external, node_port) {
                    (false, false) => "address",
                    (false, true) => "node-port",
                    (true, false) => "external-address",
                    (true, true) => "external-node-port",
                };
                let keep = affinity_s.map(|s| format!("-keep-{s}")).unwrap_or_default();
                format!("{kind}-{count}{keep}")
            }
        }
    }

    /// Makes the class's chain and tells the kernel its number.
    pub fn ops(&self, number: u32) -> Vec<Op> {
        let chain = self.chain();
        let mut ops = vec![Op::AddChain(Chain { name: chain.clone(), base: None })];
        ops.extend(self.rules().into_iter().map(|rule| Op::AddRule(chain.clone(), rule)));
        let element = Element {
            key: number.to_ne_bytes().to_vec(),
            value: ElementValue::Verdict(Verdict::Goto(chain)),
        };
        ops.push(Op::AddElements(CLASSES.into(), vec![element]));
        ops
    }

    fn rules(&self) -> Vec<Vec<Expr>> {
        match *self {
            Self::Reject => reject(&[]),
            Self::Drop => vec![vec![Expr::Verdict(Verdict::Drop)]],
            Self::Balance { external, node_port, count, affinity_s } => {
                let map = if external { EXTERNAL } else { FRONTENDS };
                let mut load = frontend(map, node_port);
                let Some(seconds) = affinity_s else {
                    load.extend(pick(count));
                    load.push(Expr::DestinationNat(Reg(6), Reg(7)));
                    return vec![load];
                };
                load.push(source(Reg(3)));
                affinity(&load, count, Duration::from_secs(u64::from(seconds)))
            }
        }
    }
}

/// Registers in every rule about a frontend: 0 to 2 its key, 3 the client, 4 the number, 5 the class.
fn frontend(map: &str, node_port: bool) -> Vec<Expr> {
    let address = if node_port { Expr::Immediate(vec![0; 4], Reg(0)) } else { destination(Reg(0)) };
    vec![
        address,
        Expr::Meta(Meta::Protocol, Reg(1)),
        Expr::Payload(Header::Transport, 2, 2, Reg(2)),
        Expr::Map(map.into(), Reg(0), Reg(4)),
    ]
}

/// A random endpoint of the number in register 4: address and port into 6 and 7.
fn pick(count: u32) -> [Expr; 2] {
    [Expr::Random(count, Reg(5)), Expr::Map(ENDPOINTS.into(), Reg(4), Reg(6))]
}

/// A client that was here before goes where it went, if that endpoint still serves; else its entry is forgotten and
/// it gets another one.
fn affinity(load: &[Expr], count: u32, timeout: Duration) -> Vec<Vec<Expr>> {
    let rule = |rest: &[Expr]| [load, rest].concat();
    let update = |data| Expr::Dynamic(SetOp::Update, AFFINITY.into(), Reg(3), data, timeout);
    let remembered = rule(&[
        Expr::Map(AFFINITY.into(), Reg(3), Reg(5)),
        Expr::InSet(KEPT.into(), Reg(4)),
        update(Reg(5)),
        Expr::DestinationNat(Reg(5), Reg(6)),
    ]);
    let forget = rule(&[
        Expr::Map(AFFINITY.into(), Reg(3), Reg(6)),
        Expr::Dynamic(SetOp::Delete, AFFINITY.into(), Reg(3), Reg(6), timeout),
    ]);
    let [random, endpoint] = pick(count);
    let fresh = rule(&[random, endpoint, update(Reg(6)), Expr::DestinationNat(Reg(6), Reg(7))]);
    vec![remembered, forget, fresh]
}

/// Makes the table anew with everything that does not depend on Services. What another version of the table held is
/// gone in the same transaction.
pub fn fixed(config: &Fixed) -> Vec<Op> {
    let mut ops = vec![Op::AddTable, Op::DeleteTable, Op::AddTable];
    ops.extend(sets().into_iter().map(Op::AddSet));
    let mut chain = |name: &str, kind, hook, priority, rules: Vec<Vec<Expr>>| {
        ops.push(Op::AddChain(Chain { name: name.into(), base: Some((kind, hook, priority)) }));
        ops.extend(rules.into_iter().map(|rule| Op::AddRule(name.into(), rule)));
    };
    chain("prerouting-early", ChainType::Filter, Hook::Prerouting, BEFORE_TRACKING, early_rules());
    chain("prerouting", ChainType::Nat, Hook::Prerouting, BEFORE_ROUTING, arriving_rules(config));
    chain("output-nat", ChainType::Nat, Hook::Output, BEFORE_ROUTING, own_rules(config));
    chain("postrouting", ChainType::Nat, Hook::Postrouting, BEFORE_LEAVING, leaving_rules(config));
    chain("pausing", ChainType::Filter, Hook::Postrouting, FILTER, vec![pausing_rule()]);
    chain("input", ChainType::Filter, Hook::Input, FILTER, input_rules(config));
    chain("forward", ChainType::Filter, Hook::Forward, FILTER, forward_rules(config));
    chain("output", ChainType::Filter, Hook::Output, FILTER, output_rules(config));
    ops
}

fn sets() -> Vec<Set> {
    let key = Type::concat(&[Type::ADDRESS, Type::PROTOCOL, Type::PORT]);
    let pair = Type::concat(&[Type::NUMBER, Type::NUMBER]);
    let endpoint = Type::concat(&[Type::ADDRESS, Type::PORT]);
    let set = |name: &str, key, value| Set { name: name.into(), key, value, dynamic_max: None };
    vec![
        set(FRONTENDS, key, Value::Data(pair)),
        set(EXTERNAL, key, Value::Data(pair)),
        set(CLASSES, Type::NUMBER, Value::Verdict),
        set(ENDPOINTS, pair, Value::Data(endpoint)),
        set(KEPT, Type::concat(&[Type::NUMBER, Type::ADDRESS, Type::PORT]), Value::None),
        Set {
            name: AFFINITY.into(),
            key: Type::concat(&[Type::ADDRESS, Type::NUMBER]),
            value: Value::Data(endpoint),
            dynamic_max: Some(AFFINITY_MAX),
        },
        set(HAIRPIN, Type::concat(&[Type::ADDRESS, Type::ADDRESS]), Value::None),
        Set { name: PAUSED.into(), key: Type::ADDRESS, value: Value::None, dynamic_max: Some(PAUSED_MAX) },
    ]
}

/// The host's sides of sandboxes route this host's loopback addresses, for node ports on localhost; no sandbox may make
/// use of that.
fn early_rules() -> Vec<Vec<Expr>> {
    let loopback = within(destination(Reg(0)), &loopback(), true);
    vec![[&sandbox(Meta::InputName, true)[..], &loopback, &[Expr::Verdict(Verdict::Drop)]].concat()]
}

/// Requests to a pod that is being paused are dropped: their senders send them again. Whatever opens, acknowledges or
/// ends a connection passes.
fn pausing_rule() -> Vec<Expr> {
    let flags = [
        Expr::Payload(Header::Transport, TCP_FLAGS, 1, Reg(0)),
        Expr::Mask(Reg(0), vec![TCP_PUSH]),
        Expr::Cmp(Reg(0), true, vec![TCP_PUSH]),
    ];
    let from_client = [Expr::Ct(Ct::Direction, Reg(0)), Expr::Cmp(Reg(0), true, vec![0])];
    let paused = [destination(Reg(0)), Expr::InSet(PAUSED.into(), Reg(0))];
    [&paused[..], &transport(TCP), &from_client, &flags, &[Expr::Verdict(Verdict::Drop)]].concat()
}

fn arriving_rules(config: &Fixed) -> Vec<Vec<Expr>> {
    let from_outside = within(source(Reg(0)), &config.ranges.pods, false);
    vec![
        [&from_outside[..], &dispatch(EXTERNAL, false)].concat(),
        dispatch(FRONTENDS, false),
        [&from_outside[..], &to_this_host(config), &dispatch(EXTERNAL, true)].concat(),
        [&to_this_host(config)[..], &dispatch(FRONTENDS, true)].concat(),
    ]
}

fn own_rules(config: &Fixed) -> Vec<Vec<Expr>> {
    vec![dispatch(FRONTENDS, false), [&to_this_host(config)[..], &dispatch(FRONTENDS, true)].concat()]
}

fn dispatch(map: &str, node_port: bool) -> Vec<Expr> {
    let mut rule = frontend(map, node_port);
    rule.push(Expr::VerdictMap(CLASSES.into(), Reg(5)));
    rule
}

/// Who leaves under another address: a pod that reaches itself; a pod that goes beyond the cluster; what came from
/// outside and was sent on to another machine, whose answer has to come back this way.
fn leaving_rules(config: &Fixed) -> Vec<Vec<Expr>> {
    let masquerade = [Expr::Masquerade];
    // Chosen, not masqueraded: the host's side of a sandbox has no address of its own.
    let as_gateway = [Expr::Immediate(config.gateway.octets().to_vec(), Reg(0)), Expr::SourceNat(Reg(0))];
    let pods = &config.ranges.pods;
    let remote_source =
        [Expr::AddressType(true, Reg(0)), Expr::Cmp(Reg(0), false, LOCAL.to_ne_bytes().to_vec())];
    vec![
        [&[source(Reg(0)), destination(Reg(1)), Expr::InSet(HAIRPIN.into(), Reg(0))][..], &as_gateway]
            .concat(),
        [&within(source(Reg(0)), &loopback(), true)[..], &sandbox(Meta::OutputName, true), &as_gateway]
            .concat(),
        [
            &within(source(Reg(0)), pods, true)[..],
            &within(destination(Reg(0)), pods, true),
            &[Expr::Verdict(Verdict::Return)],
        ]
        .concat(),
        [&within(source(Reg(0)), &config.node_pods, true)[..], &masquerade].concat(),
        [
            &translated()[..],
            &within(destination(Reg(0)), &config.node_pods, false),
            &remote_source,
            &masquerade,
        ]
        .concat(),
    ]
}

/// The address of DNS is this host's; nothing but DNS is to be had there.
fn input_rules(config: &Fixed) -> Vec<Vec<Expr>> {
    let to_dns = is(destination(Reg(0)), config.ranges.dns());
    let fresh = [
        Expr::Ct(Ct::State, Reg(0)),
        Expr::Mask(Reg(0), CT_NEW.to_ne_bytes().to_vec()),
        Expr::Cmp(Reg(0), false, vec![0; 4]),
    ];
    let mut rules = Vec::new();
    for protocol in [TCP, UDP] {
        let port = [
            Expr::Payload(Header::Transport, 2, 2, Reg(0)),
            Expr::Cmp(Reg(0), false, DNS_PORT.to_be_bytes().to_vec()),
        ];
        let matching = [&to_dns[..], &fresh, &transport(protocol), &port].concat();
        rules.push([matching, vec![refusal(protocol)]].concat());
    }
    rules
}

fn forward_rules(config: &Fixed) -> Vec<Vec<Expr>> {
    let mut rules = unserved(config);
    if config.guard_forwarding {
        rules.push(
            [
                &sandbox(Meta::InputName, false)[..],
                &sandbox(Meta::OutputName, false),
                &[
                    Expr::Ct(Ct::Status, Reg(0)),
                    Expr::Mask(Reg(0), CT_TRANSLATED.to_ne_bytes().to_vec()),
                    Expr::Cmp(Reg(0), true, vec![0; 4]),
                    Expr::Verdict(Verdict::Drop),
                ],
            ]
            .concat(),
        );
    }
    rules
}

/// As for packets that pass through; but where one of the host's own was translated, this hook is still told the way
/// that it would have taken before.
fn output_rules(config: &Fixed) -> Vec<Vec<Expr>> {
    let untranslated = [&translated()[..2], &[Expr::Cmp(Reg(0), true, vec![0; 4])]].concat();
    unserved(config).into_iter().map(|rule| [&untranslated[..], &rule].concat()).collect()
}

/// A packet that leaves by the bridge, which has no ports, is for an address of pods, Services or balancers that
/// nobody serves: it stays on the machine, and its sender is told.
fn unserved(config: &Fixed) -> Vec<Vec<Expr>> {
    let mut name = config.bridge.as_bytes().to_vec();
    name.resize(INTERFACE_NAME, 0);
    reject(&[Expr::Meta(Meta::OutputName, Reg(0)), Expr::Cmp(Reg(0), true, name)])
}

fn reject(matching: &[Expr]) -> Vec<Vec<Expr>> {
    vec![[matching, &transport(TCP), &[refusal(TCP)]].concat(), [matching, &[refusal(UDP)]].concat()]
}

fn refusal(protocol: u8) -> Expr {
    Expr::Reject(if protocol == TCP { Reject::TcpReset } else { Reject::Icmp(PORT_UNREACHABLE) })
}

fn source(to: Reg) -> Expr {
    Expr::Payload(Header::Network, 12, 4, to)
}

fn destination(to: Reg) -> Expr {
    Expr::Payload(Header::Network, 16, 4, to)
}

fn loopback() -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8)
}

fn is(load: Expr, address: Ipv4Addr) -> Vec<Expr> {
    vec![load, Expr::Cmp(Reg(0), true, address.octets().to_vec())]
}

/// Whether the address that `load` puts into register 0 is (or is not) in a network.
fn within(load: Expr, network: &Ipv4Net, inside: bool) -> Vec<Expr> {
    vec![
        load,
        Expr::Mask(Reg(0), network.netmask().octets().to_vec()),
        Expr::Cmp(Reg(0), inside, network.network().octets().to_vec()),
    ]
}

fn transport(protocol: u8) -> [Expr; 2] {
    [Expr::Meta(Meta::Protocol, Reg(0)), Expr::Cmp(Reg(0), true, vec![protocol])]
}

/// Whether the packet is for an address of this host, other than that of cluster DNS: who publishes port 53 does not
/// become the cluster's resolver.
fn to_this_host(config: &Fixed) -> Vec<Expr> {
    let local = [Expr::AddressType(false, Reg(0)), Expr::Cmp(Reg(0), true, LOCAL.to_ne_bytes().to_vec())];
    [&within(destination(Reg(0)), &config.ranges.services, false)[..], &local].concat()
}

/// Whether the destination of the packet's connection was translated.
fn translated() -> [Expr; 3] {
    [
        Expr::Ct(Ct::Status, Reg(0)),
        Expr::Mask(Reg(0), CT_TRANSLATED.to_ne_bytes().to_vec()),
        Expr::Cmp(Reg(0), false, vec![0; 4]),
    ]
}

/// Whether the interface is the host's side of a sandbox, by the beginning of its name.
fn sandbox(key: Meta, is: bool) -> [Expr; 2] {
    [Expr::Meta(key, Reg(0)), Expr::Cmp(Reg(0), is, crate::sandbox::PREFIX.as_bytes().to_vec())]
}
