//! Clients that mean no good, or have gone to sleep.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vhdkit_nbd::Limits;
use vhdkit_testkit::rng::Rng;

use crate::raw::{EXTENDED, GO, Raw, STRUCTURED, go};
use crate::support::{MIB, Memory, Served, has_libnbd};

fn is_served(served: &Served) {
    let mut raw = Raw::simple(served);
    raw.request(0, 0, 77, 0, 512);
    assert_eq!(raw.simple_reply(), (0, 77));
    raw.take(512);
}

/// Memory of this process in use.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn noise_does_not_hurt() {
    let served = Served::export(Memory::new(MIB));
    let mut rng = Rng::new(1);
    for round in 0..200 {
        let mut raw = Raw::connect(&served);
        if round % 2 == 0 {
            raw.go("test");
        }
        let noise: Vec<u8> = (0..2000).map(|_| rng.next().to_le_bytes()[0]).collect();
        let _ = raw.0.write_all(&noise);
        drop(raw);
    }
    is_served(&served);
}

#[test]
fn clients_that_say_nothing_are_shown_out_and_keep_nobody_out() {
    let limits = Limits {
        handshakes: 4,
        // Long enough that nobody is shown out for that.
        handshake_time: Duration::from_mins(10),
        ..Limits::default()
    };
    let served = Served::export_with(Memory::new(MIB), limits);
    let mut silent: Vec<UnixStream> = Vec::new();
    for _ in 0..20 {
        silent.push(UnixStream::connect(served.socket()).unwrap());
        is_served(&served);
    }
    // Also those that talk without end, when their time is over.
    let limits = Limits {
        handshake_time: Duration::from_millis(1500),
        ..limits
    };
    let served = Served::export_with(Memory::new(MIB), limits);
    let mut chatty = Raw::connect(&served);
    let begun = Instant::now();
    let patience = Duration::from_mins(2);
    while begun.elapsed() < patience {
        let asked = [&b"IHAVEOPT"[..], &3_u32.to_be_bytes(), &0_u32.to_be_bytes()].concat();
        if chatty.0.write_all(&asked).is_err() {
            break;
        }
    }
    assert!(begun.elapsed() < patience, "it talks still");
}

#[test]
fn clients_beyond_the_limit_are_told_and_let_in_when_another_has_gone() {
    let limits = Limits {
        clients: 2,
        ..Limits::default()
    };
    let served = Served::export_with(Memory::new(MIB), limits);
    let first = Raw::simple(&served);
    let _second = Raw::simple(&served);
    let mut third = Raw::connect(&served);
    third.option(GO, &go("test"));
    let (kind, words) = third.answer();
    assert_eq!(kind, 0x8000_0002);
    assert!(String::from_utf8_lossy(&words).contains("too many clients"));
    drop(first);
    let begun = Instant::now();
    while third.ask(GO, &go("test")) != 1 {
        assert!(begun.elapsed() < Duration::from_mins(2));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A story of this server: 64 clients that had chosen an export and said nothing more kept everybody else out.
#[test]
fn one_process_that_sits_on_connections_keeps_no_other_out() {
    if !has_libnbd() {
        return;
    }
    let served = Served::export(Memory::new(MIB));
    let mut sitting = Vec::new();
    loop {
        let mut raw = Raw::connect(&served);
        let kind = raw.ask(GO, &go("test"));
        if kind != 1 {
            assert_eq!(kind, 0x8000_0002, "after {}", sitting.len());
            break;
        }
        sitting.push(raw);
        assert!(sitting.len() < 1000, "there is no limit");
    }
    assert!(sitting.len() >= 64, "only {}", sitting.len());
    // Another process is let in, and those who sit there have lost nothing.
    let uri = served.uri("test");
    assert_eq!(served.ok("nbdinfo", &["--size", &uri]), "1048576\n");
    for raw in &mut sitting {
        raw.request(0, 0, 77, 0, 512);
        assert_eq!(raw.simple_reply(), (0, 77));
        raw.take(512);
    }
}

#[test]
fn one_process_that_comes_again_and_again_does_not_push_others_out() {
    if !has_libnbd() {
        return;
    }
    let served = Served::export(Memory::new(MIB));
    // It takes its time to choose.
    let script = format!(
        "import nbd\nh = nbd.NBD()\nh.set_opt_mode(True)\nh.connect_uri('{}')\nprint('here', flush=True)\ninput()\nh.opt_go()\nprint(h.get_size())\n",
        served.uri("test")
    );
    let mut other = Command::new("/usr/bin/python3")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(other.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "here");
    let many: Vec<Raw> = (0..100).map(|_| Raw::connect(&served)).collect();
    other.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "1048576");
    assert!(other.wait().unwrap().success());
    drop(many);
}

#[test]
fn announced_lengths_cost_nothing_until_the_bytes_come() {
    let served = Served::export_with(Memory::new(64 * MIB), Limits::default());
    let before = resident();
    let mut waiting = Vec::new();
    for i in 0..40 {
        let mut raw = Raw::simple(&served);
        // A write of 32 MiB of which a little comes, or many reads of which nobody takes the replies.
        if i % 2 == 0 {
            raw.request(1, 0, 1, 0, 32 << 20);
            raw.say(&[1; 5000]);
        } else {
            for cookie in 0..64 {
                raw.request(0, 0, cookie, 0, 32 << 20);
            }
        }
        waiting.push(raw);
    }
    // Until all are waited for: what comes now is answered in its turn.
    for raw in waiting.iter().skip(1).step_by(2) {
        let begun = Instant::now();
        while rustix::io::ioctl_fionread(&raw.0).unwrap() == 0 {
            assert!(begun.elapsed() < Duration::from_mins(2), "no reply");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    std::thread::sleep(Duration::from_millis(200));
    is_served(&served);
    let grown = resident().saturating_sub(before);
    assert!(grown < 300 * MIB, "{} MiB for 40 clients", grown / MIB);
    // A server that ends does not wait for them for long.
    let begun = Instant::now();
    let mut served = served;
    served
        .server
        .take()
        .unwrap()
        .close(Duration::from_millis(200));
    assert!(begun.elapsed() < Duration::from_mins(2));
}

#[test]
fn a_client_that_stops_reading_does_not_slow_others() {
    let served = Served::export(Memory::new(8 * MIB));
    let mut stalled = Raw::simple(&served);
    for cookie in 0..200 {
        stalled.request(0, 0, cookie, 0, 1 << 20);
    }
    for _ in 0..20 {
        is_served(&served);
    }
}

#[test]
fn options_and_payloads_beyond_reason_end_the_connection() {
    let served = Served::export(Memory::new(MIB));
    // A little too long is read and refused.
    let mut raw = Raw::connect(&served);
    raw.option(6, &vec![0; 100_000]);
    assert_eq!(raw.answer().0, 0x8000_0009);
    assert_eq!(raw.ask(STRUCTURED, &[]), 1);
    // Much too long is not waited for.
    raw.say(
        &[
            &b"IHAVEOPT"[..],
            &6_u32.to_be_bytes(),
            &u32::MAX.to_be_bytes(),
        ]
        .concat(),
    );
    assert!(raw.is_over());
    let mut raw = Raw::connect(&served);
    assert_eq!(raw.ask(EXTENDED, &[]), 1);
    raw.go("test");
    raw.extended_request(1, 1 << 5, 1, 0, 1 << 60);
    assert!(raw.is_over());
    let mut raw = Raw::connect(&served);
    raw.say(b"NOTANOPTIONATALL");
    assert!(raw.is_over());
    is_served(&served);
}

#[test]
fn a_server_that_ends_answers_what_is_underway() {
    let mut memory = Memory::new(MIB);
    memory.delay = Duration::from_millis(300);
    let most = memory.most_reading.clone();
    let mut served = Served::export(memory);
    let mut raw = Raw::simple(&served);
    raw.request(3, 0, 1, 0, 0);
    raw.request(0, 0, 2, 0, 4096);
    while most.load(Ordering::SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let server = served.server.take().unwrap();
    let ending = std::thread::spawn(move || server.close(Duration::from_mins(1)));
    let mut answered = Vec::new();
    for _ in 0..2 {
        let (error, cookie) = raw.simple_reply();
        if cookie == 2 && error == 0 {
            raw.take(4096);
        }
        assert!(error == 0 || error == 108, "{error}");
        answered.push(cookie);
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 2]);
    assert!(raw.is_over());
    ending.join().unwrap();
    assert!(!served.socket().exists(), "the socket is gone");
}

/// A story of this project: a handle for stopping kept the disk from being closed, so that unflushed writes were lost.
#[test]
fn after_the_end_nobody_has_the_disk_even_while_its_stopper_lives() {
    let mut served = Served::disks(&["a.vhdx"], 8 * MIB);
    let stopper = served.server.as_ref().unwrap().stopper();
    for _ in 0..8 {
        let mut raw = Raw::connect(&served);
        raw.go("a.vhdx");
        raw.request(1, 0, 1, 0, 512);
        raw.say(&[9; 512]);
        assert_eq!(raw.simple_reply(), (0, 1));
    }
    stopper.stop();
    served.server.as_ref().unwrap().wait(false);
    served.close();
    stopper.stop();
    let disk = vhdkit::VirtualDisk::open(served.path("a.vhdx")).unwrap();
    let mut buf = [0; 512];
    disk.read_at(0, &mut buf).unwrap();
    assert_eq!(buf, [9; 512]);
}
