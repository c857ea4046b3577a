//! What a crash may leave of recorded operations.

use std::collections::BTreeMap;

use store::memory::{FileId, Operation};

use super::random::Random;

/// Files by name.
pub(crate) type Image = BTreeMap<String, Vec<u8>>;

/// What of the writes since a file's last sync reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writes {
    /// All: the process died and the machine did not.
    Kept,
    /// None.
    Lost,
    /// The first ones, the last of them in part.
    Cut,
    /// Any of their sectors, in any order.
    Torn,
}

/// What of the changes of names since the directory's last sync reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Names {
    Kept,
    Lost,
    /// Any of them.
    Some,
}

const SECTOR: usize = 512;

/// A disk that knows what is durable and what is only promised.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    names: BTreeMap<String, FileId>,
    pending_names: Vec<Operation>,
    durable: Vec<Vec<u8>>,
    pending: Vec<Vec<Operation>>,
}

impl Disk {
    pub(crate) fn new(files: &Image) -> Self {
        Self {
            names: files.keys().cloned().zip(0..).collect(),
            pending_names: Vec::new(),
            durable: files.values().cloned().collect(),
            pending: vec![Vec::new(); files.len()],
        }
    }

    /// Does one operation.
    pub(crate) fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Create { file, .. } => {
                assert_eq!(*file, self.durable.len());
                self.durable.push(Vec::new());
                self.pending.push(Vec::new());
                self.pending_names.push(operation.clone());
            }
            Operation::Rename { .. } | Operation::Remove { .. } => self.pending_names.push(operation.clone()),
            Operation::Write { file, .. } | Operation::Truncate { file, .. } => {
                self.pending[*file].push(operation.clone());
            }
            Operation::Sync { file } => {
                for operation in std::mem::take(&mut self.pending[*file]) {
                    change(&mut self.durable[*file], &operation);
                }
            }
            Operation::SyncDir => {
                for operation in std::mem::take(&mut self.pending_names) {
                    rename(&mut self.names, &operation);
                }
            }
        }
    }

    /// What a crash now leaves.
    pub(crate) fn crash(&self, writes: Writes, names: Names, random: &mut Random) -> Image {
        let mut contents = self.durable.clone();
        for (content, pending) in contents.iter_mut().zip(&self.pending) {
            crash_file(content, pending, writes, random);
        }
        let mut kept = self.names.clone();
        for operation in &self.pending_names {
            if names == Names::Kept || names == Names::Some && random.once_in(2) {
                rename(&mut kept, operation);
            }
        }
        kept.into_iter().map(|(name, file)| (name, contents[file].clone())).collect()
    }
}

fn crash_file(content: &mut Vec<u8>, pending: &[Operation], writes: Writes, random: &mut Random) {
    match writes {
        Writes::Lost => {}
        Writes::Kept => pending.iter().for_each(|operation| change(content, operation)),
        Writes::Cut => {
            let whole = random.below(pending.len());
            pending[..whole].iter().for_each(|operation| change(content, operation));
            if let Some(Operation::Write { file, offset, data }) = pending.get(whole) {
                let data = data[..random.below(data.len() + 1)].to_vec();
                change(content, &Operation::Write { file: *file, offset: *offset, data });
            }
        }
        Writes::Torn => {
            let mut parts: Vec<_> = pending.iter().flat_map(sectors).collect();
            while !parts.is_empty() {
                let part = parts.swap_remove(random.below(parts.len()));
                if random.once_in(2) {
                    change(content, &part);
                }
            }
        }
    }
}

/// The parts of an operation that reach the disk each by itself.
fn sectors(operation: &Operation) -> Vec<Operation> {
    let Operation::Write { file, offset, data } = operation else { return vec![operation.clone()] };
    let mut parts = Vec::new();
    let (mut rest, mut at) = (&data[..], usize::try_from(*offset).unwrap());
    while !rest.is_empty() {
        // A sector of the disk, not of the write.
        let (part, others) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
        parts.push(Operation::Write { file: *file, offset: at as u64, data: part.to_vec() });
        (rest, at) = (others, at + part.len());
    }
    parts
}

fn change(content: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Write { offset, data, .. } => {
            let start = usize::try_from(*offset).unwrap();
            let end = start + data.len();
            content.resize(content.len().max(end), 0);
            content[start..end].copy_from_slice(data);
        }
        Operation::Truncate { len, .. } => content.resize(usize::try_from(*len).unwrap(), 0),
        other => unreachable!("{other:?} changes no content"),
    }
}

fn rename(names: &mut BTreeMap<String, FileId>, operation: &Operation) {
    match operation {
        Operation::Create { name, file } => drop(names.insert(name.clone(), *file)),
        // What was never durable under its old name cannot be renamed or removed: the change is lost too.
        Operation::Rename { from, to } => {
            if let Some(file) = names.remove(from) {
                names.insert(to.clone(), file);
            }
        }
        Operation::Remove { name } => drop(names.remove(name)),
        other => unreachable!("{other:?} changes no name"),
    }
}
