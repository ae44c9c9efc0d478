//! Who may ask what: a client's role by its user and its groups, as the kernel vouches for them.

use std::os::fd::AsFd;

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Group, Uid};

use super::proto::Role;
use crate::sys::peer;

/// The group whose members may open the socket, and look.
pub const GROUP: &str = "cygnet";

/// The groups that have a role. Root, and whoever runs the daemon, need none.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Access {
    /// Whose members are readers. The socket belongs to it.
    pub readers: Option<Gid>,
    /// Whose members are admins. They open the socket as members of the other one.
    pub admins: Option<Gid>,
}

impl Access {
    /// The groups of this host: [`GROUP`], and the configured one. A group that there is not has no members.
    pub fn of_host(admin_group: Option<&str>) -> Self {
        let gid = |name: &str| Group::from_name(name).ok().flatten().map(|g| g.gid);
        Self { readers: gid(GROUP), admins: admin_group.and_then(gid) }
    }

    /// The role of who is at the other end; `None` if it may not ask anything.
    pub fn role(&self, client: &impl AsFd) -> Option<Role> {
        let peer = getsockopt(client, sockopt::PeerCredentials).ok()?;
        // An old kernel that does not tell leaves the primary group.
        let mut groups = peer::groups(client).unwrap_or_default();
        groups.push(peer.gid());
        self.role_of(Uid::from_raw(peer.uid()), Uid::effective(), &groups)
    }

    fn role_of(&self, user: Uid, ours: Uid, groups: &[u32]) -> Option<Role> {
        let member = |group: Option<Gid>| group.is_some_and(|g| groups.contains(&g.as_raw()));
        if user.is_root() || user == ours {
            Some(Role::Root)
        } else if member(self.admins) {
            Some(Role::Admin)
        } else {
            member(self.readers).then_some(Role::Reader)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_give_roles_and_strangers_have_none() {
        let access = Access { readers: Some(Gid::from_raw(70)), admins: Some(Gid::from_raw(71)) };
        let role = |user, groups: &[u32]| access.role_of(Uid::from_raw(user), Uid::from_raw(500), groups);
        assert_eq!(role(0, &[]), Some(Role::Root));
        assert_eq!(role(500, &[]), Some(Role::Root));
        assert_eq!(role(1000, &[100, 71, 70]), Some(Role::Admin));
        assert_eq!(role(1000, &[100, 70]), Some(Role::Reader));
        assert_eq!(role(1000, &[100]), None);
        assert_eq!(Access::default().role_of(Uid::from_raw(1000), Uid::from_raw(0), &[0]), None);
    }

    #[test]
    fn roles_are_ordered() {
        assert!(Role::Reader < Role::Admin && Role::Admin < Role::Root);
    }
}
