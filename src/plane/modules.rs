//! Whether the kernel's modules for ESP are there, and whether the administrator has blocked them: what looks the same to a
//! probe ("no such algorithm") needs another remedy.

use std::fs;
use std::path::Path;

/// The modules that carry ESP.
pub const ESP: [&str; 2] = ["esp4", "esp6"];

/// More of a directory, or of a file, is not read.
const MAX_FILES: usize = 512;
const MAX_OCTETS: u64 = 1024 * 1024;

/// How a module is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Module {
    /// It is loaded or built in.
    There,
    /// It can be loaded.
    Loadable,
    /// Somebody does not want it to be loaded; says where that stands.
    Blocked(String),
    /// This kernel has none.
    Missing,
}

/// How a module is on the host whose file system begins at `root` and that runs this kernel.
pub fn module(root: &Path, release: &str, name: &str) -> Module {
    let modules = root.join("lib/modules").join(release);
    let listed = |file: &str| {
        let text = read(&modules.join(file));
        text.lines().any(|line| module_of(line.split(':').next().unwrap_or(line)) == name)
    };
    if root.join("sys/module").join(name).exists() || listed("modules.builtin") {
        return Module::There;
    }
    // Blocked ones may be gone from the disk as well, and the administrator's word is what can be changed.
    if let Some(place) = blocked(root, name) {
        return Module::Blocked(place);
    }
    if listed("modules.dep") { Module::Loadable } else { Module::Missing }
}

/// Where it stands that a module shall not be loaded.
fn blocked(root: &Path, name: &str) -> Option<String> {
    let command_line = read(&root.join("proc/cmdline"));
    for word in command_line.split_whitespace() {
        for key in ["module_blacklist=", "modprobe.blacklist="] {
            let list = word.strip_prefix(key).unwrap_or_default();
            if list.split(',').any(|m| same(m, name)) {
                return Some(format!("the kernel's command line ({key}…)"));
            }
        }
    }
    if read(&root.join("proc/sys/kernel/modules_disabled")).trim() == "1" {
        return Some("kernel.modules_disabled, until the next boot".to_owned());
    }
    // As modprobe.d(5) says: what stands first wins over files of the same name, which makes no difference here.
    for dir in [
        "etc/modprobe.d",
        "run/modprobe.d",
        "usr/local/lib/modprobe.d",
        "usr/lib/modprobe.d",
        "lib/modprobe.d",
    ] {
        let Ok(entries) = fs::read_dir(root.join(dir)) else { continue };
        let mut files: Vec<_> = entries.flatten().map(|e| e.path()).take(MAX_FILES).collect();
        files.sort();
        for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "conf")) {
            let text = read(file);
            let line = (1usize..).zip(text.lines()).find(|(_, line)| blocks(line, name));
            if let Some((number, line)) = line {
                let place =
                    format!("/{dir}/{}:{number}", file.file_name().unwrap_or_default().to_string_lossy());
                return Some(crate::observe::one_line(&format!("{place}: {}", line.trim())));
            }
        }
    }
    None
}

/// Whether a line of modprobe.d keeps a module from being loaded.
fn blocks(line: &str, name: &str) -> bool {
    let mut words = line.split_whitespace();
    match (words.next(), words.next()) {
        (Some("blacklist"), Some(module)) => same(module, name),
        (Some("install"), Some(module)) if same(module, name) => {
            words.next().is_some_and(|program| program.ends_with("/false") || program.ends_with("/true"))
        }
        _ => false,
    }
}

/// Module names are written with either.
fn same(a: &str, b: &str) -> bool {
    a.replace('-', "_") == b.replace('-', "_")
}

/// The module that a file is of.
fn module_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

fn read(path: &Path) -> String {
    use std::io::Read;
    let mut text = String::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_OCTETS).read_to_string(&mut text);
    }
    text
}

/// What to say of a host whose kernel has no ESP: `None` if its modules could be loaded.
pub fn why_no_esp(root: &Path, release: &str) -> Option<(String, String)> {
    let all = ESP.map(|name| (name, module(root, release, name)));
    let blocked = all.iter().find_map(|(name, m)| match m {
        Module::Blocked(place) => Some((*name, place)),
        _ => None,
    });
    if let Some((name, place)) = blocked {
        return Some((
            format!("the administrator has blocked the kernel's ESP: module {name}, by {place}"),
            "take that line out and load the modules esp4 and esp6, or stay with cygnet's own ESP".to_owned(),
        ));
    }
    all.iter().all(|(_, m)| *m == Module::Missing).then(|| {
        (
            "this kernel has no ESP modules (esp4, esp6)".to_owned(),
            "boot a kernel that has them, or stay with cygnet's own ESP".to_owned(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0-test";

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    const DEP: (&str, &str) = (
        "lib/modules/6.1.0-test/modules.dep",
        "kernel/net/ipv4/esp4.ko.xz: kernel/net/xfrm/xfrm_algo.ko.xz\nkernel/net/ipv6/esp6.ko.xz:\n",
    );

    #[test]
    fn blocked_absent_and_ordinary_modules_are_told_apart() {
        let of = |files: &[(&str, &str)]| module(host(files).path(), RELEASE, "esp4");
        assert_eq!(of(&[]), Module::Missing);
        assert_eq!(of(&[DEP]), Module::Loadable);
        assert_eq!(
            of(&[("lib/modules/6.1.0-test/modules.builtin", "kernel/net/ipv4/esp4.ko\n")]),
            Module::There
        );
        for (file, line) in [
            ("etc/modprobe.d/cve.conf", "# comment\n  install esp4 /bin/false # CVE"),
            ("usr/lib/modprobe.d/x.conf", "blacklist esp4\n"),
            ("proc/cmdline", "quiet module_blacklist=tipc,esp4 splash\n"),
            ("proc/sys/kernel/modules_disabled", "1\n"),
        ] {
            assert!(matches!(of(&[DEP, (file, line)]), Module::Blocked(_)), "{file}");
        }
        let Module::Blocked(place) = of(&[DEP, ("etc/modprobe.d/cve.conf", "\ninstall esp4 /bin/true")])
        else {
            panic!()
        };
        assert_eq!(place, "/etc/modprobe.d/cve.conf:2: install esp4 /bin/true");
        // What is about others, or does not keep it away.
        for line in [
            "blacklist esp4_offload",
            "install esp4 /sbin/modprobe --ignore-install esp4",
            "options esp4 x=1",
        ] {
            assert_eq!(of(&[DEP, ("etc/modprobe.d/x.conf", line)]), Module::Loadable, "{line}");
        }
        assert_eq!(of(&[DEP, ("etc/modprobe.d/x.bak", "blacklist esp4")]), Module::Loadable);
    }

    #[test]
    fn the_remedy_fits_the_cause() {
        let blocked = host(&[DEP, ("etc/modprobe.d/a.conf", "blacklist esp6")]);
        let (why, fix) = why_no_esp(blocked.path(), RELEASE).unwrap();
        assert!(
            why.contains("blocked") && why.contains("a.conf:1") && fix.contains("take that line out"),
            "{why}"
        );
        assert!(why_no_esp(host(&[]).path(), RELEASE).unwrap().1.contains("boot a kernel"));
        assert_eq!(why_no_esp(host(&[DEP]).path(), RELEASE), None);
    }
}
