//! Every interleaving of the small steps of operations: `RUSTFLAGS="--cfg loom" cargo test -p vhdkit-capi --release --lib
//! loom_`.

use super::*;

/// Stands in memory that the system must no longer touch.
const MINE: usize = 0x5A5A;

/// An OVERLAPPED, which the models free by writing to it.
fn new_overlapped() -> &'static mut OVERLAPPED {
    // SAFETY: numbers and pointers, for which zero is a value.
    Box::leak(Box::new(unsafe { std::mem::zeroed() }))
}

/// Frees it; whoever writes to it afterwards is found out by `assert_free`.
fn free(memory: Memory) {
    memory.store(MINE, MINE);
}

fn assert_free(memory: Memory) {
    assert_eq!(memory.load(), (MINE, MINE));
}

/// A model of so many preemptions: more takes too long.
fn model(preemptions: usize, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(body);
}

fn begin(operations: &Operations) -> (Memory, Arc<Record>) {
    let memory = Memory::new(new_overlapped()).unwrap();
    (memory, operations.begin_with(memory, None).unwrap())
}

/// Work that goes on until it is cancelled, as a mirror does.
fn endless() -> Operation<()> {
    Operation::start("loom", |monitor| {
        loop {
            monitor.checkpoint()?;
            loom::thread::yield_now();
        }
    })
}

#[test]
fn loom_whoever_saw_the_end_may_free_the_overlapped() {
    loom::model(|| {
        let operations = Arc::new(Operations::default());
        let (memory, record) = begin(&operations);
        let worker = loom::thread::spawn(move || record.finish(ERROR_SUCCESS));
        let saw = match operations.progress(memory.0).unwrap().OperationStatus {
            ERROR_SUCCESS => true,
            status => {
                assert_eq!(status, ERROR_IO_PENDING);
                operations.result(memory.0, true) == Ok(0)
            }
        };
        assert!(saw);
        assert_eq!(memory.load().0, 0);
        free(memory);
        worker.join().unwrap();
        assert_free(memory);
        assert_eq!(
            operations.progress(memory.0).unwrap().OperationStatus,
            ERROR_SUCCESS
        );
    });
}

#[test]
fn loom_the_event_is_not_before_the_final_status() {
    loom::model(|| {
        let operations = Arc::new(Operations::default());
        let memory = Memory::new(new_overlapped()).unwrap();
        let event = Arc::new(Event::new(true, true));
        let record = operations.begin_with(memory, Some(event.clone())).unwrap();
        let worker = loom::thread::spawn(move || record.finish(ERROR_DISK_FULL));
        assert!(event.wait(None));
        assert_eq!(memory.load().0, status_of(ERROR_DISK_FULL));
        free(memory);
        assert_eq!(
            operations.progress(memory.0).unwrap().OperationStatus,
            ERROR_DISK_FULL
        );
        worker.join().unwrap();
        assert_free(memory);
    });
}

#[test]
fn loom_after_closing_nothing_touches_the_overlapped_and_nothing_starts() {
    loom::model(|| {
        let operations = Arc::new(Operations::default());
        let (memory, record) = begin(&operations);
        let worker = loom::thread::spawn(move || record.finish(ERROR_OPERATION_ABORTED));
        operations.close();
        free(memory);
        let other = Memory::new(new_overlapped()).unwrap();
        assert!(operations.begin_with(other, None).is_err());
        worker.join().unwrap();
        assert_free(memory);
    });
}

#[test]
fn loom_an_overlapped_is_used_again_only_after_its_end() {
    loom::model(|| {
        let operations = Arc::new(Operations::default());
        let (memory, record) = begin(&operations);
        let worker = loom::thread::spawn(move || record.finish(ERROR_SUCCESS));
        let again = operations.begin_with(memory, None);
        worker.join().unwrap();
        let expected = if again.is_ok() { STATUS_PENDING } else { 0 };
        assert_eq!(memory.load().0, expected);
        let status = operations.progress(memory.0).unwrap().OperationStatus;
        assert_eq!(status == ERROR_IO_PENDING, again.is_ok());
    });
}

#[test]
fn loom_a_cancel_that_was_accepted_ends_the_work() {
    model(2, || {
        let operations = Arc::new(Operations::default());
        let (memory, record) = begin(&operations);
        let canceller = {
            let operations = operations.clone();
            let address = memory.address();
            loom::thread::spawn(move || {
                let overlapped = std::ptr::without_provenance(address);
                operations.cancel(Which::One(overlapped)).unwrap();
            })
        };
        follow(&record, endless(), |result| Ok(result?)).unwrap();
        assert_eq!(record.wait(None), ERROR_OPERATION_ABORTED);
        canceller.join().unwrap();
    });
}

#[test]
fn loom_closing_ends_what_is_just_being_started() {
    model(2, || {
        let operations = Arc::new(Operations::default());
        let closer = {
            let operations = operations.clone();
            loom::thread::spawn(move || operations.close())
        };
        let memory = Memory::new(new_overlapped()).unwrap();
        if let Ok(record) = operations.begin_with(memory, None) {
            follow(&record, endless(), |result| Ok(result?)).unwrap();
        }
        closer.join().unwrap();
    });
}

#[test]
fn loom_closing_does_not_wait_for_what_did_not_start() {
    loom::model(|| {
        let operations = Arc::new(Operations::default());
        let closer = {
            let operations = operations.clone();
            loom::thread::spawn(move || operations.close())
        };
        let memory = Memory::new(new_overlapped()).unwrap();
        if let Ok(record) = operations.begin_with(memory, None) {
            operations.withdraw(&record, INVALID);
        }
        closer.join().unwrap();
    });
}

#[test]
fn loom_one_signal_of_an_event_that_resets_itself_is_for_one_thread() {
    loom::model(|| {
        let event = Arc::new(Event::new(false, false));
        let other = {
            let event = event.clone();
            loom::thread::spawn(move || event.wait(Some(Duration::ZERO)))
        };
        event.set();
        let taken = event.wait(Some(Duration::ZERO));
        assert!(taken != other.join().unwrap() || !taken);
        assert!(!event.wait(Some(Duration::ZERO)) || !taken);
    });
}

#[test]
fn loom_a_signal_wakes_whoever_waits() {
    loom::model(|| {
        let event = Arc::new(Event::new(false, false));
        let other = {
            let event = event.clone();
            loom::thread::spawn(move || event.wait(None))
        };
        event.set();
        assert!(other.join().unwrap());
        assert!(!event.wait(Some(Duration::ZERO)));
    });
}
