//! Arithmetic on addresses of service ranges. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The address `n` after `base`.
pub fn nth(base: IpAddr, n: u128) -> IpAddr {
    match base {
        #[allow(
            clippy::cast_possible_truncation,
            reason = "ranges are far smaller than 2^32 behind their base: nothing is lost"
        )]
        IpAddr::V4(base) => Ipv4Addr::from(u32::from(base).wrapping_add(n as u32)).into(),
        IpAddr::V6(base) => Ipv6Addr::from(u128::from(base).wrapping_add(n)).into(),
    }
}

/// How many addresses a range has besides its own and, for IPv4, its broadcast address; at most 2^16 for IPv6.
pub fn usable((base, length): (IpAddr, u8)) -> u128 {
    match base {
        IpAddr::V4(_) => (1u128 << (32 - length.min(32))).saturating_sub(2),
        IpAddr::V6(_) => (1u128 << (128 - length.min(128)).min(16)) - 1,
    }
}

/// Whether a range holds an address.
pub fn holds((base, length): (IpAddr, u8), address: IpAddr) -> bool {
    let prefix = |bits: u128, width: u8| if length == 0 { 0 } else { bits >> (width - length.min(width)) };
    match (base, address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            prefix(u32::from(base).into(), 32) == prefix(u32::from(address).into(), 32)
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            prefix(u128::from(base), 128) == prefix(u128::from(address), 128)
        }
        _ => false,
    }
}

/// Whether an address of a range may be given to somebody: its own and, for IPv4, its broadcast address may not.
/// Source: `firstAddress` and `lastAddress` of upstream's allocator.
pub fn gives((base, length): (IpAddr, u8), address: IpAddr) -> bool {
    let last = match base {
        IpAddr::V4(base) if length < 32 => {
            IpAddr::from(Ipv4Addr::from(u32::from(base) | (u32::MAX >> length)))
        }
        _ => base,
    };
    holds((base, length), address) && address != base && address != last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_their_addresses() {
        let range = ("10.96.0.0".parse().unwrap(), 12);
        assert_eq!(nth(range.0, 10).to_string(), "10.96.0.10");
        assert!(holds(range, "10.111.255.255".parse().unwrap()));
        assert!(!holds(range, "10.112.0.0".parse().unwrap()));
        assert!(
            gives(range, "10.96.0.1".parse().unwrap()) && gives(range, "10.111.255.254".parse().unwrap())
        );
        for taken in ["10.96.0.0", "10.111.255.255", "10.112.0.1"] {
            assert!(!gives(range, taken.parse().unwrap()), "{taken}");
        }
        let six = ("fd00::".parse().unwrap(), 112);
        assert!(gives(six, "fd00::ffff".parse().unwrap()) && !gives(six, "fd00::".parse().unwrap()));
        assert_eq!(usable(("10.0.0.0".parse().unwrap(), 24)), 254);
    }
}
