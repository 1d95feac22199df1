//! What is left when a server is killed: nothing, but what had been flushed.

use super::{Attached, can_attach, eventually, has, sh};
use crate::support::Folder;
use std::io::Read;
use std::process::{Command, Stdio};

fn kill(pid: u32) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.unwrap().success());
}

#[test]
fn a_killed_server_fails_writers_at_once_and_keeps_what_was_flushed() {
    if !can_attach() || !has(&["mkfs.ext4", "e2fsck"]) {
        return;
    }
    let folder = Folder::new();
    for name in ["a.vhdx", "b.vhd"] {
        folder.ok(&format!("create {name} 400M"));
        let attached = Attached::new(&folder, name);
        let device = attached.device().to_owned();
        sh(
            &folder,
            &device,
            "mkdir -p m; mkfs.ext4 -q $D; mount $D m; head -c 20M /dev/urandom > m/kept; sha256sum < m/kept > sum; sync m/kept; sync -f m",
        );
        // A writer that says when it has failed.
        let mut writer = folder.shell_child(
            "while dd if=/dev/zero of=m/load bs=1M count=50 conv=fsync 2>/dev/null; do :; done; date +%s%N",
        );
        let load = folder.path("m/load");
        eventually("the writer to be at it", || {
            load.metadata().is_ok_and(|load| load.len() > 0)
        });
        kill(attached.pid());
        // Not at once would be never: nobody serves the device any more.
        let mut said = String::new();
        writer
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        writer.wait().unwrap();
        assert!(!said.trim().is_empty());
        // It is shown as what it is, with what is still mounted.
        eventually("its death to be seen", || {
            attached.now().is_some_and(|row| row["state"] == "dead")
        });
        let dead = attached.now().unwrap();
        assert_eq!(dead["mounts"].as_array().unwrap().len(), 1, "{dead}");
        let ran = folder.run(&format!("detach {name}"));
        ran.failed(1, "is mounted at");
        sh(&folder, &device, "umount m");
        attached.gone_after_list();

        // Nothing hinders the next one.
        let again = Attached::new(&folder, name);
        sh(
            &folder,
            again.device(),
            "e2fsck -p $D || test $? -eq 1; e2fsck -fn $D; mount $D m; sha256sum < m/kept | cmp - sum; umount m",
        );
        folder.ok(&format!("detach {name}"));
        again.gone();
        folder.sound(name);
    }
}

/// Everything that can end an attachment, again and again.
#[test]
fn fifty_cycles_leave_nothing_behind() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    folder.ok("create disk.vhd 64M");
    for round in 0..50_u32 {
        let name = if round % 2 == 0 {
            "disk.vhdx"
        } else {
            "disk.vhd"
        };
        let attached = Attached::new(&folder, name);
        let device = attached.device();
        // Dirty pages at the end, in both senses.
        sh(
            &folder,
            device,
            &format!("head -c 1M /dev/urandom | dd of=$D bs=64K seek={round} status=none"),
        );
        match round % 5 {
            0 | 1 => {
                folder.ok(&format!("detach {name}"));
                attached.gone();
            }
            2 => {
                // SIGTERM.
                sh(&folder, device, &format!("kill {}", attached.pid()));
                attached.gone();
            }
            3 => {
                kill(attached.pid());
                attached.gone_after_list();
            }
            _ => {
                // The holder: the device goes, and with it the server.
                sh(
                    &folder,
                    device,
                    &format!("pkill -9 -P {} || true", attached.pid()),
                );
                attached.gone();
            }
        }
    }
    folder.sound("disk.vhdx");
    folder.sound("disk.vhd");
}

impl Attached<'_> {
    /// As [`Attached::gone`], where only looking clears up.
    fn gone_after_list(&self) {
        eventually("the holder to end", || self.processes().is_empty());
        self.folder.ok("list");
        self.gone();
        assert!(self.now().is_none());
    }
}

#[test]
fn a_bound_attachment_ends_with_its_command_however_that_ends() {
    if !can_attach() {
        return;
    }
    let folder = Folder::new();
    folder.ok("create disk.vhdx 64M");
    for signal in ["INT", "TERM", "KILL"] {
        let mut child = folder
            .command("attach disk.vhdx --foreground --json")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // One JSON value, and then it stays.
        let out = child.stdout.take().unwrap();
        let row = serde_json::Deserializer::from_reader(out)
            .into_iter()
            .next();
        let attached = Attached {
            folder: &folder,
            row: row.unwrap().unwrap(),
        };
        assert_eq!(attached.row["permanent"], false);
        sh(
            &folder,
            attached.device(),
            &format!(
                "echo x | dd of=$D status=none; kill -{signal} {}",
                child.id()
            ),
        );
        let code = child.wait().unwrap().code();
        match signal {
            "INT" | "TERM" => assert_eq!(code, Some(0)),
            _ => assert_eq!(code, None),
        }
        attached.gone();
    }
    assert_eq!(folder.ok("read disk.vhdx --length 2"), "x\n");
}
