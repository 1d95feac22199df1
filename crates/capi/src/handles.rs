//! Handles: numbers that may name an object, never pointers.
//!
//! A handle is a slot's index and the slot's generation, which changes whenever the slot is used again and starts at
//! random. A number that was closed, made up, or belongs to somebody else names nothing, and is ERROR_INVALID_HANDLE.
//! Handles are multiples of 4, as on Windows, and never NULL or INVALID_HANDLE_VALUE.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use crate::codes::{ERROR_INVALID_HANDLE, ERROR_NOT_ENOUGH_MEMORY};
use crate::disk::DiskHandle;
use crate::event::Event;
use crate::guard::{Answer, Code};
use crate::sync::{Order, RwLock};
use crate::types::HANDLE;

/// What a handle can name.
#[derive(Clone)]
pub(crate) enum Object {
    Event(Arc<Event>),
    Disk(Arc<DiskHandle>),
}

struct Slot {
    generation: usize,
    object: Option<Object>,
}

/// All handles.
struct Handles(RwLock<Table>);

#[derive(Default)]
struct Table {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

const TAG_BITS: u32 = 2;
const INDEX_BITS: u32 = if usize::BITS == 64 { 20 } else { 14 };
/// One bit is left out, so that no handle is INVALID_HANDLE_VALUE.
const GENERATIONS: usize = (1 << (usize::BITS - 1 - TAG_BITS - INDEX_BITS)) - 1;

static HANDLES: LazyLock<Handles> = LazyLock::new(Handles::new);

const NO_HANDLE: Code = Code(ERROR_INVALID_HANDLE);

impl Handles {
    fn new() -> Self {
        Self(RwLock::new(Order::Handles, Table::default()))
    }

    fn insert(&self, object: Object) -> Answer<HANDLE> {
        let mut table = self.0.write();
        let index = match table.free.pop() {
            Some(index) => index,
            None if table.slots.len() >> INDEX_BITS != 0 => {
                return Err(Code(ERROR_NOT_ENOUGH_MEMORY));
            }
            None => {
                let random = RandomState::new().hash_one(table.slots.len());
                table.slots.push(Slot {
                    generation: usize::try_from(random & (u64::MAX >> 32)).unwrap_or(0),
                    object: None,
                });
                table.slots.len() - 1
            }
        };
        let slot = &mut table.slots[index];
        slot.generation = slot.generation % GENERATIONS + 1;
        slot.object = Some(object);
        let number = (slot.generation << INDEX_BITS | index) << TAG_BITS;
        Ok(std::ptr::without_provenance_mut(number))
    }

    fn object(&self, handle: HANDLE) -> Answer<Object> {
        let (index, generation) = split(handle)?;
        let table = self.0.read();
        table
            .slots
            .get(index)
            .filter(|slot| slot.generation == generation)
            .and_then(|slot| slot.object.clone())
            .ok_or(NO_HANDLE)
    }

    fn remove(&self, handle: HANDLE) -> Answer<Object> {
        let (index, generation) = split(handle)?;
        let mut table = self.0.write();
        let object = table
            .slots
            .get_mut(index)
            .filter(|slot| slot.generation == generation)
            .and_then(|slot| slot.object.take())
            .ok_or(NO_HANDLE)?;
        table.free.push(index);
        Ok(object)
    }
}

fn split(handle: HANDLE) -> Answer<(usize, usize)> {
    let number = handle.addr();
    if number & ((1 << TAG_BITS) - 1) != 0 {
        return Err(NO_HANDLE);
    }
    let number = number >> TAG_BITS;
    Ok((number & ((1 << INDEX_BITS) - 1), number >> INDEX_BITS))
}

/// Names an object.
pub(crate) fn insert(object: Object) -> Answer<HANDLE> {
    HANDLES.insert(object)
}

/// What a handle names.
pub(crate) fn object(handle: HANDLE) -> Answer<Object> {
    HANDLES.object(handle)
}

/// Takes the name away; the object is given back.
pub(crate) fn remove(handle: HANDLE) -> Answer<Object> {
    HANDLES.remove(handle)
}

/// The virtual disk handle that a handle names.
pub(crate) fn disk(handle: HANDLE) -> Answer<Arc<DiskHandle>> {
    match object(handle)? {
        Object::Disk(disk) => Ok(disk),
        Object::Event(_) => Err(NO_HANDLE),
    }
}

/// The event that a handle names.
pub(crate) fn event(handle: HANDLE) -> Answer<Arc<Event>> {
    match object(handle)? {
        Object::Event(event) => Ok(event),
        Object::Disk(_) => Err(NO_HANDLE),
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    fn new_event() -> HANDLE {
        insert(Object::Event(Arc::new(Event::new(true, false)))).unwrap()
    }

    #[test]
    fn a_closed_handle_names_nothing_even_when_its_slot_is_used_again() {
        let first = new_event();
        assert!(event(first).is_ok() && disk(first).is_err());
        assert!(remove(first).is_ok());
        for _ in 0..1000 {
            let next = new_event();
            assert_ne!(next, first);
            assert!(event(first).is_err());
            assert!(remove(next).is_ok());
        }
        assert!(remove(first).is_err());
    }

    #[test]
    fn made_up_numbers_name_nothing() {
        let real = new_event().addr();
        for number in [
            0,
            usize::MAX,
            real + 1,
            real + 4,
            real ^ (1 << 40),
            4,
            8,
            12,
        ] {
            assert!(object(std::ptr::without_provenance_mut(number)).is_err());
        }
        assert!(remove(std::ptr::without_provenance_mut(real)).is_ok());
    }
}

/// Every interleaving: `RUSTFLAGS="--cfg loom" cargo test -p vhdkit-capi --release --lib loom_`.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    fn new_event() -> Object {
        Object::Event(Arc::new(Event::new(true, false)))
    }

    #[test]
    fn loom_a_handle_is_closed_once_and_its_number_never_names_what_comes_next() {
        loom::model(|| {
            let handles = Arc::new(Handles::new());
            let number = handles.insert(new_event()).unwrap().addr();
            let handle = move || std::ptr::without_provenance_mut(number);
            let other = {
                let handles = handles.clone();
                loom::thread::spawn(move || {
                    let closed = handles.remove(handle()).is_ok();
                    // It may get the same slot.
                    let next = handles.insert(new_event()).unwrap();
                    assert_ne!(next, handle());
                    (closed, next.addr())
                })
            };
            let seen = handles.object(handle()).is_ok();
            let closed = handles.remove(handle()).is_ok();
            assert!(seen || !closed);
            assert!(handles.object(handle()).is_err());
            let (closed_there, next) = other.join().unwrap();
            assert!(closed != closed_there);
            assert!(
                handles
                    .object(std::ptr::without_provenance_mut(next))
                    .is_ok()
            );
        });
    }

    #[test]
    fn loom_no_two_handles_are_the_same() {
        loom::model(|| {
            let handles = Arc::new(Handles::new());
            let other = {
                let handles = handles.clone();
                loom::thread::spawn(move || handles.insert(new_event()).unwrap().addr())
            };
            let mine = handles.insert(new_event()).unwrap();
            assert_ne!(mine.addr(), other.join().unwrap());
        });
    }
}
