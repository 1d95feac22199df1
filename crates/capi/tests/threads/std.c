/* What ThreadSanitizer has to be told about Rust's standard library.
 *
 * The sanitizer sees what was compiled for it: all of this library, but not std, which comes compiled. Most of std's
 * locks is inlined into our code and so is seen: a lock that is free, and every unlocking. What is not inlined is the
 * slow half: waiting for a lock, for a condition, for another thread's initialisation. The linker puts the functions
 * below in place of these (--wrap). Each calls the original and then says which lock was taken or let go, by its
 * address, which is that of the atomic in it. Nothing is hushed up: without std's real locking there would be no order
 * to tell of.
 *
 * scripts/thread-sanitizer.sh finds the names of std's functions and gives them as macros. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

void __tsan_acquire(void *address);
void __tsan_release(void *address);

#define CONCAT(a, b) a##b
#define REAL_(name) CONCAT(__real_, name)
#define WRAP_(name) CONCAT(__wrap_, name)

/* --- Mutex::lock_contended(&self), RwLock::read_contended(&self), RwLock::write_contended(&self) ------------------ */

#define TAKES_A_LOCK(name)                                                                                             \
    void REAL_(name)(void *self);                                                                                      \
    void WRAP_(name)(void *self) {                                                                                     \
        REAL_(name)(self);                                                                                             \
        __tsan_acquire(self);                                                                                          \
    }

TAKES_A_LOCK(MUTEX_LOCK)
TAKES_A_LOCK(RWLOCK_READ)
TAKES_A_LOCK(RWLOCK_WRITE)

/* --- Condvar::wait(&self, &Mutex), Condvar::wait_timeout(&self, &Mutex, Duration) -> bool --------------------------- */

void REAL_(CONDVAR_WAIT)(void *self, void *mutex);
void WRAP_(CONDVAR_WAIT)(void *self, void *mutex) {
    __tsan_release(mutex);
    REAL_(CONDVAR_WAIT)(self, mutex);
    __tsan_acquire(mutex);
}

_Bool REAL_(CONDVAR_WAIT_TIMEOUT)(void *self, void *mutex, uint64_t seconds, uint32_t nanoseconds);
_Bool WRAP_(CONDVAR_WAIT_TIMEOUT)(void *self, void *mutex, uint64_t seconds, uint32_t nanoseconds) {
    _Bool in_time;
    __tsan_release(mutex);
    in_time = REAL_(CONDVAR_WAIT_TIMEOUT)(self, mutex, seconds, nanoseconds);
    __tsan_acquire(mutex);
    return in_time;
}

/* --- Once::call(&self, bool, &mut dyn FnMut(&OnceState)) ------------------------------------------------------------
 *
 * The release lies between the end of the closure and the moment in which std says that it is over; so the closure is
 * put into another one. A trait object is two pointers; the table has how to drop the value, its size, its alignment,
 * and then the methods: FnOnce::call_once, FnMut::call_mut. */

enum { DROP, SIZE, ALIGN, CALL_ONCE, CALL_MUT, METHODS };

typedef struct {
    void *value;
    void *const *table;
    void *once;
} closure;

static void call_and_release(closure *inner, void *state) {
    ((void (*)(void *, void *))inner->table[CALL_MUT])(inner->value, state);
    __tsan_release(inner->once);
}

void REAL_(ONCE_CALL)(void *self, _Bool ignore_poison, void *value, void *const *table, void *location);
void WRAP_(ONCE_CALL)(void *self, _Bool ignore_poison, void *value, void *const *table, void *location) {
    static void *const around[METHODS] = {NULL, (void *)sizeof(closure), (void *)_Alignof(closure), NULL,
                                          (void *)call_and_release};
    closure inner = {value, table, self};
    REAL_(ONCE_CALL)(self, ignore_poison, &inner, around, location);
    __tsan_acquire(self);
}

/* --- fences ----------------------------------------------------------------------------------------------------------
 *
 * The sanitizer knows no fences. Arc has one: whoever drops the last reference reads what the others released. It comes
 * right after the subtraction, so that an acquiring fence is one of the last subtraction of its thread. */

static _Thread_local void *counter;

uint64_t __real___tsan_atomic64_fetch_sub(volatile uint64_t *at, uint64_t value, int order);
uint64_t __wrap___tsan_atomic64_fetch_sub(volatile uint64_t *at, uint64_t value, int order) {
    counter = (void *)at;
    return __real___tsan_atomic64_fetch_sub(at, value, order);
}

void __real___tsan_atomic_thread_fence(int order);
void __wrap___tsan_atomic_thread_fence(int order) {
    if ((order == __ATOMIC_ACQUIRE || order == __ATOMIC_CONSUME) && counter != NULL)
        __tsan_acquire(counter);
    __real___tsan_atomic_thread_fence(order);
}

/* --- ScopeData::decrement_num_running_threads(&self, bool): the number is one of the words of the structure --------- */

void REAL_(SCOPE_END)(void **self, _Bool panicked);
void WRAP_(SCOPE_END)(void **self, _Bool panicked) {
    int i;
    for (i = 0; i < 3; i++)
        __tsan_release(&self[i]);
    REAL_(SCOPE_END)(self, panicked);
}

/* --- What LLVM's runtime has and gcc's has not: the ordinary functions, which the runtime watches. ------------------ */

void *__tsan_memcpy(void *to, const void *from, size_t size);
void *__tsan_memcpy(void *to, const void *from, size_t size) { return memcpy(to, from, size); }

void *__tsan_memmove(void *to, const void *from, size_t size);
void *__tsan_memmove(void *to, const void *from, size_t size) { return memmove(to, from, size); }

void *__tsan_memset(void *to, int byte, size_t size);
void *__tsan_memset(void *to, int byte, size_t size) { return memset(to, byte, size); }
