//! What the pools of one pooler may open at the primary, by its settings: [`pools`].

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::facts::Pools;
use crate::config::{Config, Database, Role};

/// The worst case: each user of each database at once. `databases` and `roles` are those of the server; the
/// first stand for `*`, the second for the users of `auth_query`.
pub(super) fn pools(config: &Config, cluster: &str, databases: &[String], roles: &[String]) -> Pools {
    // The monitor has a connection of its own.
    let mut all = Pools { connections: 1, ..Pools::default() };
    for database in entries(config, cluster, databases) {
        let mut connections: u32 = 0;
        let mut most = 0;
        for user in users(config, &database, roles) {
            let policy = config.pool_policy(&database, &user);
            most = policy.max_db_connections;
            all.count += 1;
            if policy.pool_size == 0 && most == 0 {
                all.unlimited.get_or_insert_with(|| (database.name.clone(), user));
            }
            let size = if policy.pool_size == 0 { most } else { policy.pool_size };
            connections = connections.saturating_add(size.saturating_add(policy.reserve_pool_size));
        }
        let connections = if most == 0 { connections } else { connections.min(most) };
        all.connections = all.connections.saturating_add(connections);
    }
    all
}

/// The databases whose clients may be sent to the primary.
fn entries<'a>(config: &'a Config, cluster: &str, databases: &'a [String]) -> Vec<Cow<'a, Database>> {
    let named = config.databases.keys().chain(databases).collect::<BTreeSet<_>>();
    let entries = named.into_iter().filter_map(|name| config.database(name));
    let is_meant = |database: &Cow<'_, Database>| {
        let of_cluster = database.cluster.as_deref() == Some(cluster);
        of_cluster && database.role.unwrap_or_default() != Role::ReadOnly
    };
    entries.filter(is_meant).collect()
}

/// Who may have a pool there: without those who only use the console, and without our own.
fn users(config: &Config, database: &Database, roles: &[String]) -> Vec<String> {
    if let Some(user) = &database.user {
        return vec![user.clone()];
    }
    let settings = &config.settings;
    let asks = settings.auth_user.is_some() || database.auth_user.is_some();
    let known = config.auth_users.keys().chain(config.users.keys());
    let known: BTreeSet<&String> = known.chain(roles.iter().filter(|_| asks)).collect();
    let console = settings.admin_users.iter().chain(&settings.stats_users);
    let own = [&settings.monitor_user, &settings.auth_user, &database.auth_user];
    let others: BTreeSet<&String> = console.chain(own.into_iter().flatten()).collect();
    known.difference(&others).map(|user| (*user).clone()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn check(ini: &str, users: &[&str], expected: Pools) {
        let general = if ini.contains("[pgbouncer]") { "" } else { "[pgbouncer]\n" };
        let text = format!("[clusters]\npg = source=cnpg\n{ini}{general}");
        let mut config = Config::from_text(Path::new("a.ini"), &text, &|_| None).expect("settings");
        config.auth_users = users.iter().map(|user| ((*user).to_owned(), String::new())).collect();
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let found = pools(&config, "pg", &names(&["app", "shop"]), &names(&["app", "shop", "mon"]));
        assert_eq!(found, expected, "{ini}");
    }

    fn some(count: usize, connections: u32) -> Pools {
        Pools { count, connections, unlimited: None }
    }

    #[test]
    fn each_user_of_each_database_has_a_pool() {
        let line = "[databases]\napp = cluster=pg\n";
        check(line, &["a", "b"], some(2, 2 * 20 + 1));
        let general = format!("{line}[pgbouncer]\ndefault_pool_size = 5\nreserve_pool_size = 2\n");
        check(&general, &["a", "b"], some(2, 2 * 7 + 1));
        check("[databases]\napp = cluster=pg user=app pool_size=3\n", &["a", "b"], some(1, 4));
        check("[databases]\n* = cluster=pg pool_size=3\n", &["a"], some(2, 7));
        check("[databases]\n* = cluster=pg\nshop = cluster=pg pool_size=3\n", &["a"], some(2, 24));
    }

    #[test]
    fn readers_and_other_clusters_do_not_count() {
        let lines = "[databases]\napp = cluster=pg role=ro\nother = host=elsewhere\n";
        check(lines, &["a"], some(0, 1));
    }

    #[test]
    fn our_own_users_have_no_pool() {
        let own = "[databases]\napp = cluster=pg\n[pgbouncer]\nadmin_users = root\nmonitor_user = mon\n";
        check(own, &["a", "mon", "root"], some(1, 21));
        let asked = "[databases]\napp = cluster=pg\n[pgbouncer]\nauth_user = mon\n";
        check(asked, &["a"], some(3, 61));
    }

    #[test]
    fn a_limit_of_the_database_holds_for_all_its_users() {
        check("[databases]\napp = cluster=pg max_db_connections=30\n", &["a", "b"], some(2, 31));
        check("[databases]\napp = cluster=pg pool_size=0 max_db_connections=30\n", &["a", "b"], some(2, 31));
        let unlimited = Pools { unlimited: Some(("app".into(), "a".into())), ..some(2, 1) };
        check("[databases]\napp = cluster=pg pool_size=0\n", &["a", "b"], unlimited);
    }
}
