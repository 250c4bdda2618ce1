//! Tenants by name: the number that the pool knows each by, and the chain that names its pages.

use std::collections::HashMap;

use crate::error::{Error, Result, check_range};
use crate::sync::{Mutex, lock};
use crate::tenants::TenantId;
use crate::tier::{IdentityChain, TenantKey};

const MAX_NAME_BYTES: usize = 255;

/// One tenant.
#[derive(Debug, Clone)]
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) chain: IdentityChain,
}

/// What all chains of a manager begin with.
#[derive(Clone)]
pub(crate) struct ChainMaker {
    pub(crate) secret: [u8; 32],
    pub(crate) model: String,
    pub(crate) layout: String,
}

impl ChainMaker {
    /// Digest of the model and of the layout, without the secret.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let public = IdentityChain::new(TenantKey::derive(&[0; 32], ""), &self.model, &self.layout);
        *public.root().as_bytes()
    }

    pub(crate) fn chain(&self, tenant: &str) -> IdentityChain {
        IdentityChain::new(TenantKey::derive(&self.secret, tenant), &self.model, &self.layout)
    }
}

/// Every tenant of a manager; the default one has the empty name. Its lock is a leaf.
pub(crate) struct TenantNames {
    maker: ChainMaker,
    known: Mutex<HashMap<String, Tenant>>,
}

impl TenantNames {
    pub(crate) fn new(maker: ChainMaker) -> Self {
        let default = Tenant { id: TenantId::DEFAULT, chain: maker.chain("") };
        Self { maker, known: Mutex::new(HashMap::from([(String::new(), default)])) }
    }

    /// Digest of what all chains begin with.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.maker.digest()
    }

    pub(crate) fn get(&self, name: &str) -> Result<Tenant> {
        let known = lock(&self.known)?;
        known.get(name).cloned().ok_or(Error::UnknownTenant { num_known: known.len() })
    }

    /// Adds a tenant, to which `make` gives its number.
    pub(crate) fn add(&self, name: &str, make: impl FnOnce() -> Result<TenantId>) -> Result<()> {
        check_range("bytes of a tenant's name", name.len(), 1, MAX_NAME_BYTES)?;
        if self.get(name).is_ok() {
            return Err(Error::WrongState { what: "tenants of that name", found: 1, needed: 0 });
        }
        let tenant = Tenant { id: make()?, chain: self.maker.chain(name) };
        lock(&self.known)?.insert(name.into(), tenant);
        Ok(())
    }
}

impl std::fmt::Debug for TenantNames {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TenantNames(..)")
    }
}
