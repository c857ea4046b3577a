//! The ciphers: AES-GCM, AES-CBC with PKCS#7 padding, and NaCl's secretbox. What they write is a random nonce and the
//! closed value, as upstream lays it out, so that values can be carried over.
//! Source: `apiserver/pkg/storage/value/encrypt/{aes,secretbox}`.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    self, DecryptionContext, EncryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use crypto_secretbox::XSalsa20Poly1305;
use crypto_secretbox::aead::{Aead, KeyInit};

const GCM_NONCE: usize = 12;
const CBC_BLOCK: usize = 16;
const BOX_NONCE: usize = 24;
const SHORT: &str = "the stored data was shorter than the required size";

/// A key, ready for use. Has no `Debug`: nothing prints it.
pub(super) enum Cipher {
    Gcm(Box<LessSafeKey>),
    Cbc(Box<(PaddedBlockEncryptingKey, PaddedBlockDecryptingKey)>),
    Secretbox(Box<XSalsa20Poly1305>),
}

impl Cipher {
    /// AES-GCM; `None` unless the key has 16, 24 or 32 bytes.
    pub(super) fn gcm(key: &[u8]) -> Option<Self> {
        let algorithm = match key.len() {
            16 => &aead::AES_128_GCM,
            24 => &aead::AES_192_GCM,
            32 => &aead::AES_256_GCM,
            _ => return None,
        };
        let key = UnboundKey::new(algorithm, key).ok()?;
        Some(Self::Gcm(Box::new(LessSafeKey::new(key))))
    }

    /// AES-CBC; `None` unless the key has 16, 24 or 32 bytes.
    pub(super) fn cbc(key: &[u8]) -> Option<Self> {
        let algorithm = match key.len() {
            16 => &cipher::AES_128,
            24 => &cipher::AES_192,
            32 => &cipher::AES_256,
            _ => return None,
        };
        let key = || UnboundCipherKey::new(algorithm, key);
        let closing = PaddedBlockEncryptingKey::cbc_pkcs7(key().ok()?).ok()?;
        let opening = PaddedBlockDecryptingKey::cbc_pkcs7(key().ok()?).ok()?;
        Some(Self::Cbc(Box::new((closing, opening))))
    }

    /// Secretbox; `None` unless the key has 32 bytes.
    pub(super) fn secretbox(key: &[u8]) -> Option<Self> {
        XSalsa20Poly1305::new_from_slice(key).ok().map(|key| Self::Secretbox(Box::new(key)))
    }

    /// Appends a value, closed, to `out`; `place` is bound to it where the cipher can.
    pub(super) fn close(&self, out: &mut Vec<u8>, place: &[u8], value: &[u8]) -> Result<(), String> {
        let failed = |_| "the value could not be encrypted".to_owned();
        match self {
            Self::Gcm(key) => {
                let nonce = random::<GCM_NONCE>()?;
                let mut closed = value.to_vec();
                key.seal_in_place_append_tag(
                    Nonce::assume_unique_for_key(nonce),
                    Aad::from(place),
                    &mut closed,
                )
                .map_err(failed)?;
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&closed);
            }
            Self::Cbc(keys) => {
                let nonce = random::<CBC_BLOCK>()?;
                let mut closed = value.to_vec();
                let context = EncryptionContext::Iv128(FixedLength::from(nonce));
                keys.0.less_safe_encrypt(&mut closed, context).map_err(failed)?;
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&closed);
            }
            Self::Secretbox(key) => {
                let nonce = random::<BOX_NONCE>()?;
                let closed = key.encrypt((&nonce).into(), value);
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&closed.map_err(|_| "the value could not be encrypted".to_owned())?);
            }
        }
        Ok(())
    }

    /// A closed value, opened.
    pub(super) fn open(&self, place: &[u8], closed: &[u8]) -> Result<Vec<u8>, String> {
        let unauthentic = || "cipher: message authentication failed".to_owned();
        match self {
            Self::Gcm(key) => {
                let (nonce, closed) = closed.split_first_chunk::<GCM_NONCE>().ok_or(SHORT)?;
                let mut value = closed.to_vec();
                let opened =
                    key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(place), &mut value);
                let length = opened.map_err(|_| unauthentic())?.len();
                value.truncate(length);
                Ok(value)
            }
            Self::Cbc(keys) => {
                let (nonce, closed) = closed.split_first_chunk::<CBC_BLOCK>().ok_or(SHORT)?;
                if closed.is_empty() || closed.len() % CBC_BLOCK != 0 {
                    return Err("the stored data is not a multiple of the block size".to_owned());
                }
                let mut value = closed.to_vec();
                let context = DecryptionContext::Iv128(FixedLength::from(*nonce));
                let opened = keys.1.decrypt(&mut value, context);
                let length = opened.map_err(|_| "invalid padding on input".to_owned())?.len();
                value.truncate(length);
                Ok(value)
            }
            Self::Secretbox(key) => {
                let (nonce, closed) = closed.split_first_chunk::<BOX_NONCE>().ok_or(SHORT)?;
                key.decrypt(nonce.into(), closed).map_err(|_| unauthentic())
            }
        }
    }
}

fn random<const N: usize>() -> Result<[u8; N], String> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "no randomness".to_owned())?;
    Ok(bytes)
}
