//! Extended attributes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use p2pfs::limits::XATTR_BYTES_MAX;
use p2pfs::wire::call::{Asked, Reply, XattrName};
use p2pfs::wire::errno::Errno;
use p2pfs::wire::log::Mutation;

use super::Fs;
use super::inode::Effect;

const E2BIG: i32 = 7;
/// A kernel that takes setuid away by itself asks for it before every write.
const CAPABILITY: &[u8] = b"security.capability";
/// Labels of the host's policy mean nothing to ours. "Not supported" also ends the questions: `ls`
/// would ask for each file.
const LABEL: &[u8] = b"security.selinux";
const ACL_PREFIX: &[u8] = b"system.posix_acl_";
/// Whose attributes are all in the list of a node's attributes.
const LISTED: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", ACL_PREFIX];

impl Fs {
    /// From now on the kernel leaves to the host what a write takes away (setuid, capabilities).
    pub fn host_takes_privileges_away(&self) {
        self.asks_capability.store(false, Ordering::Relaxed);
    }

    /// What is said of an attribute without asking the host: some stay between the kernel and us.
    /// `ls` asks about each file: what was just seen without any needs no question.
    pub fn local_xattr(&self, ino: u64, name: &[u8]) -> Option<Errno> {
        let is_listed = || LISTED.iter().any(|namespace| name.starts_with(namespace));
        match name {
            LABEL => Some(Errno::EOPNOTSUPP),
            CAPABILITY if self.asks_capability.load(Ordering::Relaxed) => Some(Errno::ENODATA),
            _ if is_listed() && self.lacks_xattrs(ino) => Some(Errno::ENODATA),
            _ => None,
        }
    }

    /// An attribute's value.
    pub async fn getxattr(&self, ino: u64, name: Vec<u8>) -> Result<Bytes, Errno> {
        if let Some(error) = self.local_xattr(ino, &name) {
            return Err(error);
        }
        let is_acl = name.starts_with(ACL_PREFIX);
        self.xattr_call(ino, name).await.map_err(|error| match error {
            // To the kernel, "not supported" would be a permission that it cannot check
            Errno::EOPNOTSUPP if is_acl => Errno::ENODATA,
            other => other,
        })
    }

    /// The attributes' names, each followed by a NUL.
    pub async fn listxattr(&self, ino: u64) -> Result<Bytes, Errno> {
        if self.lacks_xattrs(ino) {
            return Ok(Bytes::new());
        }
        let names = self.xattr_call(ino, Vec::new()).await?;
        let kept = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| !self.is_hidden(name.strip_suffix(&[0]).unwrap_or(name)));
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
        if self.is_hidden(&name) {
            return Err(Errno::EOPNOTSUPP);
        }
        if value.len() > XATTR_BYTES_MAX {
            return Err(Errno::from_number(E2BIG));
        }
        let inode = self.inodes.get(ino)?;
        inode.may_have_xattrs();
        let mutation = Mutation::SetXattr { node: inode.node.into(), name: XattrName(name), flags };
        let outcome = self.change(&inode, Effect::None, mutation, value).await;
        outcome.map(drop)
    }

    /// Takes an attribute away.
    pub async fn removexattr(self: &Arc<Self>, ino: u64, name: Vec<u8>) -> Result<(), Errno> {
        if self.is_hidden(&name) {
            return Err(Errno::EOPNOTSUPP);
        }
        let inode = self.inodes.get(ino)?;
        let mutation = Mutation::RemoveXattr { node: inode.node.into(), name: XattrName(name) };
        let outcome = self.change(&inode, Effect::None, mutation, Bytes::new()).await;
        outcome.map(drop)
    }

    /// Whether an attribute of the host is not there for us at all.
    fn is_hidden(&self, name: &[u8]) -> bool {
        name == LABEL || name == CAPABILITY && self.asks_capability.load(Ordering::Relaxed)
    }

    /// Whether the node was seen without attributes, not longer ago than the kernel keeps what
    /// `stat` shows.
    fn lacks_xattrs(&self, ino: u64) -> bool {
        self.inodes.get(ino).is_ok_and(|inode| inode.lacks_xattrs(self.keep()))
    }

    async fn xattr_call(&self, ino: u64, name: Vec<u8>) -> Result<Bytes, Errno> {
        let node = self.inodes.get(ino)?.node;
        let name = XattrName(name);
        match self.remote.call(self.by_caller(Asked::GetXattr { node, name })).await? {
            (Reply::Data, value) => Ok(value),
            _ => Err(Errno::EPROTO),
        }
    }
}
