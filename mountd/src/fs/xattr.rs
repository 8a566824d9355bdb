//! Extended attributes.

use std::sync::Arc;

use bytes::Bytes;
use p2pfs::limits::XATTR_BYTES_MAX;
use p2pfs::wire::call::{Call, Reply, XattrName};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::Mutation;

use super::Fs;
use super::inode::Effect;

const ENODATA: i32 = 61;
const E2BIG: i32 = 7;
/// The kernel asks for it before every write; a mount is `nosuid`, so it has no effect here.
const CAPABILITY: &[u8] = b"security.capability";
/// Labels of the host's policy mean nothing to ours. "Not supported" also ends the questions: `ls`
/// would ask for each file.
const LABEL: &[u8] = b"security.selinux";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Whether an attribute stays between the kernel and mountd.
fn is_local(name: &[u8]) -> bool {
    name == CAPABILITY || name == LABEL || name.starts_with(ACL_PREFIX)
}

/// What is said of such an attribute without asking the host.
pub(crate) fn local_answer(name: &[u8]) -> Option<Errno> {
    if name == CAPABILITY {
        Some(Errno::from_number(ENODATA))
    } else {
        is_local(name).then_some(Errno::EOPNOTSUPP)
    }
}

impl Fs {
    /// An attribute's value.
    pub async fn getxattr(&self, ino: u64, name: Vec<u8>) -> Result<Bytes, Errno> {
        if let Some(error) = local_answer(&name) {
            return Err(error);
        }
        self.xattr_call(ino, name).await
    }

    /// The attributes' names, each followed by a NUL.
    pub async fn listxattr(&self, ino: u64) -> Result<Bytes, Errno> {
        let names = self.xattr_call(ino, Vec::new()).await?;
        let kept = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| !is_local(name.strip_suffix(&[0]).unwrap_or(name)));
        Ok(kept.flatten().copied().collect())
    }

    /// Sets an attribute; `flags` as in setxattr(2).
    pub async fn setxattr(
        self: &Arc<Self>,
        ino: u64,
        name: Vec<u8>,
        value: Bytes,
        flags: u8,
    ) -> Result<(), Errno> {
        if is_local(&name) {
            return Err(Errno::EOPNOTSUPP);
        }
        if value.len() > XATTR_BYTES_MAX {
            return Err(Errno::from_number(E2BIG));
        }
        let inode = self.inodes.get(ino)?;
        let mutation = Mutation::SetXattr { node: inode.node.into(), name: XattrName(name), flags };
        let outcome = self.change(&inode, Effect::None, mutation, value).await;
        outcome.map(drop)
    }

    /// Takes an attribute away.
    pub async fn removexattr(self: &Arc<Self>, ino: u64, name: Vec<u8>) -> Result<(), Errno> {
        if let Some(error) = local_answer(&name) {
            return Err(error);
        }
        let inode = self.inodes.get(ino)?;
        let mutation = Mutation::RemoveXattr { node: inode.node.into(), name: XattrName(name) };
        let outcome = self.change(&inode, Effect::None, mutation, Bytes::new()).await;
        outcome.map(drop)
    }

    async fn xattr_call(&self, ino: u64, name: Vec<u8>) -> Result<Bytes, Errno> {
        let node = self.inodes.get(ino)?.node;
        let name = XattrName(name);
        match self.remote.call(Call::GetXattr { node, name }).await? {
            (Reply::Data, value) => Ok(value),
            _ => Err(Errno::EPROTO),
        }
    }
}
