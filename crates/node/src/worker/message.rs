//! Termination messages: what a container left in its message file, or the end of its log.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use engine_api::logs::LogEntry;

/// Source: the API's limits for termination messages.
const FILE_MAX_BYTES: u64 = 4096;
const LOG_MAX_BYTES: usize = 2048;
const LOG_MAX_LINES: usize = 80;

/// The message of a container that has ended; empty if it left none.
pub(crate) fn read(message_file: &Path, log: &Path, from_logs: bool) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(message_file) {
        // A file that cannot be read says as much as none.
        let _ = file.take(FILE_MAX_BYTES).read_to_end(&mut bytes);
    }
    if bytes.is_empty() && from_logs {
        return log_tail(log).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The last lines of a log in the CRI format.
fn log_tail(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    // Each line carries a timestamp and a stream: twice the size holds enough of them, most often.
    let window = u64::try_from(LOG_MAX_BYTES * 4).unwrap_or(u64::MAX);
    file.seek(SeekFrom::Start(length.saturating_sub(window)))?;
    let mut bytes = Vec::new();
    file.take(window).read_to_end(&mut bytes)?;
    let bytes = Bytes::from(bytes);
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let from = lines.len().saturating_sub(LOG_MAX_LINES);
    let mut text = Vec::new();
    for entry in lines.iter().skip(from).filter_map(|line| LogEntry::parse(&bytes.slice_ref(line))) {
        text.extend_from_slice(&entry.text);
        if !entry.partial {
            text.push(b'\n');
        }
    }
    let cut = text.len().saturating_sub(LOG_MAX_BYTES);
    Ok(String::from_utf8_lossy(&text[cut..]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_wins_and_the_log_is_the_fallback() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(&log, "2024-01-01T00:00:00Z stderr F boom\n2024-01-01T00:00:00Z stderr F end\n")
            .unwrap();
        std::fs::write(&file, "").unwrap();
        assert_eq!(read(&file, &log, true), "boom\nend\n");
        assert_eq!(read(&file, &log, false), "");
        std::fs::write(&file, "why").unwrap();
        assert_eq!(read(&file, &log, true), "why");
    }
}
