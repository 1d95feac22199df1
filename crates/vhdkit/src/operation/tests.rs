//! The rules of the progress contract that do not depend on C types (virtdisk-api, section 6).

use super::*;
use std::sync::mpsc;
use std::time::{Duration, Instant};

fn until_over<T>(operation: &Operation<T>) {
    while operation.progress().status == Status::Pending {
        std::thread::yield_now();
    }
}

#[test]
fn p01_asking_works_whatever_became_of_the_operation() {
    let operation =
        Operation::<()>::start("test", |_| Err(Error::new(ErrorKind::DiskFull, "full")));
    until_over(&operation);
    assert_eq!(
        operation.progress().status,
        Status::Failed(ErrorKind::DiskFull)
    );
    assert_eq!(operation.wait().unwrap_err().kind(), ErrorKind::DiskFull);
}

#[test]
fn p07_asking_never_waits_for_the_work_and_changes_nothing() {
    let (go, gate) = mpsc::channel::<()>();
    let operation = Operation::start("test", move |monitor| {
        monitor.set(3, 7);
        gate.recv().ok();
        Ok(5)
    });
    let started = Instant::now();
    while operation.progress().completion != 7 {
        assert!(started.elapsed() < Duration::from_mins(2));
    }
    for _ in 0..1000 {
        let p = operation.progress();
        assert_eq!((p.status, p.current, p.completion), (Status::Pending, 3, 7));
    }
    go.send(()).unwrap();
    assert_eq!(operation.wait().unwrap(), 5);
}

#[test]
fn p10_pending_ends_only_when_the_effect_is_there() {
    for _ in 0..100 {
        let done = Arc::new(AtomicBool::new(false));
        let effect = done.clone();
        let operation = Operation::start("test", move |_| {
            effect.store(true, Ordering::Release);
            Ok(())
        });
        until_over(&operation);
        assert!(done.load(Ordering::Acquire));
        operation.wait().unwrap();
    }
}

#[test]
fn p13_every_answer_is_one_consistent_pair() {
    let operation = Operation::start("test", |monitor| {
        let mut n = 0_u64;
        while !monitor.is_cancelled() {
            n += 1;
            monitor.set(n, n * 3);
        }
        Ok(())
    });
    let observers: Vec<_> = (0..3)
        .map(|_| {
            let observer = operation.observer();
            std::thread::spawn(move || {
                for _ in 0..200_000 {
                    let p = observer.progress();
                    assert!(p.current <= p.completion);
                    assert!(p.completion == 1 && p.current == 0 || p.completion == p.current * 3);
                }
            })
        })
        .collect();
    for observer in observers {
        observer.join().unwrap();
    }
    operation.cancel();
    operation.wait().unwrap();
}

#[test]
fn p14_one_hundred_percent_while_pending_is_legal() {
    let (go, gate) = mpsc::channel::<()>();
    let operation = Operation::start("test", move |monitor| {
        monitor.set(4, 4);
        gate.recv().ok();
        Ok(())
    });
    while operation.progress().current != 4 {
        std::thread::yield_now();
    }
    let p = operation.progress();
    assert_eq!(p.status, Status::Pending);
    assert!((p.percent() - 100.0).abs() < 1e-9);
    go.send(()).unwrap();
    operation.wait().unwrap();
}

#[test]
fn p16_completion_is_never_zero_and_current_never_beyond_it() {
    let operation = Operation::start("test", |monitor| {
        monitor.set(9, 0);
        monitor.set_completion(0);
        monitor.advance(100);
        Ok(())
    });
    loop {
        let p = operation.progress();
        assert!(p.completion >= 1 && p.current <= p.completion);
        if p.status != Status::Pending {
            break;
        }
    }
    operation.wait().unwrap();
}

#[test]
fn p18_the_percentage_does_not_overflow() {
    let p = Progress {
        status: Status::Pending,
        current: u64::MAX - 1,
        completion: u64::MAX,
    };
    assert!(p.percent() <= 100.0 && p.percent() > 99.9);
}

#[test]
fn p21_after_the_end_every_answer_is_the_same() {
    let operation = Operation::start("test", |_| Ok(()));
    until_over(&operation);
    for _ in 0..3 {
        assert_eq!(operation.progress().status, Status::Succeeded);
    }
}

#[test]
fn p22_after_a_wait_the_next_answer_is_not_pending() {
    for _ in 0..200 {
        let operation = Operation::start("test", |_| Ok(()));
        let observer = operation.observer();
        operation.wait().unwrap();
        assert_eq!(observer.progress().status, Status::Succeeded);
    }
}

#[test]
fn p23_the_wait_and_the_status_agree() {
    for kind in [
        ErrorKind::NotFound,
        ErrorKind::Aborted,
        ErrorKind::ParentIdMismatch,
    ] {
        let operation = Operation::<()>::start("test", move |_| Err(Error::new(kind, "x")));
        let observer = operation.observer();
        assert_eq!(operation.wait().unwrap_err().kind(), kind);
        assert_eq!(observer.progress().status.win32_code(), kind.win32_code());
    }
}

#[test]
fn p24_a_cancelled_operation_ends_as_aborted_and_a_finished_one_is_not_changed() {
    let operation = Operation::<()>::start("test", |monitor| {
        loop {
            monitor.checkpoint()?;
            std::thread::yield_now();
        }
    });
    operation.cancel();
    let observer = operation.observer();
    assert_eq!(operation.wait().unwrap_err().kind(), ErrorKind::Aborted);
    assert_eq!(observer.progress().status.win32_code(), 995);

    let operation = Operation::start("test", |_| Ok(1));
    until_over(&operation);
    operation.cancel();
    assert_eq!(operation.progress().status, Status::Succeeded);
    assert_eq!(operation.wait().unwrap(), 1);
}

#[test]
fn p25_dropping_the_handle_cancels_and_nothing_runs_afterwards() {
    let running = Arc::new(AtomicBool::new(true));
    let flag = running.clone();
    let operation = Operation::<()>::start("test", move |monitor| {
        let result = loop {
            if let Err(e) = monitor.checkpoint() {
                break Err(e);
            }
            std::thread::yield_now();
        };
        flag.store(false, Ordering::Release);
        result
    });
    drop(operation);
    assert!(!running.load(Ordering::Acquire));
}

#[test]
fn a_panic_in_the_work_ends_it_as_failed() {
    let operation = Operation::<()>::start("test", |_| panic!("on purpose"));
    assert_eq!(operation.wait().unwrap_err().kind(), ErrorKind::Io);
}

#[test]
fn an_operation_can_be_awaited_without_a_runtime() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut operation = std::pin::pin!(Operation::start("test", |_| {
        std::thread::yield_now();
        Ok(42)
    }));
    let waker = Arc::new(Unpark(std::thread::current())).into();
    let mut context = Context::from_waker(&waker);
    let result = loop {
        match operation.as_mut().poll(&mut context) {
            Poll::Ready(result) => break result,
            Poll::Pending => std::thread::park(),
        }
    };
    assert_eq!(result.unwrap(), 42);
    assert_eq!(
        match operation.as_mut().poll(&mut context) {
            Poll::Ready(r) => r.unwrap_err().kind(),
            Poll::Pending => unreachable!("the operation is over"),
        },
        ErrorKind::InvalidState
    );
}

#[test]
fn a_status_survives_the_way_through_its_code() {
    assert_eq!(Status::from_code(997), Status::Pending);
    for &kind in ErrorKind::ALL {
        assert_eq!(Status::from_code(kind.win32_code()), Status::Failed(kind));
    }
}
