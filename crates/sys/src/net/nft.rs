//! nftables as data: a [`Transaction`] is a list of operations on one table, carried out whole or not at all.

use std::time::Duration;

use super::NetError;
use super::message::{Messages, attribute, attributes};
use super::nft_wire::{self, GET_SET_ELEMENT, encode, table_name};
use super::socket::{ACK, DUMP, REQUEST, Socket};

/// A 32-bit register; a longer value fills those that follow. There are 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reg(pub u8);

/// Where a base chain is called from. Numbers as in `linux/netfilter.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrived, before routing.
    Prerouting = 0,
    /// Packets for this host.
    Input = 1,
    /// Packets passing through.
    Forward = 2,
    /// Packets of this host's processes.
    Output = 3,
    /// Packets about to leave.
    Postrouting = 4,
}

/// What a base chain may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainType {
    /// Let through or not.
    Filter,
    /// Translate addresses: called for the first packet of a connection only.
    Nat,
}

/// A chain, called from a hook or from other chains only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Its place, for a base chain: type, hook and priority.
    pub base: Option<(ChainType, Hook, i32)>,
}

/// A set's or map's key or value: its type as `nft` shows it, and its length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Type {
    /// `nft`'s number of the type; components of a concatenation take 6 bits each.
    pub number: u32,
    /// Length in bytes; components of a concatenation are padded to 4.
    pub len: u32,
}

impl Type {
    /// An IPv4 address.
    pub const ADDRESS: Self = Self { number: 7, len: 4 };
    /// A transport protocol.
    pub const PROTOCOL: Self = Self { number: 12, len: 4 };
    /// A port.
    pub const PORT: Self = Self { number: 13, len: 4 };
    /// A number of our own, in the machine's byte order (shown as a packet mark).
    pub const NUMBER: Self = Self { number: 19, len: 4 };

    /// The concatenation of `parts`.
    pub fn concat(parts: &[Self]) -> Self {
        parts.iter().fold(Self { number: 0, len: 0 }, |all, part| Self {
            number: all.number << 6 | part.number,
            len: all.len + part.len,
        })
    }
}

/// What a map's elements hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Nothing: it is a set.
    None,
    /// Data of a type.
    Data(Type),
    /// What to do with the packet.
    Verdict,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: Type,
    /// Its elements' values.
    pub value: Value,
    /// Elements have time-outs, and rules may add some; at most this many.
    pub dynamic_max: Option<u32>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Discard it silently.
    Drop,
    /// Let it pass this hook.
    Accept,
    /// Go on in a chain and come back.
    Jump(String),
    /// Go on in a chain and do not come back.
    Goto(String),
    /// Back to the calling chain.
    Return,
}

/// The value of one element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ElementValue {
    /// None: of a set.
    None,
    /// Data.
    Data(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Its key, components padded to 4 bytes.
    pub key: Vec<u8>,
    /// Its value; ignored where elements are removed.
    pub value: ElementValue,
}

/// What to read of a packet beside its headers. Numbers as in `linux/netfilter/nf_tables.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meta {
    /// Name of the interface that it came in by, 16 bytes.
    InputName = 6,
    /// Name of the interface that it leaves by, 16 bytes.
    OutputName = 7,
    /// Transport protocol.
    Protocol = 16,
}

/// What to read of a packet's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ct {
    /// State: bit 0 invalid, 1 established, 2 related, 3 new.
    State = 0,
    /// Direction: 0 original, 1 reply.
    Direction = 1,
    /// Status: bit 5 destination translated.
    Status = 2,
}

/// A header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// The network header.
    Network = 1,
    /// The transport header.
    Transport = 2,
}

/// How a packet is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP destination unreachable, this code.
    Icmp(u8),
    /// TCP reset.
    TcpReset,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Loads something about the packet.
    Meta(Meta, Reg),
    /// Loads something about its connection.
    Ct(Ct, Reg),
    /// Loads bytes of a header: offset and length.
    Payload(Header, u32, u32, Reg),
    /// Loads constant bytes.
    Immediate(Vec<u8>, Reg),
    /// Goes on only if the register holds these bytes (`true`) or others (`false`).
    Cmp(Reg, bool, Vec<u8>),
    /// Masks the register in place.
    Mask(Reg, Vec<u8>),
    /// Goes on only if the set holds the key.
    InSet(String, Reg),
    /// Goes on only if the map holds the key; loads its data.
    Map(String, Reg, Reg),
    /// Does what the map says for the key.
    VerdictMap(String, Reg),
    /// Loads a random number below the bound.
    Random(u32, Reg),
    /// Loads the type of the source (`true`) or destination address, as the routing table has it (2: local).
    AddressType(bool, Reg),
    /// Adds the key in the register to a dynamic set, or renews the time-out of the one that is there.
    Remember(String, Reg, Duration),
    /// Translates the destination: address and port registers.
    DestinationNat(Reg, Reg),
    /// Translates the source: address register.
    SourceNat(Reg),
    /// Translates the source to an address of the interface that the packet leaves by.
    Masquerade,
    /// Turns the packet away.
    Reject(Reject),
    /// Counts packets and bytes.
    Counter,
    /// Decides.
    Verdict(Verdict),
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Makes the table, or finds it.
    AddTable,
    /// Removes the table and all in it.
    DeleteTable,
    /// Makes a chain, or finds it.
    AddChain(Chain),
    /// Removes all rules of a chain.
    FlushChain(String),
    /// Removes a chain, which must be empty and called from nowhere.
    DeleteChain(String),
    /// Adds a rule at the end of a chain.
    AddRule(String, Vec<Expr>),
    /// Makes a set or map, or finds it.
    AddSet(Set),
    /// Removes a set or map that no rule uses, and all in it.
    DeleteSet(String),
    /// Adds elements.
    AddElements(String, Vec<Element>),
    /// Adds keys to a set with time-outs; those that are there stay as they are.
    AddExpiring(String, Vec<Vec<u8>>, Duration),
    /// Removes elements, which must be there.
    DeleteElements(String, Vec<Element>),
}

/// Operations on one table of the family `ip`, all or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// The table.
    pub table: String,
    /// What happens, in order.
    pub ops: Vec<Op>,
}

/// nftables of one network namespace.
pub trait Nftables: Send + Sync + 'static {
    /// Carries out a transaction: when this returns, packets meet the new rules.
    fn apply(&self, transaction: &Transaction) -> Result<(), NetError>;
    /// The keys of a set's or map's elements.
    fn keys(&self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, NetError>;
}

/// [`Nftables`] by the kernel.
#[derive(Debug)]
pub struct NftablesSocket {
    socket: Socket,
}

impl NftablesSocket {
    /// A handle on the network namespace of the calling thread, wherever it is used later.
    pub fn open() -> Result<Self, NetError> {
        Ok(Self { socket: Socket::open(Some(rustix::net::netlink::NETFILTER))? })
    }
}

impl Nftables for NftablesSocket {
    fn apply(&self, transaction: &Transaction) -> Result<(), NetError> {
        if transaction.ops.is_empty() {
            return Ok(());
        }
        let what = format!("change nftables table ip {}", transaction.table);
        let (out, last) = encode(transaction);
        self.socket.request_batch(&out, last, &what)
    }

    fn keys(&self, table: &str, set: &str) -> Result<Vec<Vec<u8>>, NetError> {
        let mut out = Messages::default();
        nft_wire::begin(&mut out, GET_SET_ELEMENT, REQUEST | ACK | DUMP);
        table_name(&mut out, table).string(nft_wire::SET_ELEMENTS_SET, set);
        out.end();
        let mut keys = Vec::new();
        self.socket.dump(&out, &format!("list set {set}"), |body| {
            let list = body.get(4..).and_then(|body| attribute(body, nft_wire::SET_ELEMENTS_LIST));
            for (_, element) in attributes(list.unwrap_or_default()) {
                let key = attribute(element, nft_wire::ELEMENT_KEY)
                    .and_then(|key| attribute(key, nft_wire::DATA_VALUE));
                keys.extend(key.map(<[u8]>::to_vec));
            }
        })?;
        Ok(keys)
    }
}
