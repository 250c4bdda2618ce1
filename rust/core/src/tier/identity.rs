//! The name of a page: a keyed hash, chained over every page before it.
//!
//! Equal tokens of one tenant, model and layout have equal names, so they share pages; another
//! tenant's have others, and without its key nobody can tell which tokens a name stands for.

use std::fmt;

use crate::error::{Result, check_range};
use crate::page::PAGE_TOKENS;

/// Bytes of a [`PageIdentity`].
pub const IDENTITY_BYTES: usize = 32;

/// Names a page's bytes; see the module.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIdentity([u8; IDENTITY_BYTES]);

impl PageIdentity {
    /// An identity that was stored as bytes.
    pub const fn from_bytes(bytes: [u8; IDENTITY_BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes, to store.
    pub const fn as_bytes(&self) -> &[u8; IDENTITY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for PageIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8].iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// A tenant's secret; never shown.
#[derive(Clone)]
pub struct TenantKey([u8; blake3::KEY_LEN]);

impl TenantKey {
    /// The key of a tenant, of the server's secret and the tenant's name.
    pub fn derive(secret: &[u8; 32], tenant: &str) -> Self {
        Self(*blake3::keyed_hash(secret, tenant.as_bytes()).as_bytes())
    }
}

impl fmt::Debug for TenantKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TenantKey(..)")
    }
}

/// Names the pages of one tenant's sequences of one model and layout.
#[derive(Debug, Clone)]
pub struct IdentityChain {
    key: TenantKey,
    root: PageIdentity,
}

impl IdentityChain {
    /// A chain for what `model` and `layout` name: weights, row layouts, layers, versions.
    pub fn new(key: TenantKey, model: &str, layout: &str) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        for part in [model, layout] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self { root: PageIdentity(*hasher.finalize().as_bytes()), key }
    }

    /// What stands before the first page.
    pub const fn root(&self) -> PageIdentity {
        self.root
    }

    /// The identity of the page after `parent` that holds these tokens, 1 to 64 of them.
    pub fn page(&self, parent: &PageIdentity, tokens: &[u32]) -> Result<PageIdentity> {
        check_range("tokens of a page", tokens.len(), 1, PAGE_TOKENS as usize)?;
        let mut hasher = blake3::Hasher::new_keyed(&self.key.0);
        hasher.update(&parent.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Ok(PageIdentity(*hasher.finalize().as_bytes()))
    }

    /// The identities of every full page of a sequence, in order.
    pub fn pages(&self, tokens: &[u32]) -> Result<Vec<PageIdentity>> {
        let mut parent = self.root;
        let full = tokens.chunks_exact(PAGE_TOKENS as usize);
        full.map(|page| {
            parent = self.page(&parent, page)?;
            Ok(parent)
        })
        .collect()
    }
}
