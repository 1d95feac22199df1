//! Serving over NBD, as people do it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Stdio};

use serde_json::Value;
use vhdkit_testkit::require::require;

use crate::interrupt::signal;
use crate::support::{Folder, Ran};

/// A server that has said that clients can connect.
struct Serving {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
    /// What it has said first.
    first: String,
}

impl Serving {
    fn start(folder: &Folder, words: &str) -> Self {
        let mut child = folder
            .command(&format!("serve {words}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        if first.is_empty() {
            let mut said = String::new();
            child
                .stderr
                .take()
                .unwrap()
                .read_to_string(&mut said)
                .unwrap();
            panic!("serve {words}: {said}");
        }
        Self {
            child,
            lines,
            first,
        }
    }

    fn stop(mut self, name: &str) -> Ran {
        signal(&self.child, name);
        self.wait()
    }

    fn wait(&mut self) -> Ran {
        let code = self.child.wait().unwrap().code();
        let (mut out, mut err) = (self.first.clone(), String::new());
        self.lines.read_to_string(&mut out).unwrap();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut err)
            .unwrap();
        Ran { code, out, err }
    }
}

fn has_libnbd() -> bool {
    let found = std::process::Command::new("nbdinfo")
        .arg("--version")
        .output();
    require(found.is_ok(), "needs libnbd-bin")
}

#[test]
fn several_disks_are_served_by_name_until_a_signal_and_then_flushed_and_closed() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 64M");
    folder.ok("create b.vhd 16M");
    folder.ok("create c.vhdx --parent a.vhdx");
    folder.fill("noise", 8 << 20);
    for name in ["INT", "TERM"] {
        let serving = Serving::start(&folder, "c.vhdx b.vhd --socket s");
        assert!(
            serving
                .first
                .starts_with("serving c.vhdx (64 MiB) at nbd+unix:///c.vhdx?socket=/"),
            "{}",
            serving.first
        );
        let mode = std::fs::metadata(folder.path("s"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "others could connect");
        if has_libnbd() {
            let ran = folder.shell("nbdcopy noise 'nbd+unix:///c.vhdx?socket=s'; nbdinfo --size 'nbd+unix:///b.vhd?socket=s'");
            assert_eq!((ran.code, ran.out.trim()), (Some(0), "16777216"), "{ran:?}");
        }
        let ran = serving.stop(name);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(ran.err, "", "{ran:?}");
        assert!(
            !folder.names().contains(&"s".to_owned()),
            "the socket is gone"
        );
        if has_libnbd() {
            let ran = folder.shell("$V read c.vhdx --length 8M | cmp - noise");
            assert_eq!(ran.code, Some(0), "{ran:?}");
        }
        folder.sound("c.vhdx");
    }
}

#[test]
fn json_says_where_the_exports_are() {
    let folder = Folder::new();
    folder.ok("create a.img 1M");
    let mut serving = Serving::start(
        &folder,
        "a.img --name my/disk --port 0 --socket s --read-only --json",
    );
    let mut text = serving.first.clone();
    while !text.ends_with("}\n") || serde_json::from_str::<Value>(&text).is_err() {
        assert!(serving.lines.read_line(&mut text).unwrap() > 0, "{text}");
    }
    let json: Value = serde_json::from_str(&text).unwrap();
    let export = &json["exports"][0];
    assert_eq!(json["pid"], serving.child.id());
    assert_eq!(json["tls"], false);
    assert_eq!(
        (&export["name"], &export["path"]),
        (&"my/disk".into(), &"a.img".into())
    );
    assert_eq!(
        (&export["virtual_size"], &export["read_only"]),
        (&1_048_576.into(), &true.into())
    );
    let uris: Vec<&str> = export["uris"]
        .as_array()
        .unwrap()
        .iter()
        .map(|u| u.as_str().unwrap())
        .collect();
    assert!(
        uris[0].starts_with("nbd+unix:///my/disk?socket=/")
            && uris[1].starts_with("nbd://localhost:"),
        "{uris:?}"
    );
    if has_libnbd() {
        let ran = folder.shell(&format!(
            "nbdinfo --is read-only '{}' && nbdinfo --size '{}'",
            uris[1], uris[0]
        ));
        assert_eq!((ran.code, ran.out.trim()), (Some(0), "1048576"), "{ran:?}");
    }
    assert_eq!(serving.stop("TERM").code, Some(0));
}

#[test]
fn every_kind_of_disk_is_served() {
    if !has_libnbd() {
        return;
    }
    let folder = Folder::new();
    std::fs::copy(crate::support::real_disk(), folder.path("real.vhd")).unwrap();
    folder.ok("convert real.vhd a.vhdx");
    folder.ok("convert real.vhd b.img");
    folder.ok("convert real.vhd c.vhd --type fixed");
    folder.ok("create d.vhdx --parent a.vhdx");
    let expected = folder.content("real.vhd");
    for disk in ["real.vhd", "a.vhdx", "b.img", "c.vhd", "d.vhdx"] {
        for flag in ["", "--read-only"] {
            let ran = folder.shell(&format!(
                "nbdcopy -- [ $V serve {disk} {flag} ] - | sha256sum | cut -d' ' -f1"
            ));
            assert_eq!(
                ran.out.lines().last(),
                Some(&*expected),
                "{disk} {flag}: {ran:?}"
            );
        }
    }
    // A disc is read-only without being told.
    let mut disc = vec![0; 40 << 10];
    for (at, kind) in [(32 << 10, 1_u8), (34 << 10, 255)] {
        disc[at] = kind;
        disc[at + 1..at + 7].copy_from_slice(b"CD001\x01");
    }
    std::fs::write(folder.path("disc.iso"), disc).unwrap();
    let ran = folder.shell("nbdinfo --is read-only -- [ $V serve disc.iso ]");
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn it_is_started_by_socket_activation_and_ends_when_idle() {
    if !has_libnbd() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    let ran = folder.shell("nbdinfo --size -- [ $V serve a.vhdx ]");
    assert_eq!(
        (ran.code, ran.out.lines().last()),
        (Some(0), Some("8388608")),
        "{ran:?}"
    );
    let mut serving = Serving::start(&folder, "a.vhdx --socket s --exit-when-idle");
    let ran = folder.shell("nbdinfo --size 'nbd+unix:///?socket=s'");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran = serving.wait();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(!folder.path("s").exists());
}

#[test]
fn whoever_only_wants_the_list_is_a_client_whose_end_counts() {
    if !has_libnbd() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    folder.ok("create b.vhdx 8M");
    let mut serving = Serving::start(&folder, "a.vhdx b.vhdx --socket s --exit-when-idle");
    // Whoever only looks whether somebody is there is not one.
    drop(UnixStream::connect(folder.path("s")).unwrap());
    let mut silent = UnixStream::connect(folder.path("s")).unwrap();
    silent.read_exact(&mut [0; 18]).unwrap();
    silent.write_all(&3_u32.to_be_bytes()).unwrap();
    drop(silent);
    let ran = folder.shell("nbdinfo --list 'nbd+unix:///?socket=s'");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.out.contains("a.vhdx") && ran.out.contains("b.vhdx"),
        "{ran:?}"
    );
    assert_eq!(serving.wait().code, Some(0));
}

#[test]
fn what_cannot_be_served_is_told_with_the_way_out() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    std::fs::create_dir(folder.path("b")).unwrap();
    std::fs::copy(folder.path("a.vhdx"), folder.path("b/a.vhdx")).unwrap();
    folder
        .run("serve nothing.vhdx --socket s")
        .failed(1, "nothing.vhdx");
    folder
        .run("serve a.vhdx b/a.vhdx --socket s")
        .failed(2, "two exports would be called a.vhdx");
    folder
        .run("serve a.vhdx --name x --name y")
        .failed(2, "2 names for 1 disks");
    folder
        .run("serve a.vhdx b/a.vhdx --name x --name y --parent z")
        .failed(2, "--parent");
    folder
        .run("serve a.vhdx --socket no/folder/s")
        .failed(1, "no/folder/s");
    folder
        .run(&format!("serve a.vhdx --socket {}", "x".repeat(110)))
        .failed(1, "107 bytes");
    folder
        .run("serve a.vhdx --tls-dir nowhere")
        .failed(1, "server-cert.pem");
    std::fs::write(folder.path("file"), "precious").unwrap();
    folder
        .run("serve a.vhdx --socket file")
        .failed(1, "not a socket");
    assert_eq!(std::fs::read(folder.path("file")).unwrap(), b"precious");
    std::fs::write(folder.path("broken.vhdx"), "no signature").unwrap();
    folder
        .run("serve broken.vhdx --socket s")
        .failed(1, "no vhdx signature");
    for words in [
        "serve",
        "serve a.vhdx --port 70000",
        "serve a.vhdx --bind 1.2.3.4",
        "serve a.vhdx --port 1 --bind here",
    ] {
        assert_eq!(folder.run(words).code, Some(2), "{words}");
    }
    assert!(!folder.path("s").exists());
    // A folder in which nothing can be made, unless one is root.
    std::fs::create_dir(folder.path("closed")).unwrap();
    std::fs::set_permissions(
        folder.path("closed"),
        std::fs::Permissions::from_mode(0o555),
    )
    .unwrap();
    let ran = folder.shell_with_mounts(
        "mkdir -p ro; mount -t tmpfs -o ro none ro; $V serve a.vhdx --socket ro/s",
    );
    if let Some(ran) = ran {
        ran.failed(1, "ro/s");
    }
}

/// A story of this project: what the operating system's errors usually mean was said instead of what they mean here.
#[test]
fn who_may_not_serve_there_is_told_where_one_may() {
    let is_root = std::process::Command::new("id").arg("-u").output();
    if !require(is_root.is_ok_and(|o| o.stdout == b"0\n"), "needs root") {
        return;
    }
    // In a folder that everybody may enter, but not write to.
    let place = tempfile::tempdir().unwrap();
    let everybody = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    everybody(place.path(), 0o755);
    let program = place.path().join("vhdkit");
    std::fs::copy(env!("CARGO_BIN_EXE_vhdkit"), &program).unwrap();
    let run = |words: &str| {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command
            .arg(&program)
            .args(words.split(' '))
            .current_dir(place.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env("TMPDIR", place.path().join("tmp"));
        Ran::of(&command.output().unwrap())
    };
    // For what they have running.
    let theirs = place.path().join("tmp");
    std::fs::create_dir(&theirs).unwrap();
    everybody(&theirs, 0o777);
    let disk = Folder::new();
    disk.ok("create a.vhdx 8M");
    let copy = place.path().join("a.vhdx");
    std::fs::copy(disk.path("a.vhdx"), &copy).unwrap();
    let hint = |words: &str, hint: &str| {
        let ran = run(words);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.err.contains(hint), "{words}: {ran:?}");
    };
    everybody(&copy, 0o644);
    hint("serve a.vhdx --socket /dev/null/s", "use --read-only");
    hint(
        "serve a.vhdx --read-only --socket s",
        "choose a path in a folder",
    );
    let low = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start");
    if low.is_ok_and(|port| port.trim() != "0") {
        hint("serve a.vhdx --read-only --port 80", "ports below 1024");
    }
    everybody(&copy, 0o600);
    hint(
        "serve a.vhdx --read-only --socket s",
        "check the permissions",
    );
}

#[test]
fn a_disk_in_use_is_refused_and_can_be_read_by_several() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    let serving = Serving::start(&folder, "a.vhdx --socket s");
    let ran = folder.run("serve a.vhdx --socket t");
    ran.failed(1, "in use");
    assert!(!folder.path("t").exists());
    assert_eq!(serving.stop("TERM").code, Some(0));
    let first = Serving::start(&folder, "a.vhdx --socket s --read-only");
    let second = Serving::start(&folder, "a.vhdx --socket t --read-only");
    assert_eq!(
        (first.stop("TERM").code, second.stop("INT").code),
        (Some(0), Some(0))
    );
}

#[test]
fn a_live_socket_is_refused_and_a_dead_one_replaced() {
    let folder = Folder::new();
    folder.ok("create a.vhdx 8M");
    folder.ok("create b.vhdx 8M");
    let mut serving = Serving::start(&folder, "a.vhdx --socket s");
    folder
        .run("serve b.vhdx --socket s")
        .failed(1, "a server is listening there");
    assert!(
        UnixStream::connect(folder.path("s")).is_ok(),
        "the live one stays"
    );
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    assert!(folder.path("s").exists(), "kill -9 leaves it");
    let serving = Serving::start(&folder, "b.vhdx --socket s");
    // A socket that took our place is not removed with ours.
    std::fs::remove_file(folder.path("s")).unwrap();
    let _other = UnixListener::bind(folder.path("s")).unwrap();
    assert_eq!(serving.stop("TERM").code, Some(0));
    assert!(folder.path("s").exists());
}

#[test]
fn open_to_the_world_without_tls_comes_with_a_warning() {
    let folder = Folder::new();
    folder.ok("create a.img 1M");
    let ran = Serving::start(&folder, "a.img --port 0 --bind 0.0.0.0").stop("TERM");
    assert!(
        ran.err.contains("warning: anybody who reaches 0.0.0.0:") && ran.err.contains("--tls-dir"),
        "{ran:?}"
    );
    let ran = Serving::start(&folder, "a.img --port 0").stop("TERM");
    assert_eq!(ran.err, "");
}

#[test]
fn what_was_flushed_survives_kill_9_in_the_middle_of_a_copy() {
    if !has_libnbd() {
        return;
    }
    let folder = Folder::new();
    folder.fill("noise", 16 << 20);
    for disk in ["a.vhdx", "a.vhd"] {
        folder.ok(&format!("create {disk} 512M --force"));
        let mut serving = Serving::start(&folder, &format!("{disk} --socket s"));
        let ran = folder.shell("nbdcopy --flush noise 'nbd+unix:///?socket=s'");
        assert_eq!(ran.code, Some(0), "{ran:?}");
        // Without end, behind what was flushed.
        let mut endless = UnixStream::connect(folder.path("s")).unwrap();
        let mut greeting = [0; 18];
        endless.read_exact(&mut greeting).unwrap();
        let mut say = 3_u32.to_be_bytes().to_vec();
        say.extend(b"IHAVEOPT");
        say.extend([1_u32, 0].map(u32::to_be_bytes).concat());
        endless.write_all(&say).unwrap();
        endless.read_exact(&mut [0; 10]).unwrap();
        let begun = std::time::Instant::now();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(150));
            serving.child.kill().unwrap();
            serving.child.wait().unwrap();
        });
        let mut at = 16_u64 << 20;
        let block = vec![0xAB; 1 << 20];
        while at < 500 << 20 && begun.elapsed().as_secs() < 60 {
            let mut head = 0x2560_9513_u32.to_be_bytes().to_vec();
            head.extend([0_u16, 1].map(u16::to_be_bytes).concat());
            head.extend([at, at].map(u64::to_be_bytes).concat());
            head.extend((1_u32 << 20).to_be_bytes());
            if endless
                .write_all(&head)
                .and_then(|()| endless.write_all(&block))
                .is_err()
            {
                break;
            }
            if endless.read_exact(&mut [0; 16]).is_err() {
                break;
            }
            at = if at + (2 << 20) < 500 << 20 {
                at + (1 << 20)
            } else {
                16 << 20
            };
        }
        killer.join().unwrap();
        let ran = folder.shell(&format!(
            "$V read {disk} --length 16M | cmp - noise && $V check {disk}"
        ));
        assert_eq!(ran.code, Some(0), "{disk}: {ran:?}");
    }
}
