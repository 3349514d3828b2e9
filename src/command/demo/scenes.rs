//! What can happen to the demo's primary, played as an operator or a fault would: [`Scene`].

use std::time::Duration;

use super::{Demo, DemoError, say};

/// An operator that does not trust a first impression waits so long before it promotes another one.
const FAILOVER_AFTER: Duration = Duration::from_secs(1);

/// How long the primary stays fenced.
const FENCED_FOR: Duration = Duration::from_secs(3);

/// One thing that happens to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scene {
    /// A planned move, with HOLD.
    Switchover,
    /// The primary's machine is gone; another server is promoted.
    Kill,
    /// The primary is stopped on purpose and starts again; nobody else is promoted.
    Fence,
    /// The primary goes on, but cannot be reached; another one is promoted, and then it comes back.
    Cut,
}

impl Scene {
    pub(super) const ALL: [Scene; 4] = [Scene::Switchover, Scene::Kill, Scene::Fence, Scene::Cut];

    pub(super) fn of_key(key: u8) -> Option<Scene> {
        match key {
            b's' => Some(Scene::Switchover),
            b'k' => Some(Scene::Kill),
            b'f' => Some(Scene::Fence),
            b'n' => Some(Scene::Cut),
            _ => None,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Scene::Switchover => "switchover",
            Scene::Kill => "kill",
            Scene::Fence => "fence",
            Scene::Cut => "cut",
        }
    }

    /// Whether it is done in order, so that no client may meet an error.
    pub(super) fn is_planned(self) -> bool {
        self == Scene::Switchover
    }
}

impl Demo<'_> {
    /// Plays one scene to its end: then there is a primary with two standbys again.
    pub(super) async fn play(&mut self, scene: Scene) -> Result<(), DemoError> {
        let old = self.cluster.primary;
        let name = self.cluster.nodes[old].name.clone();
        match scene {
            Scene::Switchover => {
                say(&format!("> switchover: HOLD, {name} stops, another one is promoted, RELEASE"))?;
                self.psql("pgbouncer", "HOLD demo 30").await?;
                let next = self.choose("Switchover in progress").await?;
                self.cluster.stop_primary().await?;
                self.promote(next).await?;
                self.psql("pgbouncer", "RELEASE demo").await?;
                self.cluster.rejoin(old).await?;
            }
            Scene::Kill => {
                say(&format!("> kill: {name} is gone, another one is promoted"))?;
                self.cluster.kill_primary().await?;
                self.fail_over(&name).await?;
                self.cluster.rejoin(old).await?;
            }
            Scene::Fence => {
                say(&format!(
                    "> fence: {name} is stopped, and starts again after {} s",
                    FENCED_FOR.as_secs()
                ))?;
                self.operator.fences(Some(&name)).await?;
                self.cluster.stop_primary().await?;
                tokio::time::sleep(FENCED_FOR).await;
                self.operator.fences(None).await?;
                self.cluster.start_again(old).await?;
            }
            Scene::Cut => {
                say(&format!("> cut: {name} cannot be reached, another one is promoted, {name} comes back"))?;
                self.cluster.freeze(old, true);
                self.fail_over(&name).await?;
                self.cluster.freeze(old, false);
                tokio::time::sleep(FAILOVER_AFTER).await;
                self.cluster.rejoin(old).await?;
            }
        }
        self.operator.ready(&name, true).await
    }

    /// The primary is gone, as far as an operator can tell.
    async fn fail_over(&mut self, lost: &str) -> Result<(), DemoError> {
        self.operator.ready(lost, false).await?;
        tokio::time::sleep(FAILOVER_AFTER).await;
        self.operator.moves(None, "Failing over").await?;
        let next = self.choose("Failing over").await?;
        self.promote(next).await
    }

    /// Who becomes the primary; an operator says so before it happens.
    async fn choose(&self, phase: &str) -> Result<usize, DemoError> {
        let next = self.cluster.best_standby().await?;
        self.operator.moves(Some(&self.cluster.nodes[next].name), phase).await?;
        Ok(next)
    }

    /// The new primary says so itself, when it is one.
    async fn promote(&mut self, next: usize) -> Result<(), DemoError> {
        self.cluster.promote(next).await?;
        self.operator.names(&self.cluster.nodes[next].name).await
    }
}
