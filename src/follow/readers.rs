//! The sites of a cluster's standbys: kept from one look to the next, so that connections stay as long
//! as their standby does.

use std::sync::Arc;

use crate::pool::access::{Alarm, Site};
use crate::topology::{Member, Place};

/// The standbys that may be read from now.
#[derive(Debug, Default)]
pub(super) struct Readers {
    sites: Vec<Arc<Site>>,
}

impl Readers {
    /// A site for each of these standbys, those of our zone alone if there are any. Others are closed.
    pub(super) fn choose(
        &mut self,
        fresh: &[Member],
        zone: Option<&str>,
        alarm: &Arc<Alarm>,
    ) -> Vec<Arc<Site>> {
        let near: Vec<_> = fresh.iter().filter(|m| m.zone.is_some() && m.zone.as_deref() == zone).collect();
        let chosen = if near.is_empty() { fresh.iter().collect() } else { near };
        self.sites.retain(|site| {
            let stays = chosen.iter().any(|member| site.place.as_ref() == Some(&member.place));
            if !stays {
                site.close();
            }
            stays
        });
        for member in chosen {
            if !self.serves(&member.place) {
                let site = Site::of_cluster(member.place.clone(), Some(true), alarm);
                site.join(&self.sites);
                self.sites.push(site);
            }
        }
        self.sites.clone()
    }

    /// Nothing new begins at this place.
    pub(super) fn close(&mut self, place: &Place) {
        for site in self.sites.extract_if(.., |site| site.place.as_ref() == Some(place)) {
            site.close();
        }
    }

    /// Whether it is among them.
    pub(super) fn serves(&self, place: &Place) -> bool {
        self.site(place).is_some()
    }

    /// Connections to it that are lent to clients.
    pub(super) fn leased(&self, place: &Place) -> u32 {
        self.site(place).map_or(0, |site| site.leased())
    }

    /// Connections to it.
    pub(super) fn connections(&self, place: &Place) -> u32 {
        self.site(place).map_or(0, |site| site.connections())
    }

    fn site(&self, place: &Place) -> Option<&Arc<Site>> {
        self.sites.iter().find(|site| site.place.as_ref() == Some(place))
    }
}
