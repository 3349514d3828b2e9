//! How many cores this process may use: what `workers` is when nobody sets it.
//!
//! A container often sees all cores of its machine but is granted a part of their time by its
//! cgroup; more threads than that only take turns being stopped.

use std::fs;
use std::path::{Path, PathBuf};

/// The cores that the cgroup grants, rounded up; never more than those that the process may run
/// on, never less than 1.
pub(super) fn granted() -> u32 {
    granted_below(Path::new("/"))
}

fn granted_below(root: &Path) -> u32 {
    let allowed = fs::read_to_string(root.join("proc/self/status"))
        .ok()
        .and_then(|status| allowed_cores(&status))
        .or_else(|| std::thread::available_parallelism().ok()?.get().try_into().ok())
        .unwrap_or(1);
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let quota = groups.lines().filter_map(|line| quota(root, line)).reduce(f64::min);
    // A float becomes the nearest u32 there is; a quota is never NaN.
    let granted = quota.map_or(allowed, |cores| cores.ceil() as u32);
    granted.clamp(1, allowed.max(1))
}

/// The number of cores in the line `Cpus_allowed_list: 0-3,8` of /proc/self/status.
fn allowed_cores(status: &str) -> Option<u32> {
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    list.trim().split(',').try_fold(0u32, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// The smallest quota from the group of a /proc/self/cgroup line up to the root of its hierarchy.
fn quota(root: &Path, line: &str) -> Option<f64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, group) = (parts.next()?, parts.next()?);
    let (mount, read): (PathBuf, fn(&Path) -> Option<f64>) = match controllers {
        "" => (root.join("sys/fs/cgroup"), quota_v2),
        names if names.split(',').any(|name| name == "cpu") => (root.join("sys/fs/cgroup/cpu"), quota_v1),
        _ => return None,
    };
    // The group's path may be the host's, absent in this container: its own root counts then.
    let group = group.trim_start_matches('/');
    Path::new(group).ancestors().filter_map(|path| read(&mount.join(path))).reduce(f64::min)
}

/// `cpu.max`: "quota period" or "max period", in microseconds.
fn quota_v2(group: &Path) -> Option<f64> {
    let text = fs::read_to_string(group.join("cpu.max")).ok()?;
    let (quota, period) = text.trim().split_once(' ')?;
    ratio(quota, period)
}

/// `cpu.cfs_quota_us` (-1 is no limit) and `cpu.cfs_period_us`.
fn quota_v1(group: &Path) -> Option<f64> {
    let read = |name| fs::read_to_string(group.join(name)).ok();
    ratio(read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
}

fn ratio(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (i64, i64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0 && period > 0).then(|| quota as f64 / period as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a file tree, and asks it for the granted cores.
    fn check(files: &[(&str, &str)], wanted: u32) {
        let root = tempfile::tempdir().unwrap();
        let status = ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-6,15\n");
        for (name, text) in std::iter::once(&status).chain(files) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        assert_eq!(granted_below(root.path()), wanted, "{files:?}");
    }

    #[test]
    fn the_smallest_quota_on_the_way_up_counts_and_is_rounded_up() {
        let own = ("proc/self/cgroup", "0::/pods/app\n");
        check(&[], 8);
        check(&[own], 8);
        check(&[own, ("sys/fs/cgroup/pods/app/cpu.max", "max 100000\n")], 8);
        check(&[own, ("sys/fs/cgroup/pods/app/cpu.max", "150000 100000\n")], 2);
        check(&[own, ("sys/fs/cgroup/pods/app/cpu.max", "10000 100000\n")], 1);
        check(&[own, ("sys/fs/cgroup/pods/app/cpu.max", "6400000 100000\n")], 8);
        let app = ("sys/fs/cgroup/pods/app/cpu.max", "400000 100000\n");
        check(&[own, app, ("sys/fs/cgroup/pods/cpu.max", "300000 100000\n")], 3);
        check(&[own, ("sys/fs/cgroup/cpu.max", "200000 100000\n")], 2);
    }

    #[test]
    fn the_first_version_of_cgroups_is_read_too() {
        let own = ("proc/self/cgroup", "5:memory:/app\n4:cpu,cpuacct:/app\n");
        let period = ("sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n");
        check(&[own, period, ("sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "-1\n")], 8);
        check(&[own, period, ("sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "250000\n")], 3);
    }

    #[test]
    fn broken_files_grant_what_the_machine_has() {
        check(&[("proc/self/cgroup", "x\n::\n0::\u{e9}\n")], 8);
        let own = ("proc/self/cgroup", "0::/\n");
        for text in ["", "1", "a b", "0 0", "1 0", "-5 100000"] {
            check(&[own, ("sys/fs/cgroup/cpu.max", text)], 8);
        }
    }
}
