//! Names of signals, as the interface enumerates them and as the engine reads them.

use crate::proto::Signal;

/// `SIGTERM`, `SIGRTMIN+3`; empty for the image's own choice.
pub(crate) fn name(signal: Signal) -> String {
    if signal == Signal::RuntimeDefault {
        return String::new();
    }
    let name = signal.as_str_name();
    let name = name.strip_prefix("SIGNAL_").unwrap_or(name);
    name.replace("PLUS", "+").replace("MINUS", "-")
}

/// The enumeration's value of a name; the default where it is none.
pub(crate) fn of_name(name: &str) -> Signal {
    let name = name.to_ascii_uppercase().replace('+', "PLUS").replace('-', "MINUS");
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    Signal::from_str_name(&format!("SIGNAL_SIG{name}")).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for signal in [Signal::Sigterm, Signal::Sigkill, Signal::Sigrtminplus15, Signal::Sigrtmaxminus1] {
            assert_eq!(of_name(&name(signal)), signal);
        }
        assert_eq!(name(Signal::Sigrtminplus3), "SIGRTMIN+3");
        assert_eq!((name(Signal::RuntimeDefault), of_name("")), (String::new(), Signal::RuntimeDefault));
        assert_eq!(of_name("term"), Signal::Sigterm);
    }
}
