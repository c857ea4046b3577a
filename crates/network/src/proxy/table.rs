//! The fixed part of the table: what does not depend on Services.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use sys::net::nft::{
    Chain, ChainType, Ct, Expr, Header, Hook, Meta, Op, Reg, Reject, Set, Type, Value, Verdict,
};

use super::balance::{Kind, dispatch};
use crate::ranges::Ranges;

/// Address . the same address of endpoints on this node, which may reach themselves through a Service.
pub const HAIRPIN: &str = "hairpin";

/// Addresses of pods that are about to be signalled: what their clients send is held back for a moment.
pub const PAUSED: &str = "paused";

/// How many pods are signalled at once at most; for more, nothing is held back.
const PAUSED_MAX: u32 = 65_536;
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
    let hairpin = Type::concat(&[Type::ADDRESS, Type::ADDRESS]);
    let own = [
        Set { name: HAIRPIN.into(), key: hairpin, value: Value::None, dynamic_max: None },
        Set { name: PAUSED.into(), key: Type::ADDRESS, value: Value::None, dynamic_max: Some(PAUSED_MAX) },
    ];
    Kind::ALL.into_iter().flat_map(Kind::maps).chain(own).collect()
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
    let to_this_host = to_this_host(config);
    vec![
        [&from_outside[..], &dispatch(Kind { external: true, node_port: false })].concat(),
        dispatch(Kind { external: false, node_port: false }),
        [&from_outside[..], &to_this_host, &dispatch(Kind { external: true, node_port: true })].concat(),
        [&to_this_host[..], &dispatch(Kind { external: false, node_port: true })].concat(),
    ]
}

fn own_rules(config: &Fixed) -> Vec<Vec<Expr>> {
    vec![
        dispatch(Kind { external: false, node_port: false }),
        [&to_this_host(config)[..], &dispatch(Kind { external: false, node_port: true })].concat(),
    ]
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

pub(super) fn reject(matching: &[Expr]) -> Vec<Vec<Expr>> {
    vec![[matching, &transport(TCP), &[refusal(TCP)]].concat(), [matching, &[refusal(UDP)]].concat()]
}

fn refusal(protocol: u8) -> Expr {
    Expr::Reject(if protocol == TCP { Reject::TcpReset } else { Reject::Icmp(PORT_UNREACHABLE) })
}

pub(super) fn source(to: Reg) -> Expr {
    Expr::Payload(Header::Network, 12, 4, to)
}

pub(super) fn destination(to: Reg) -> Expr {
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
