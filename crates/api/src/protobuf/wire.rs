//! The wire format of protobuf: keys, numbers, lengths. Source: protobuf's encoding guide.

/// What is wrong with a message.
pub(super) type Problem = &'static str;

/// A value on the wire.
#[derive(Clone, Copy)]
pub(super) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

/// Reads a message field by field.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// A number of up to 64 bits.
    pub(super) fn varint(&mut self) -> Result<u64, Problem> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("it is cut short")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("it is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    /// The next field's number and value.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Wire<'a>)>, Problem> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| "a field number is too large")?;
        let wire = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| "it is cut short")?;
                Wire::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a length is too large")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err("a field has an unknown wire type"),
        };
        Ok(Some((number, wire)))
    }
}

/// Key and value of a map's entry whose value is a message; absent ones are empty.
pub(super) fn entry(bytes: &[u8]) -> Result<(&[u8], &[u8]), Problem> {
    let (mut key, mut value) = (&[][..], &[][..]);
    let mut reader = Reader(bytes);
    while let Some(field) = reader.next()? {
        match field {
            (1, Wire::Bytes(bytes)) => key = bytes,
            (2, Wire::Bytes(bytes)) => value = bytes,
            _ => {}
        }
    }
    Ok((key, value))
}

/// Writes a number.
pub(super) fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Writes a field that is a number.
pub(super) fn number(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field) << 3);
    varint(out, value);
}

/// Writes a field that is a double.
pub(super) fn double(out: &mut Vec<u8>, field: u32, value: f64) {
    varint(out, u64::from(field) << 3 | 1);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Writes a field that is text or bytes.
pub(super) fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Begins a field that is a message; [`close`] takes what this returns.
pub(super) fn open(out: &mut Vec<u8>, field: u32) -> usize {
    varint(out, u64::from(field) << 3 | 2);
    out.push(0);
    out.len()
}

/// Ends a message: its length goes before it. Most lengths fit into the byte that was left for them.
pub(super) fn close(out: &mut Vec<u8>, begin: usize) {
    let mut length = Vec::with_capacity(5);
    varint(&mut length, (out.len() - begin) as u64);
    out.splice(begin - 1..begin, length);
}
