//! Every interleaving of the handle's small steps: `RUSTFLAGS="--cfg loom" cargo test -p vhdkit --release loom`.

use super::*;

#[test]
fn loom_the_pair_is_never_mixed() {
    loom::model(|| {
        let cell = Arc::new(ProgressCell::new());
        let writer = {
            let cell = cell.clone();
            loom::thread::spawn(move || cell.update(|_, _| (5, 50)))
        };
        let (current, completion) = cell.read();
        assert!((current, completion) == (0, 1) || (current, completion) == (5, 50));
        writer.join().unwrap();
        assert_eq!(cell.read(), (5, 50));
    });
}

#[test]
fn loom_two_writers_lose_no_update() {
    loom::model(|| {
        let cell = Arc::new(ProgressCell::new());
        cell.update(|_, _| (0, 10));
        let other = {
            let cell = cell.clone();
            loom::thread::spawn(move || cell.update(|c, n| (c + 1, n)))
        };
        cell.update(|c, n| (c + 2, n));
        other.join().unwrap();
        assert_eq!(cell.read(), (3, 10));
    });
}

#[test]
fn loom_whoever_waits_sees_the_final_status() {
    loom::model(|| {
        let operation = Operation::start("loom", |_| Ok(7));
        let observer = operation.observer();
        assert_eq!(operation.wait().unwrap(), 7);
        assert_eq!(observer.progress().status, Status::Succeeded);
    });
}

#[test]
fn loom_a_cancel_is_seen_or_the_work_was_over() {
    loom::model(|| {
        let operation = Operation::<()>::start("loom", |monitor| monitor.checkpoint());
        let observer = operation.observer();
        observer.cancel();
        match operation.wait() {
            Ok(()) => assert_eq!(observer.progress().status, Status::Succeeded),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Aborted),
        }
    });
}
