//! Ports, looked at before anything is made: one that is taken is named with its holder and the setting to change.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use anyhow::{Result, bail};

/// Fails if one of the ports cannot be listened on. Each comes with the setting that chooses it. Whoever takes a port
/// between this look and the server's own bind is found by that one, in fewer words.
pub(crate) fn check(ports: &[(SocketAddr, &str)]) -> Result<()> {
    for (address, setting) in ports {
        let Err(error) = TcpListener::bind(address) else { continue };
        let port = address.port();
        match error.kind() {
            ErrorKind::AddrInUse => {
                let holder = holder(port).map(|holder| format!(" by {holder}")).unwrap_or_default();
                bail!(
                    "port {port} is in use{holder}; end that program, or choose another port with {setting}"
                )
            }
            _ => bail!("cannot listen on {address}: {error}; choose another port with {setting}"),
        }
    }
    Ok(())
}

/// The program that listens on a port, as `name (pid)`; `None` where it cannot be seen.
fn holder(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let inode = tables.iter().find_map(|table| listener(table, port))?;
    let wanted = format!("socket:[{inode}]");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        // `self` and `thread-self` are this process under other names.
        if process.file_name().to_string_lossy().parse::<u32>().is_err() {
            continue;
        }
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        let holds = descriptors.flatten().any(|descriptor| {
            fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == wanted.as_str())
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {})", name.trim(), process.file_name().to_string_lossy()));
        }
    }
    None
}

/// The socket that listens on a port, by inode. Source: proc(5), `/proc/net/tcp`: the local address is
/// `HEX:PORT`, state `0A` listens, the tenth field is the inode.
fn listener(table: &str, port: u16) -> Option<&str> {
    let wanted = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        match fields.as_slice() {
            [_, local, _, "0A", _, _, _, _, _, inode, ..] if local.ends_with(&wanted) => Some(*inode),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:192B 00000000:0000 01 00000000:00000000 00:00000000 00000000     0        0 111 1\n\
             1: 00000000:192B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 222 1\n";
        assert_eq!(listener(table, 6443), Some("222"));
        assert_eq!(listener(table, 80), None);
        assert_eq!(listener("", 80), None);
    }

    #[test]
    fn a_taken_port_is_named_with_its_holder_and_the_setting() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = check(&[(address, "--api-port")]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("port {} is in use by ", address.port())), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        assert!(error.ends_with("--api-port"), "{error}");
        drop(taken);
        check(&[(address, "--api-port")]).unwrap();
    }
}
