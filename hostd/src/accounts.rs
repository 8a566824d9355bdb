//! The accounts of this machine, as far as its own files name them.

use std::fs;

use p2pfs::limits::CALLER_GROUPS_MAX;
use p2pfs::wire::log::Caller;

/// The user `uid` with the groups that the login has. One whom the machine's own files do not name
/// (another directory service knows) has the group `gid` and no other.
pub(crate) fn account(uid: u32, gid: u32) -> Caller {
    let read = |path| fs::read(path).unwrap_or_default();
    let (users, groups) = (read("/etc/passwd"), read("/etc/group"));
    account_in(&String::from_utf8_lossy(&users), &String::from_utf8_lossy(&groups), uid, gid)
}

fn account_in(users: &str, groups: &str, uid: u32, gid: u32) -> Caller {
    let user = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, number, group, ..] = fields.as_slice() else { return None };
        (number.parse() == Ok(uid)).then_some((*name, group.parse::<u32>().ok()?))
    });
    let Some((name, gid)) = user else {
        return Caller { uid, gid, groups: Vec::new() };
    };
    let groups = groups.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, number, members] = fields.as_slice() else { return None };
        let is_member = members.split(',').any(|member| member.trim() == name);
        number.parse::<u32>().ok().filter(|_| is_member)
    });
    Caller { uid, gid, groups: groups.take(CALLER_GROUPS_MAX).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_its_login_group_and_its_other_groups() {
        let users = "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1001:A:/home/alice:/bin/sh\n";
        let groups = "root:x:0:\nalice:x:1001:\nphotos:x:44:bob,alice\nmusic:x:45:bob\nodd\n";
        let alice = Caller { uid: 1000, gid: 1001, groups: vec![44] };
        assert_eq!(account_in(users, groups, 1000, 7), alice);
        let unknown = Caller { uid: 5, gid: 7, groups: Vec::new() };
        assert_eq!(account_in(users, groups, 5, 7), unknown);
    }
}
