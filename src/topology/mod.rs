//! WHERE. Which server plays which role now.
//!
//! A source (Kubernetes objects, a probe by SQL, the settings) gives an [`Observation`]: facts of one
//! moment, in the same words whoever says them. [`primary::Gate`] decides from observations, from
//! what our own connections meet and from what the server itself confirms, whether there is a server
//! that may be written to. Nothing here opens a socket or reads a clock.

pub mod cnpg;
pub mod freshness;
pub mod health;
pub mod kube;
pub mod label;
pub mod patroni;
pub mod pods;
pub mod primary;
pub mod probe;
pub mod signals;
pub mod volume;

use std::fmt;
use std::sync::Arc;

use crate::config::Host;

/// One server of a cluster, as its source describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Name of its pod, or its host.
    pub name: Arc<str>,
    /// Where it is, and which of several of this name.
    pub place: Place,
    /// Availability zone, if known.
    pub zone: Option<Arc<str>>,
    /// Whether the source takes it for ready; true where the source cannot tell.
    pub ready: bool,
    /// Whether it is about to go: its pod has a deletionTimestamp.
    pub terminating: bool,
    /// Whether the operator has fenced it, and in whose words.
    pub fenced: Option<Arc<str>>,
}

/// Where a member is. A pod that was made anew has the old one's name and another uid; a pod of another
/// cluster may have its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The pod's uid; `None` where there are no pods.
    pub uid: Option<Arc<str>>,
    /// Address or name.
    pub host: Host,
    /// Port.
    pub port: u16,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Whom a source names as the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    /// This member, and no change is under way.
    Member(Arc<str>),
    /// A change is under way: new transactions must wait.
    Moving {
        /// The member that was the primary, and may finish what it runs.
        from: Option<Arc<str>>,
        /// The member that is to become it, if that is known.
        to: Option<Arc<str>>,
        /// The operator's word for it: "Switchover in progress".
        reason: Arc<str>,
    },
    /// Nobody; why, in words for the operator.
    Nobody(Arc<str>),
    /// Several members claim to be it: none is written to.
    Several(Vec<Arc<str>>),
}

impl Named {
    /// Whether this member is, becomes, or claims to be the primary.
    pub fn is_about(&self, name: &str) -> bool {
        match self {
            Named::Member(primary) => **primary == *name,
            Named::Moving { from, to, .. } => from.iter().chain(to).any(|primary| **primary == *name),
            Named::Nobody(_) => false,
            Named::Several(names) => names.iter().any(|primary| **primary == *name),
        }
    }
}

/// What a source says of a cluster at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// The cluster object's uid: a cluster that was restored under the same name has another.
    pub incarnation: Option<Arc<str>>,
    /// Its servers, by name.
    pub members: Vec<Member>,
    /// Its primary.
    pub primary: Named,
    /// The system identifier that the source knows.
    pub system_id: Option<u64>,
    /// The timeline that the source knows: a primary has at least this one.
    pub timeline: Option<u32>,
    /// The operator's word for how the cluster is, where it has one.
    pub phase: Option<Arc<str>>,
}

impl Observation {
    /// Nothing is known, for this reason.
    pub fn nothing(reason: &str) -> Self {
        Observation {
            incarnation: None,
            members: Vec::new(),
            primary: Named::Nobody(reason.into()),
            system_id: None,
            timeline: None,
            phase: None,
        }
    }

    /// The member of this name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| *member.name == *name)
    }
}

/// What a server says of itself, asked by SQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `pg_is_in_recovery()`
    pub in_recovery: bool,
    /// `system_identifier` of `pg_control_system()`
    pub system_id: u64,
    /// Its timeline: of the WAL that it writes; for a standby, of the last it received or its checkpoint.
    pub timeline: u32,
}
