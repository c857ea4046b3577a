//! A transaction in nf_tables' wire format. Source: `linux/netfilter/nf_tables.h`.

use std::time::Duration;

use super::message::Messages;
use super::nft::{
    Chain, ChainType, Element, ElementValue, Expr, Op, Reject, Set, Transaction, Value, Verdict,
};
use super::socket::{ACK, APPEND, CREATE, REQUEST};

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEW_TABLE: u16 = 0;
const DEL_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const DEL_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const DEL_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const DEL_SET: u16 = 11;
const NEW_SET_ELEMENT: u16 = 12;
pub(super) const GET_SET_ELEMENT: u16 = 13;
const DEL_SET_ELEMENT: u16 = 14;

const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const SET_DESCRIPTION_SIZE: u16 = 1;
const SET_ELEMENTS_TABLE: u16 = 1;
pub(super) const SET_ELEMENTS_SET: u16 = 2;
pub(super) const SET_ELEMENTS_LIST: u16 = 3;
pub(super) const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_TIMEOUT: u16 = 4;
const LIST_ELEMENT: u16 = 1;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
const VERDICT_TYPE: u32 = 0xffff_ff00;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;

const SET_IS_MAP: u32 = 8;
const SET_HAS_TIMEOUT: u32 = 0x10;
const SET_IS_DYNAMIC: u32 = 0x20;

const DYNSET_UPDATE: u32 = 1;

const FAMILY_IPV4: u8 = 2;
const REG_VERDICT: u32 = 0;
const REG32_FIRST: u32 = 8;

/// How many elements one message holds: the attribute around them may not exceed 65,535 bytes.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// The messages of a transaction, and the sequence number of the last one that is acknowledged.
pub(super) fn encode(transaction: &Transaction) -> (Messages, u32) {
    let mut out = Messages::default();
    // `struct nfgenmsg`: family, version, and here the subsystem that the batch is for.
    let batch = [0, 0, 0, u8::try_from(SUBSYSTEM).unwrap_or(0)];
    out.begin(BATCH_BEGIN, REQUEST, &batch);
    out.end();
    for op in &transaction.ops {
        operation(&mut out, &transaction.table, op);
    }
    out.flag_last(ACK);
    let last = out.count();
    out.begin(BATCH_END, REQUEST, &batch);
    out.end();
    (out, last)
}

/// Begins a message of the nf_tables subsystem for the family `ip`.
pub(super) fn begin(out: &mut Messages, kind: u16, flags: u16) {
    out.begin(SUBSYSTEM << 8 | kind, flags, &[FAMILY_IPV4, 0, 0, 0]);
}

/// The table's name, which has the same number in every message.
pub(super) fn table_name<'a>(out: &'a mut Messages, table: &str) -> &'a mut Messages {
    out.string(TABLE_NAME, table)
}

fn operation(out: &mut Messages, table: &str, op: &Op) {
    match op {
        Op::AddTable => {
            begin(out, NEW_TABLE, REQUEST | CREATE);
            out.string(TABLE_NAME, table);
        }
        Op::DeleteTable => {
            begin(out, DEL_TABLE, REQUEST);
            out.string(TABLE_NAME, table);
        }
        Op::AddChain(chain) => add_chain(out, table, chain),
        Op::FlushChain(chain) => {
            begin(out, DEL_RULE, REQUEST);
            out.string(RULE_TABLE, table).string(RULE_CHAIN, chain);
        }
        Op::DeleteChain(chain) => {
            begin(out, DEL_CHAIN, REQUEST);
            out.string(CHAIN_TABLE, table).string(CHAIN_NAME, chain);
        }
        Op::AddRule(chain, expressions) => {
            begin(out, NEW_RULE, REQUEST | CREATE | APPEND);
            out.string(RULE_TABLE, table).string(RULE_CHAIN, chain);
            out.nest(RULE_EXPRESSIONS, |out| expressions.iter().for_each(|expr| expression(out, expr)));
        }
        Op::AddSet(set) => add_set(out, table, set),
        Op::DeleteSet(set) => {
            begin(out, DEL_SET, REQUEST);
            out.string(SET_TABLE, table).string(SET_NAME, set);
        }
        Op::AddElements(set, elements) => {
            return element_messages(out, table, set, elements, NEW_SET_ELEMENT, REQUEST | CREATE);
        }
        Op::AddExpiring(set, keys, timeout) => {
            return expiring_elements(out, table, set, keys, *timeout);
        }
        Op::DeleteElements(set, elements) => {
            return element_messages(out, table, set, elements, DEL_SET_ELEMENT, REQUEST);
        }
    }
    out.end();
}

fn add_chain(out: &mut Messages, table: &str, chain: &Chain) {
    begin(out, NEW_CHAIN, REQUEST | CREATE);
    out.string(CHAIN_TABLE, table).string(CHAIN_NAME, &chain.name);
    if let Some((kind, hook, priority)) = chain.base {
        out.nest(CHAIN_HOOK, |out| {
            out.be32(HOOK_NUMBER, hook as u32).attr(HOOK_PRIORITY, &priority.to_be_bytes());
        });
        out.string(
            CHAIN_TYPE,
            match kind {
                ChainType::Filter => "filter",
                ChainType::Nat => "nat",
            },
        );
    }
}

fn add_set(out: &mut Messages, table: &str, set: &Set) {
    let mut flags = if set.value == Value::None { 0 } else { SET_IS_MAP };
    if set.dynamic_max.is_some() {
        flags |= SET_HAS_TIMEOUT | SET_IS_DYNAMIC;
    }
    begin(out, NEW_SET, REQUEST | CREATE);
    // The id only has to differ within the transaction.
    let id = out.count();
    out.string(SET_TABLE, table).string(SET_NAME, &set.name).be32(SET_ID, id).be32(SET_FLAGS, flags);
    out.be32(SET_KEY_TYPE, set.key.number).be32(SET_KEY_LEN, set.key.len);
    match set.value {
        Value::None => {}
        Value::Data(data) => {
            out.be32(SET_DATA_TYPE, data.number).be32(SET_DATA_LEN, data.len);
        }
        Value::Verdict => {
            out.be32(SET_DATA_TYPE, VERDICT_TYPE);
        }
    }
    if let Some(max) = set.dynamic_max {
        out.nest(SET_DESCRIPTION, |out| {
            out.be32(SET_DESCRIPTION_SIZE, max);
        });
    }
}

fn element_messages(out: &mut Messages, table: &str, set: &str, elements: &[Element], kind: u16, flags: u16) {
    let with_values = kind == NEW_SET_ELEMENT;
    for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
        begin(out, kind, flags);
        out.string(SET_ELEMENTS_TABLE, table).string(SET_ELEMENTS_SET, set);
        out.nest(SET_ELEMENTS_LIST, |out| {
            for element in chunk {
                out.nest(LIST_ELEMENT, |out| {
                    out.nest(ELEMENT_KEY, |out| {
                        out.attr(DATA_VALUE, &element.key);
                    });
                    if with_values {
                        element_value(out, &element.value);
                    }
                });
            }
        });
        out.end();
    }
}

fn expiring_elements(out: &mut Messages, table: &str, set: &str, keys: &[Vec<u8>], timeout: Duration) {
    for chunk in keys.chunks(ELEMENTS_PER_MESSAGE) {
        begin(out, NEW_SET_ELEMENT, REQUEST | CREATE);
        out.string(SET_ELEMENTS_TABLE, table).string(SET_ELEMENTS_SET, set);
        out.nest(SET_ELEMENTS_LIST, |out| {
            for key in chunk {
                out.nest(LIST_ELEMENT, |out| {
                    out.nest(ELEMENT_KEY, |out| {
                        out.attr(DATA_VALUE, key);
                    });
                    out.be64(ELEMENT_TIMEOUT, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
                });
            }
        });
        out.end();
    }
}

fn element_value(out: &mut Messages, value: &ElementValue) {
    match value {
        ElementValue::None => {}
        ElementValue::Data(data) => {
            out.nest(ELEMENT_DATA, |out| {
                out.attr(DATA_VALUE, data);
            });
        }
        ElementValue::Verdict(decision) => {
            out.nest(ELEMENT_DATA, |out| verdict(out, decision));
        }
    }
}

fn verdict(out: &mut Messages, decision: &Verdict) {
    let (code, chain) = match decision {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (-3, Some(chain)),
        Verdict::Goto(chain) => (-4, Some(chain)),
        Verdict::Return => (-5_i32, None),
    };
    out.nest(DATA_VERDICT, |out| {
        out.attr(VERDICT_CODE, &code.to_be_bytes());
        if let Some(chain) = chain {
            out.string(VERDICT_CHAIN, chain);
        }
    });
}

/// Numbers of the attributes below are those of each expression's own enumeration.
fn expression(out: &mut Messages, expr: &Expr) {
    let reg = |reg: super::nft::Reg| REG32_FIRST + u32::from(reg.0);
    match expr {
        Expr::Meta(key, to) => named(out, "meta", |out| {
            out.be32(1, reg(*to)).be32(2, *key as u32);
        }),
        Expr::Ct(key, to) => named(out, "ct", |out| {
            out.be32(1, reg(*to)).be32(2, *key as u32);
        }),
        Expr::Payload(header, offset, len, to) => named(out, "payload", |out| {
            out.be32(1, reg(*to)).be32(2, *header as u32).be32(3, *offset).be32(4, *len);
        }),
        Expr::Immediate(bytes, to) => named(out, "immediate", |out| {
            out.be32(1, reg(*to)).nest(2, |out| {
                out.attr(DATA_VALUE, bytes);
            });
        }),
        Expr::Cmp(from, equal, bytes) => named(out, "cmp", |out| {
            out.be32(1, reg(*from)).be32(2, u32::from(!*equal)).nest(3, |out| {
                out.attr(DATA_VALUE, bytes);
            });
        }),
        Expr::Mask(at, mask) => named(out, "bitwise", |out| {
            let len = u32::try_from(mask.len()).unwrap_or(0);
            out.be32(1, reg(*at)).be32(2, reg(*at)).be32(3, len);
            out.nest(4, |out| {
                out.attr(DATA_VALUE, mask);
            });
            out.nest(5, |out| {
                out.attr(DATA_VALUE, &vec![0; mask.len()]);
            });
        }),
        Expr::InSet(set, key) => named(out, "lookup", |out| {
            out.string(1, set).be32(2, reg(*key));
        }),
        Expr::Map(set, key, to) => named(out, "lookup", |out| {
            out.string(1, set).be32(2, reg(*key)).be32(3, reg(*to));
        }),
        Expr::VerdictMap(set, key) => named(out, "lookup", |out| {
            out.string(1, set).be32(2, reg(*key)).be32(3, REG_VERDICT);
        }),
        Expr::Random(bound, to) => named(out, "numgen", |out| {
            out.be32(1, reg(*to)).be32(2, *bound).be32(3, 1).be32(4, 0);
        }),
        Expr::AddressType(source, to) => named(out, "fib", |out| {
            out.be32(1, reg(*to)).be32(2, 3).be32(3, if *source { 1 } else { 2 });
        }),
        Expr::Remember(set, key, timeout) => named(out, "dynset", |out| {
            let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            out.string(1, set).be32(3, DYNSET_UPDATE).be32(4, reg(*key)).be64(6, timeout_ms);
        }),
        Expr::DestinationNat(address, port) => named(out, "nat", |out| {
            out.be32(1, 1).be32(2, u32::from(FAMILY_IPV4)).be32(3, reg(*address)).be32(5, reg(*port));
        }),
        Expr::SourceNat(address) => named(out, "nat", |out| {
            out.be32(1, 0).be32(2, u32::from(FAMILY_IPV4)).be32(3, reg(*address));
        }),
        Expr::Masquerade => named(out, "masq", |_| {}),
        Expr::Reject(Reject::Icmp(code)) => named(out, "reject", |out| {
            out.be32(1, 0).attr(2, &[*code]);
        }),
        Expr::Reject(Reject::TcpReset) => named(out, "reject", |out| {
            out.be32(1, 1);
        }),
        Expr::Counter => named(out, "counter", |_| {}),
        Expr::Verdict(decision) => named(out, "immediate", |out| {
            out.be32(1, REG_VERDICT).nest(2, |out| verdict(out, decision));
        }),
    }
}

fn named(out: &mut Messages, name: &str, fill: impl FnOnce(&mut Messages)) {
    out.nest(LIST_ELEMENT, |out| {
        out.string(EXPR_NAME, name).nest(EXPR_DATA, fill);
    });
}
