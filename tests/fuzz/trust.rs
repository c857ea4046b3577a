//! What identities are proved with: tokens and certificates.

use std::sync::{Arc, OnceLock};

use apiserver::authn;
use apiserver::authn::token::Tokens;
use apiserver::pki::{self, Pki};
use base::clock::SystemClock;

/// A token.
pub(crate) fn jwt(data: &[u8]) {
    static TOKENS: OnceLock<Tokens> = OnceLock::new();
    let Ok(text) = std::str::from_utf8(data) else { return };
    let tokens = TOKENS.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a directory");
        let pki = Pki::open(dir.path(), Arc::new(SystemClock), vec![], []).expect("keys");
        Tokens::new(pki.service_account_key_pem(), "https://kubernetes.default.svc").expect("a key")
    });
    assert!(tokens.verify(text, &[]).is_none(), "nobody guesses a signature");
}

/// A client's certificate, and a request for one.
pub(crate) fn certificates(data: &[u8]) {
    authn::cert::user_of_certificate(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = pki::read_request(text);
    }
}
