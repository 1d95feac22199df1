/* Every function from eight threads at once, at random, for as many seconds as the command line says:
 *
 *     random FOLDER SECONDS SEED
 *
 * Shared: handles in a table that all threads use, cancel and close for each other, of disks that several handles have
 * open. Their answers must be among those that such a race can give. Own: each thread has a disk of its own, of which it
 * knows every answer and every byte. Stale: handles that the thread itself has closed, which are always invalid. */
#include "check.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#define THREADS 8
#define LONGER 300 /* seconds, for functions that were not called yet */
#define SLOTS 10

/* Every function is called through CALL, which counts. */
#define FUNCTIONS(X)                                                                                                   \
    X(OpenVirtualDisk) X(CreateVirtualDisk) X(AttachVirtualDisk) X(DetachVirtualDisk) X(GetVirtualDiskPhysicalPath)      \
    X(GetAllAttachedVirtualDiskPhysicalPaths) X(GetStorageDependencyInformation) X(GetVirtualDiskInformation)           \
    X(SetVirtualDiskInformation) X(EnumerateVirtualDiskMetadata) X(GetVirtualDiskMetadata) X(SetVirtualDiskMetadata)    \
    X(DeleteVirtualDiskMetadata) X(GetVirtualDiskOperationProgress) X(CompactVirtualDisk) X(MergeVirtualDisk)           \
    X(ExpandVirtualDisk) X(ResizeVirtualDisk) X(MirrorVirtualDisk) X(BreakMirrorVirtualDisk) X(AddVirtualDiskParent)    \
    X(QueryChangesVirtualDisk) X(TakeSnapshotVhdSet) X(DeleteSnapshotVhdSet) X(ModifyVhdSet) X(ApplySnapshotVhdSet)     \
    X(RawSCSIVirtualDisk) X(ForkVirtualDisk) X(CompleteForkVirtualDisk) X(CreateEventW) X(SetEvent) X(ResetEvent)       \
    X(WaitForSingleObject) X(CloseHandle) X(GetOverlappedResult) X(CancelIo) X(CancelIoEx) X(ReadFile) X(WriteFile)     \
    X(FlushFileBuffers)
#define NUMBER(name) N_##name,
#define NAME(name) #name,
enum number { FUNCTIONS(NUMBER) COUNT };
static const char *const names[] = {FUNCTIONS(NAME)};
static unsigned long calls[COUNT];
#define CALL(name, ...) (__atomic_fetch_add(&calls[N_##name], 1, __ATOMIC_RELAXED), name(__VA_ARGS__))

/* By the extension of the name. */
static VIRTUAL_STORAGE_TYPE any;
static double over_at;
static int is_whole_run;
static unsigned long long seed;
static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static HANDLE slots[SLOTS], shared_event;

#define CELL (64 * 1024)
#define CELLS 256 /* 16 MB */
#define STALE 16

typedef struct {
    unsigned long long state;
    int number;
    HANDLE event;
    HANDLE stale[STALE];
    int stale_count;
    /* The own disk: which of its files is in use, what its cells hold, whether it is attached. */
    HANDLE own;
    int copy, attached, has_note;
    ULONGLONG size;
    unsigned char cells[CELLS];
    /* Names stay valid as long as the thread. */
    WCHAR names[3][1024];
} thread;

static double now(void) {
    struct timespec time;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* When the time is over; in a run of ten seconds or more not before every function was called, however slow the machine. */
static int is_over(void) {
    int i;
    if (now() < over_at)
        return 0;
    for (i = 0; is_whole_run && i < COUNT; i++)
        if (__atomic_load_n(&calls[i], __ATOMIC_RELAXED) == 0)
            return now() > over_at + LONGER;
    return 1;
}

static unsigned below(thread *t, unsigned limit) {
    t->state ^= t->state << 13;
    t->state ^= t->state >> 7;
    t->state ^= t->state << 17;
    return (unsigned)(t->state >> 33) % limit;
}

static void wide(WCHAR *to, const char *name) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s", test_folder, name);
    CHECK(MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, to, 1024) > 0);
}

static void wrong(const thread *t, const char *what, DWORD code) {
    fprintf(stderr, "thread %d: %s gave %u (0x%08X)\n", t->number, what, code, code);
    exit(1);
}

/* What any call may answer when others close the handle, have opened it for less, or are at work on its disk. */
static int is_a_race(DWORD code) {
    return code == ERROR_SUCCESS || code == ERROR_INVALID_HANDLE || code == ERROR_ACCESS_DENIED || code == ERROR_BUSY ||
           code == ERROR_VHD_INVALID_STATE || code == ERROR_VHD_INVALID_TYPE || code == ERROR_SHARING_VIOLATION;
}

static void race(const thread *t, const char *what, DWORD code, DWORD other, DWORD another) {
    if (!is_a_race(code) && code != other && code != another)
        wrong(t, what, code);
}

#define RACE(name, other, another, ...) race(t, #name, CALL(name, __VA_ARGS__), other, another)
#define EXACT(code, name, ...)                                                                                         \
    do {                                                                                                               \
        DWORD exact_ = CALL(name, __VA_ARGS__);                                                                        \
        if (exact_ != (DWORD)(code))                                                                                   \
            wrong(t, #name " (line " LINE_TEXT(__LINE__) ")", exact_);                                                 \
    } while (0)
#define LINE_TEXT(line) LINE_TEXT_(line)
#define LINE_TEXT_(line) #line
#define TRUTH(call)                                                                                                    \
    do {                                                                                                               \
        if (!(call))                                                                                                   \
            wrong(t, #call, GetLastError());                                                                           \
    } while (0)

/* --- operations ------------------------------------------------------------------------------------------------ */

static OVERLAPPED *new_overlapped(thread *t) {
    OVERLAPPED *o = (OVERLAPPED *)calloc(1, sizeof *o);
    CHECK(o != NULL);
    o->hEvent = t->event;
    return o;
}

/* Sees an operation to its end, looking at it and sometimes cancelling it; its status. Whoever closes the handle ends it,
 * too, and after its end its memory is no longer touched: it is freed. */
static DWORD settle(thread *t, const char *what, DWORD started, HANDLE handle, OVERLAPPED *o, int may_cancel) {
    VIRTUAL_DISK_PROGRESS p;
    DWORD status, n, again;
    int rounds = 0;
    if (started != ERROR_IO_PENDING && started != ERROR_SUCCESS) {
        free(o);
        return started;
    }
    while (CALL(WaitForSingleObject, t->event, 1) != WAIT_OBJECT_0) {
        DWORD code = CALL(GetVirtualDiskOperationProgress, handle, o, &p);
        if (code != ERROR_SUCCESS && code != ERROR_INVALID_HANDLE)
            wrong(t, "GetVirtualDiskOperationProgress", code);
        if (code == ERROR_SUCCESS && p.OperationStatus == ERROR_IO_PENDING &&
            (p.CompletionValue == 0 || p.CurrentValue > p.CompletionValue))
            wrong(t, "a pair of values", (DWORD)p.CurrentValue);
        if (may_cancel && (rounds > 200 || below(t, 40) == 0)) {
            if (below(t, 2))
                CALL(CancelIo, handle);
            else if (!CALL(CancelIoEx, handle, o) && GetLastError() != ERROR_NOT_FOUND &&
                     GetLastError() != ERROR_INVALID_HANDLE)
                wrong(t, "CancelIoEx", GetLastError());
        }
        rounds++;
    }
    if (!HasOverlappedIoCompleted(o))
        wrong(t, "pending after the event", (DWORD)o->Internal);
    status = CALL(GetVirtualDiskOperationProgress, handle, o, &p) == ERROR_SUCCESS ? p.OperationStatus : ERROR_INVALID_HANDLE;
    if (status == ERROR_IO_PENDING)
        wrong(t, what, status);
    if (status != ERROR_INVALID_HANDLE) {
        again = CALL(GetOverlappedResult, handle, o, &n, TRUE) ? ERROR_SUCCESS : GetLastError();
        if (again != status && again != ERROR_INVALID_HANDLE)
            wrong(t, "GetOverlappedResult", again);
    }
    free(o);
    return status;
}

static int transfer(thread *t, HANDLE handle, int write, ULONGLONG offset, unsigned char *sector) {
    OVERLAPPED o = at_offset(offset);
    DWORD n = 0;
    (void)t;
    return write ? CALL(WriteFile, handle, sector, 512, &n, &o) : CALL(ReadFile, handle, sector, 512, &n, &o);
}

static DWORD scsi_read(thread *t, HANDLE handle, ULONGLONG offset, unsigned char *sector, UCHAR *status) {
    unsigned char cdb[10] = {0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0};
    RAW_SCSI_VIRTUAL_DISK_PARAMETERS p;
    RAW_SCSI_VIRTUAL_DISK_RESPONSE r;
    DWORD code;
    (void)t;
    memset(&p, 0, sizeof p);
    memset(&r, 0, sizeof r);
    cdb[3] = (unsigned char)(offset / 512 >> 16);
    cdb[4] = (unsigned char)(offset / 512 >> 8);
    cdb[5] = (unsigned char)(offset / 512);
    p.Version = r.Version = RAW_SCSI_VIRTUAL_DISK_VERSION_1;
    p.Version1.Cdb = cdb;
    p.Version1.CdbLength = sizeof cdb;
    p.Version1.DataBuffer = sector;
    p.Version1.DataTransferLength = 512;
    code = CALL(RawSCSIVirtualDisk, handle, &p, RAW_SCSI_VIRTUAL_DISK_FLAG_NONE, &r);
    *status = r.Version1.ScsiStatus;
    return code;
}

/* --- the own disk: every answer is known ------------------------------------------------------------------------- */

static void own_name(const thread *t, int copy, WCHAR *to) {
    char name[64];
    snprintf(name, sizeof name, "own-%d-%d.vhdx", t->number, copy);
    wide(to, name);
}

static void own_delete(const thread *t, int copy) {
    char path[1024];
    snprintf(path, sizeof path, "%s/own-%d-%d.vhdx", test_folder, t->number, copy);
    CHECK(remove(path) == 0);
}

static void own_open(thread *t) {
    OPEN_VIRTUAL_DISK_PARAMETERS p;
    WCHAR path[1024];
    memset(&p, 0, sizeof p);
    p.Version = OPEN_VIRTUAL_DISK_VERSION_2;
    own_name(t, t->copy, path);
    EXACT(ERROR_SUCCESS, OpenVirtualDisk, &any, path, VIRTUAL_DISK_ACCESS_NONE, OPEN_VIRTUAL_DISK_FLAG_CACHED_IO, &p,
          &t->own);
    t->attached = 0;
}

static void own_close(thread *t) {
    TRUTH(CALL(CloseHandle, t->own));
    t->stale[t->stale_count++ % STALE] = t->own;
    t->own = NULL;
    t->attached = 0;
}

static void own_attach(thread *t) {
    if (!t->attached)
        EXACT(ERROR_SUCCESS, AttachVirtualDisk, t->own, NULL, raw(0), 0, NULL, NULL);
    t->attached = 1;
}

static void own_detach(thread *t) {
    if (t->attached)
        EXACT(ERROR_SUCCESS, DetachVirtualDisk, t->own, DETACH_VIRTUAL_DISK_FLAG_NONE, 0);
    t->attached = 0;
}

static void own_put(thread *t, int cell) {
    unsigned char sector[512];
    unsigned char byte = (unsigned char)(below(t, 4) ? below(t, 256) : 0);
    own_attach(t);
    memset(sector, byte, sizeof sector);
    TRUTH(transfer(t, t->own, 1, (ULONGLONG)cell * CELL, sector));
    t->cells[cell] = byte;
}

static void own_check(thread *t, int cell) {
    unsigned char sector[512], status = 0;
    int i;
    memset(sector, 0xEE, sizeof sector);
    if (below(t, 4) == 0) {
        DWORD code = scsi_read(t, t->own, (ULONGLONG)cell * CELL, sector, &status);
        if (code == ERROR_SUCCESS && status == 4 /* SRB_STATUS_ERROR: told once that the capacity has changed */)
            code = scsi_read(t, t->own, (ULONGLONG)cell * CELL, sector, &status);
        if (code != ERROR_SUCCESS || status != 1 /* SRB_STATUS_SUCCESS */)
            wrong(t, "RawSCSIVirtualDisk", code);
    } else {
        own_attach(t);
        TRUTH(transfer(t, t->own, 0, (ULONGLONG)cell * CELL, sector));
    }
    for (i = 0; i < 512; i++)
        if (sector[i] != t->cells[cell])
            wrong(t, "content of a cell", sector[i]);
}

static void own_compact(thread *t) {
    OVERLAPPED *o;
    DWORD status;
    own_detach(t);
    if (below(t, 2)) {
        EXACT(ERROR_SUCCESS, CompactVirtualDisk, t->own, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, NULL);
        return;
    }
    o = new_overlapped(t);
    status = settle(t, "compact", CALL(CompactVirtualDisk, t->own, COMPACT_VIRTUAL_DISK_FLAG_NO_ZERO_SCAN, NULL, o), t->own,
                    o, 1);
    if (status != ERROR_SUCCESS && status != ERROR_OPERATION_ABORTED)
        wrong(t, "CompactVirtualDisk", status);
}

static void own_size(thread *t) {
    GET_VIRTUAL_DISK_INFO info;
    ULONG size = sizeof info;
    memset(&info, 0, sizeof info);
    info.Version = GET_VIRTUAL_DISK_INFO_SIZE;
    EXACT(ERROR_SUCCESS, GetVirtualDiskInformation, t->own, &size, &info, NULL);
    if (info.Size.VirtualSize != t->size)
        wrong(t, "the size", (DWORD)info.Size.VirtualSize);
    info.Version = GET_VIRTUAL_DISK_INFO_IS_LOADED;
    EXACT(ERROR_SUCCESS, GetVirtualDiskInformation, t->own, &size, &info, NULL);
    if (!info.IsLoaded != !t->attached)
        wrong(t, "loaded", (DWORD)info.IsLoaded);
}

static void own_resize(thread *t) {
    ULONGLONG wanted = (ULONGLONG)CELLS * CELL + below(t, 8) * MB;
    own_detach(t);
    if (wanted > t->size) {
        EXPAND_VIRTUAL_DISK_PARAMETERS p;
        memset(&p, 0, sizeof p);
        p.Version = EXPAND_VIRTUAL_DISK_VERSION_1;
        p.Version1.NewSize = wanted;
        EXACT(ERROR_SUCCESS, ExpandVirtualDisk, t->own, EXPAND_VIRTUAL_DISK_FLAG_NONE, &p, NULL);
    } else {
        RESIZE_VIRTUAL_DISK_PARAMETERS p;
        OVERLAPPED *o = new_overlapped(t);
        DWORD status;
        memset(&p, 0, sizeof p);
        p.Version = RESIZE_VIRTUAL_DISK_VERSION_1;
        p.Version1.NewSize = wanted;
        status = settle(t, "resize",
                        CALL(ResizeVirtualDisk, t->own, RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE, &p, o), t->own, o,
                        0);
        if (status != ERROR_SUCCESS)
            wrong(t, "ResizeVirtualDisk", status);
    }
    t->size = wanted;
    own_size(t);
}

/* To the other file and on there, or cancelled; with writes meanwhile. */
static void own_mirror(thread *t) {
    MIRROR_VIRTUAL_DISK_PARAMETERS p;
    VIRTUAL_DISK_PROGRESS progress;
    OVERLAPPED *o = new_overlapped(t);
    WCHAR path[1024];
    int moves = (int)below(t, 2);
    DWORD status;
    own_attach(t);
    own_name(t, !t->copy, path);
    memset(&p, 0, sizeof p);
    p.Version = MIRROR_VIRTUAL_DISK_VERSION_1;
    p.Version1.MirrorVirtualDiskPath = path;
    EXACT(ERROR_IO_PENDING, MirrorVirtualDisk, t->own, MIRROR_VIRTUAL_DISK_FLAG_NONE, &p, o);
    EXACT(ERROR_BUSY, DetachVirtualDisk, t->own, DETACH_VIRTUAL_DISK_FLAG_NONE, 0);
    own_put(t, (int)below(t, CELLS));
    if (moves) {
        do {
            EXACT(ERROR_SUCCESS, GetVirtualDiskOperationProgress, t->own, o, &progress);
            if (progress.OperationStatus != ERROR_IO_PENDING)
                wrong(t, "the mirror's status", progress.OperationStatus);
            sched_yield();
        } while (progress.CurrentValue != progress.CompletionValue);
        own_put(t, (int)below(t, CELLS));
        EXACT(ERROR_SUCCESS, BreakMirrorVirtualDisk, t->own);
    } else {
        TRUTH(CALL(CancelIoEx, t->own, o));
    }
    status = settle(t, "mirror", ERROR_IO_PENDING, t->own, o, 0);
    if (status != (DWORD)(moves ? ERROR_SUCCESS : ERROR_OPERATION_ABORTED))
        wrong(t, "MirrorVirtualDisk", status);
    if (moves) {
        own_delete(t, t->copy);
        t->copy = !t->copy;
    }
    own_check(t, (int)below(t, CELLS));
}

/* A child, something written to it, and merged back. */
static void own_snapshot(thread *t) {
    CREATE_VIRTUAL_DISK_PARAMETERS create;
    OPEN_VIRTUAL_DISK_PARAMETERS open;
    MERGE_VIRTUAL_DISK_PARAMETERS merge;
    WCHAR parent[1024], child[1024];
    OVERLAPPED *o;
    DWORD status;
    int i;
    own_close(t);
    own_name(t, t->copy, parent);
    own_name(t, 2, child);
    memset(&create, 0, sizeof create);
    create.Version = CREATE_VIRTUAL_DISK_VERSION_2;
    create.Version2.ParentPath = parent;
    create.Version2.OpenFlags = OPEN_VIRTUAL_DISK_FLAG_CACHED_IO;
    o = new_overlapped(t);
    status = CALL(CreateVirtualDisk, &any, child, VIRTUAL_DISK_ACCESS_NONE, NULL, CREATE_VIRTUAL_DISK_FLAG_NONE, 0, &create, o,
                  &t->own);
    status = settle(t, "create", status, t->own, o, 0);
    if (status != ERROR_SUCCESS)
        wrong(t, "CreateVirtualDisk of a child", status);
    for (i = 0; i < 5; i++)
        own_put(t, (int)below(t, CELLS));
    own_check(t, (int)below(t, CELLS));
    own_close(t);
    if (below(t, 2)) {
        /* The chain by hand. */
        memset(&open, 0, sizeof open);
        open.Version = OPEN_VIRTUAL_DISK_VERSION_2;
        open.Version2.ReadOnly = TRUE;
        EXACT(ERROR_SUCCESS, OpenVirtualDisk, &any, child, VIRTUAL_DISK_ACCESS_NONE,
              OPEN_VIRTUAL_DISK_FLAG_CUSTOM_DIFF_CHAIN, &open, &t->own);
        EXACT(ERROR_VHD_PARENT_VHD_NOT_FOUND, AttachVirtualDisk, t->own, NULL, raw(1), 0, NULL, NULL);
        EXACT(ERROR_SUCCESS, AddVirtualDiskParent, t->own, parent);
        EXACT(ERROR_SUCCESS, AttachVirtualDisk, t->own, NULL, raw(1), 0, NULL, NULL);
        t->attached = 1;
        own_check(t, (int)below(t, CELLS));
        own_close(t);
    }
    memset(&open, 0, sizeof open);
    open.Version = OPEN_VIRTUAL_DISK_VERSION_1;
    open.Version1.RWDepth = 2;
    EXACT(ERROR_SUCCESS, OpenVirtualDisk, &any, child, VIRTUAL_DISK_ACCESS_METAOPS, OPEN_VIRTUAL_DISK_FLAG_NONE, &open,
          &t->own);
    memset(&merge, 0, sizeof merge);
    merge.Version = MERGE_VIRTUAL_DISK_VERSION_1;
    merge.Version1.MergeDepth = 1;
    o = new_overlapped(t);
    status = settle(t, "merge", CALL(MergeVirtualDisk, t->own, MERGE_VIRTUAL_DISK_FLAG_NONE, &merge, o), t->own, o, 0);
    if (status != ERROR_SUCCESS)
        wrong(t, "MergeVirtualDisk", status);
    own_close(t);
    own_delete(t, 2);
    own_open(t);
    for (i = 0; i < 5; i++)
        own_check(t, (int)below(t, CELLS));
}

static void own_note(thread *t) {
    GUID id = guid_of(0x20 + t->number), found[8];
    char text[32] = "", expected[32];
    ULONG count = 8, size = sizeof text;
    snprintf(expected, sizeof expected, "note of %d", t->number);
    EXACT(ERROR_SUCCESS, EnumerateVirtualDiskMetadata, t->own, &count, found);
    if (count != (ULONG)t->has_note)
        wrong(t, "number of notes", count);
    EXACT(t->has_note ? ERROR_SUCCESS : ERROR_NOT_FOUND, GetVirtualDiskMetadata, t->own, &id, &size, text);
    if (t->has_note && strcmp(text, expected) != 0)
        wrong(t, "a note", size);
    if (t->has_note && below(t, 2)) {
        EXACT(ERROR_SUCCESS, DeleteVirtualDiskMetadata, t->own, &id);
        t->has_note = 0;
    } else {
        EXACT(ERROR_SUCCESS, SetVirtualDiskMetadata, t->own, &id, (ULONG)strlen(expected) + 1, expected);
        t->has_note = 1;
    }
}

static void own_identity(thread *t) {
    SET_VIRTUAL_DISK_INFO set;
    GET_VIRTUAL_DISK_INFO get;
    ULONG size = sizeof get;
    own_detach(t);
    memset(&set, 0, sizeof set);
    memset(&get, 0, sizeof get);
    set.Version = SET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID;
    set.VirtualDiskId = guid_of(1 + (int)below(t, 200));
    EXACT(ERROR_SUCCESS, SetVirtualDiskInformation, t->own, &set);
    get.Version = GET_VIRTUAL_DISK_INFO_VIRTUAL_DISK_ID;
    EXACT(ERROR_SUCCESS, GetVirtualDiskInformation, t->own, &size, &get, NULL);
    if (!same_guid(get.VirtualDiskId, set.VirtualDiskId))
        wrong(t, "the identifier", 0);
}

static void own_depends(thread *t) {
    union {
        STORAGE_DEPENDENCY_INFO info;
        char room[4096];
    } u;
    memset(&u, 0, sizeof u);
    u.info.Version = STORAGE_DEPENDENCY_INFO_VERSION_2;
    EXACT(t->attached ? ERROR_SUCCESS : ERROR_VIRTDISK_NOT_VIRTUAL_DISK, GetStorageDependencyInformation, t->own,
          GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES, sizeof u, &u.info, NULL);
    if (t->attached && u.info.NumberEntries != 1)
        wrong(t, "dependencies", u.info.NumberEntries);
}

/* A create from a source that is cancelled or not: the file is there or it is not. */
static void own_create(thread *t) {
    CREATE_VIRTUAL_DISK_PARAMETERS p;
    WCHAR target[1024], source[1024];
    HANDLE handle = NULL;
    OVERLAPPED *o = new_overlapped(t);
    DWORD status;
    int was = t->copy;
    own_close(t);
    own_name(t, was, source);
    own_name(t, 2, target);
    memset(&p, 0, sizeof p);
    p.Version = CREATE_VIRTUAL_DISK_VERSION_2;
    p.Version2.SourcePath = source;
    EXACT(ERROR_IO_PENDING, CreateVirtualDisk, &any, target, VIRTUAL_DISK_ACCESS_NONE, NULL,
          CREATE_VIRTUAL_DISK_FLAG_NONE, 0, &p, o, &handle);
    if (below(t, 2))
        CALL(CancelIoEx, handle, NULL);
    status = settle(t, "create", ERROR_IO_PENDING, handle, o, 1);
    if (status != ERROR_SUCCESS && status != ERROR_OPERATION_ABORTED)
        wrong(t, "CreateVirtualDisk", status);
    TRUTH(CALL(CloseHandle, handle));
    if (status == ERROR_SUCCESS)
        own_delete(t, 2);
    own_open(t);
}

static void own_step(thread *t) {
    switch (below(t, 24)) {
    case 0: own_compact(t); break;
    case 1: own_resize(t); break;
    case 2: own_mirror(t); break;
    case 3: own_snapshot(t); break;
    case 4: own_note(t); break;
    case 5: own_identity(t); break;
    case 6: own_depends(t); break;
    case 7: own_create(t); break;
    case 8: own_close(t); own_open(t); break;
    case 9: own_size(t); break;
    default:
        if (below(t, 2))
            own_put(t, (int)below(t, CELLS));
        else
            own_check(t, (int)below(t, CELLS));
    }
}

/* --- shared disks: any answer that a race can give ----------------------------------------------------------------- */

static const char *const shared_names[] = {"shared-0.vhdx", "shared-1.vhd", "shared-2.vhdx", "shared-3.vhdx"};

static HANDLE slot(thread *t) {
    HANDLE handle;
    pthread_mutex_lock(&slots_lock);
    handle = slots[below(t, SLOTS)];
    pthread_mutex_unlock(&slots_lock);
    return handle;
}

/* Opens one of the shared disks in one of many ways, puts it into the table and closes what was there. */
static void shared_open(thread *t) {
    static const DWORD masks[] = {VIRTUAL_DISK_ACCESS_GET_INFO, VIRTUAL_DISK_ACCESS_DETACH, VIRTUAL_DISK_ACCESS_ATTACH_RO,
                                  VIRTUAL_DISK_ACCESS_METAOPS, VIRTUAL_DISK_ACCESS_READ, VIRTUAL_DISK_ACCESS_ALL};
    OPEN_VIRTUAL_DISK_PARAMETERS p;
    DWORD mask = VIRTUAL_DISK_ACCESS_NONE, code;
    WCHAR path[1024];
    HANDLE handle = NULL, old;
    unsigned i;
    wide(path, shared_names[below(t, 4)]);
    memset(&p, 0, sizeof p);
    if (below(t, 3)) {
        p.Version = OPEN_VIRTUAL_DISK_VERSION_2;
        p.Version2.ResiliencyGuid = guid_of(1);
        p.Version2.GetInfoOnly = below(t, 6) == 0;
        p.Version2.ReadOnly = below(t, 6) == 0;
    } else {
        p.Version = OPEN_VIRTUAL_DISK_VERSION_1;
        p.Version1.RWDepth = 1 + below(t, 2);
        mask = masks[below(t, sizeof masks / sizeof *masks)];
    }
    code = CALL(OpenVirtualDisk, &any, path, (VIRTUAL_DISK_ACCESS_MASK)mask, OPEN_VIRTUAL_DISK_FLAG_CACHED_IO, &p,
                &handle);
    if (code == ERROR_SHARING_VIOLATION) {
        /* Something has to go, or nobody would ever open anything else. */
        old = slot(t);
        if (below(t, 2))
            CALL(CloseHandle, old);
        return;
    }
    race(t, "OpenVirtualDisk", code, ERROR_SUCCESS, ERROR_SUCCESS);
    if (code != ERROR_SUCCESS)
        return;
    pthread_mutex_lock(&slots_lock);
    i = below(t, SLOTS);
    old = slots[i];
    slots[i] = handle;
    pthread_mutex_unlock(&slots_lock);
    CALL(CloseHandle, old);
}

static void shared_mirror(thread *t, HANDLE handle) {
    MIRROR_VIRTUAL_DISK_PARAMETERS p;
    OVERLAPPED *o = new_overlapped(t);
    DWORD status;
    char path[1024];
    memset(&p, 0, sizeof p);
    p.Version = MIRROR_VIRTUAL_DISK_VERSION_1;
    p.Version1.MirrorVirtualDiskPath = t->names[0];
    status = settle(t, "mirror", CALL(MirrorVirtualDisk, handle, MIRROR_VIRTUAL_DISK_FLAG_NONE, &p, o), handle, o, 1);
    race(t, "MirrorVirtualDisk", status, ERROR_OPERATION_ABORTED, ERROR_SUCCESS);
    /* If another thread has broken it, the disk lives in the copy until its last handle is closed. */
    snprintf(path, sizeof path, "%s/mirror-%d.vhdx", test_folder, t->number);
    remove(path);
}

static void shared_operation(thread *t, HANDLE handle) {
    OVERLAPPED *o = new_overlapped(t);
    const char *what = "";
    DWORD started = 0, status;
    union {
        COMPACT_VIRTUAL_DISK_PARAMETERS compact;
        MERGE_VIRTUAL_DISK_PARAMETERS merge;
        EXPAND_VIRTUAL_DISK_PARAMETERS expand;
        RESIZE_VIRTUAL_DISK_PARAMETERS resize;
    } p;
    memset(&p, 0, sizeof p);
    switch (below(t, 5)) {
    case 0:
        what = "CompactVirtualDisk";
        p.compact.Version = COMPACT_VIRTUAL_DISK_VERSION_1;
        started = CALL(CompactVirtualDisk, handle, COMPACT_VIRTUAL_DISK_FLAG_NONE, &p.compact, o);
        break;
    case 1:
        what = "MergeVirtualDisk";
        p.merge.Version = MERGE_VIRTUAL_DISK_VERSION_2;
        p.merge.Version2.MergeSourceDepth = 1;
        p.merge.Version2.MergeTargetDepth = 2;
        started = CALL(MergeVirtualDisk, handle, MERGE_VIRTUAL_DISK_FLAG_NONE, &p.merge, o);
        break;
    case 2:
        what = "ExpandVirtualDisk";
        p.expand.Version = EXPAND_VIRTUAL_DISK_VERSION_1;
        p.expand.Version1.NewSize = 9 * MB + below(t, 64) * MB / 8;
        started = CALL(ExpandVirtualDisk, handle, EXPAND_VIRTUAL_DISK_FLAG_NONE, &p.expand, o);
        break;
    case 3:
        what = "ResizeVirtualDisk";
        p.resize.Version = RESIZE_VIRTUAL_DISK_VERSION_1;
        p.resize.Version1.NewSize = 9 * MB + below(t, 64) * MB / 8;
        started = CALL(ResizeVirtualDisk, handle, RESIZE_VIRTUAL_DISK_FLAG_ALLOW_UNSAFE_VIRTUAL_SIZE, &p.resize, o);
        break;
    default:
        what = "AttachVirtualDisk";
        started = CALL(AttachVirtualDisk, handle, NULL, raw((int)below(t, 2)), 0, NULL, o);
        break;
    }
    /* 87: no parent to merge with, or not larger than what it has become. */
    status = settle(t, what, started, handle, o, 1);
    race(t, what, status, ERROR_OPERATION_ABORTED, ERROR_INVALID_PARAMETER);
}

static void shared_ask(thread *t, HANDLE handle) {
    union {
        GET_VIRTUAL_DISK_INFO info;
        STORAGE_DEPENDENCY_INFO depends;
        WCHAR path[512];
        char room[8192];
    } u;
    ULONG size = sizeof u;
    VIRTUAL_DISK_PROGRESS p;
    OVERLAPPED never = at_offset(0);
    memset(&u, 0, sizeof u);
    switch (below(t, 5)) {
    case 0:
        u.info.Version = (GET_VIRTUAL_DISK_INFO_VERSION)(1 + below(t, 15));
        RACE(GetVirtualDiskInformation, ERROR_NOT_SUPPORTED, ERROR_VHD_COULD_NOT_COMPUTE_MINIMUM_VIRTUAL_SIZE, handle, &size,
             &u.info, NULL);
        break;
    case 1:
        u.depends.Version = (STORAGE_DEPENDENCY_INFO_VERSION)(1 + below(t, 2));
        RACE(GetStorageDependencyInformation, ERROR_VIRTDISK_NOT_VIRTUAL_DISK, ERROR_SUCCESS, handle,
             GET_STORAGE_DEPENDENCY_FLAG_HOST_VOLUMES, size, &u.depends, NULL);
        break;
    case 2:
        RACE(GetVirtualDiskPhysicalPath, ERROR_DEV_NOT_EXIST, ERROR_SUCCESS, handle, &size, u.path);
        break;
    case 3:
        /* Those of all processes. */
        RACE(GetAllAttachedVirtualDiskPhysicalPaths, ERROR_INSUFFICIENT_BUFFER, ERROR_SUCCESS, &size, u.path);
        break;
    default: {
        DWORD code = CALL(GetVirtualDiskOperationProgress, handle, &never, &p);
        if (code != ERROR_INVALID_PARAMETER && code != ERROR_INVALID_HANDLE)
            wrong(t, "the progress of nothing", code);
    }
    }
}

static void shared_change(thread *t, HANDLE handle) {
    GUID id = guid_of(1 + (int)below(t, 4)), found[8];
    SET_VIRTUAL_DISK_INFO set;
    char text[64];
    ULONG size = sizeof text, count = 8;
    memset(&set, 0, sizeof set);
    memset(text, 'x', sizeof text);
    switch (below(t, 6)) {
    case 0: RACE(SetVirtualDiskMetadata, ERROR_SUCCESS, ERROR_SUCCESS, handle, &id, below(t, 64), text); break;
    case 1: RACE(GetVirtualDiskMetadata, ERROR_NOT_FOUND, ERROR_SUCCESS, handle, &id, &size, text); break;
    case 2: RACE(DeleteVirtualDiskMetadata, ERROR_NOT_FOUND, ERROR_SUCCESS, handle, &id); break;
    case 3: RACE(EnumerateVirtualDiskMetadata, ERROR_SUCCESS, ERROR_SUCCESS, handle, &count, found); break;
    case 4:
        set.Version = SET_VIRTUAL_DISK_INFO_PHYSICAL_SECTOR_SIZE;
        set.VhdPhysicalSectorSize = below(t, 2) ? 512 : 4096;
        RACE(SetVirtualDiskInformation, ERROR_SUCCESS, ERROR_SUCCESS, handle, &set);
        break;
    default: RACE(AddVirtualDiskParent, ERROR_SUCCESS, ERROR_SUCCESS, handle, t->names[1]); break;
    }
}

static void shared_move_bytes(thread *t, HANDLE handle) {
    unsigned char sector[512], status;
    DWORD code;
    memset(sector, t->number + 1, sizeof sector);
    if (below(t, 3) == 0) {
        race(t, "RawSCSIVirtualDisk", scsi_read(t, handle, below(t, 100) * 4096, sector, &status), ERROR_SUCCESS,
             ERROR_SUCCESS);
        return;
    }
    if (below(t, 8) == 0) {
        code = CALL(FlushFileBuffers, handle) ? ERROR_SUCCESS : GetLastError();
        race(t, "FlushFileBuffers", code, ERROR_SUCCESS, ERROR_SUCCESS);
        return;
    }
    code = transfer(t, handle, (int)below(t, 2), below(t, 2000) * 4096ull, sector) ? ERROR_SUCCESS : GetLastError();
    race(t, "ReadFile or WriteFile", code, ERROR_NOT_READY, ERROR_WRITE_PROTECT);
}

static void shared_later(thread *t, HANDLE handle) {
    TAKE_SNAPSHOT_VHDSET_PARAMETERS take;
    DELETE_SNAPSHOT_VHDSET_PARAMETERS drop;
    APPLY_SNAPSHOT_VHDSET_PARAMETERS apply;
    MODIFY_VHDSET_PARAMETERS modify;
    FORK_VIRTUAL_DISK_PARAMETERS fork_;
    QUERY_CHANGES_VIRTUAL_DISK_RANGE range;
    OVERLAPPED o = at_offset(0);
    ULONG count = 1;
    ULONG64 done = 0;
    static const WCHAR id[] = {'i', 'd', 0};
    memset(&take, 0, sizeof take);
    memset(&drop, 0, sizeof drop);
    memset(&apply, 0, sizeof apply);
    memset(&modify, 0, sizeof modify);
    memset(&fork_, 0, sizeof fork_);
    take.Version = TAKE_SNAPSHOT_VHDSET_VERSION_1;
    drop.Version = DELETE_SNAPSHOT_VHDSET_VERSION_1;
    apply.Version = APPLY_SNAPSHOT_VHDSET_VERSION_1;
    take.Version1.SnapshotId = drop.Version1.SnapshotId = apply.Version1.SnapshotId = guid_of(5);
    modify.Version = MODIFY_VHDSET_REMOVE_SNAPSHOT;
    modify.SnapshotId = guid_of(5);
    fork_.Version = FORK_VIRTUAL_DISK_VERSION_1;
    fork_.Version1.ForkedVirtualDiskPath = t->names[1];
    RACE(QueryChangesVirtualDisk, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, handle, id, 0, 512, QUERY_CHANGES_VIRTUAL_DISK_FLAG_NONE,
         &range, &count, &done);
    RACE(TakeSnapshotVhdSet, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, handle, &take, TAKE_SNAPSHOT_VHDSET_FLAG_NONE);
    RACE(DeleteSnapshotVhdSet, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, handle, &drop, DELETE_SNAPSHOT_VHDSET_FLAG_NONE);
    RACE(ApplySnapshotVhdSet, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, handle, &apply, APPLY_SNAPSHOT_VHDSET_FLAG_NONE);
    RACE(ModifyVhdSet, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, handle, &modify, MODIFY_VHDSET_FLAG_NONE);
    RACE(ForkVirtualDisk, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, handle, FORK_VIRTUAL_DISK_FLAG_NONE, &fork_, &o);
    RACE(CompleteForkVirtualDisk, ERROR_NOT_SUPPORTED, ERROR_SUCCESS, handle);
}

static void shared_events(thread *t) {
    HANDLE event = __atomic_load_n(&shared_event, __ATOMIC_ACQUIRE), mine;
    DWORD code;
    switch (below(t, 4)) {
    case 0: CALL(SetEvent, event); break;
    case 1: CALL(ResetEvent, event); break;
    case 2:
        code = CALL(WaitForSingleObject, event, below(t, 2));
        if (code != WAIT_OBJECT_0 && code != WAIT_TIMEOUT && code != WAIT_FAILED)
            wrong(t, "WaitForSingleObject", code);
        break;
    default:
        mine = CALL(CreateEventW, NULL, (BOOL)below(t, 2), FALSE, NULL);
        TRUTH(mine != NULL);
        mine = __atomic_exchange_n(&shared_event, mine, __ATOMIC_ACQ_REL);
        /* Whoever waits for it goes on with its own. */
        CALL(SetEvent, mine);
        TRUTH(CALL(CloseHandle, mine));
    }
}

static void shared_step(thread *t) {
    HANDLE handle = slot(t);
    DWORD code;
    switch (below(t, 24)) {
    case 0: case 1: case 2: shared_open(t); break;
    case 3: CALL(CloseHandle, handle); break;
    case 4: shared_mirror(t, handle); break;
    case 5: case 6: case 7: shared_operation(t, handle); break;
    case 8: RACE(DetachVirtualDisk, ERROR_SUCCESS, ERROR_SUCCESS, handle, DETACH_VIRTUAL_DISK_FLAG_NONE, 0); break;
    case 9: RACE(BreakMirrorVirtualDisk, ERROR_SUCCESS, ERROR_SUCCESS, handle); break;
    case 10: shared_later(t, handle); break;
    case 11:
        code = CALL(CancelIoEx, handle, NULL) ? ERROR_SUCCESS : GetLastError();
        race(t, "CancelIoEx", code, ERROR_NOT_FOUND, ERROR_SUCCESS);
        break;
    case 12: shared_events(t); break;
    case 13: case 14: case 15: shared_change(t, handle); break;
    case 16: case 17: case 18: case 19: shared_ask(t, handle); break;
    default: shared_move_bytes(t, handle); break;
    }
}

/* A handle that this thread has closed names nothing, whoever has got its place. */
static void stale_step(thread *t) {
    GET_VIRTUAL_DISK_INFO info;
    ULONG size = sizeof info;
    HANDLE handle;
    if (t->stale_count == 0)
        return;
    handle = t->stale[below(t, (unsigned)(t->stale_count < STALE ? t->stale_count : STALE))];
    memset(&info, 0, sizeof info);
    info.Version = GET_VIRTUAL_DISK_INFO_SIZE;
    switch (below(t, 6)) {
    case 0: EXACT(ERROR_INVALID_HANDLE, GetVirtualDiskInformation, handle, &size, &info, NULL); break;
    case 1: EXACT(ERROR_INVALID_HANDLE, CompactVirtualDisk, handle, COMPACT_VIRTUAL_DISK_FLAG_NONE, NULL, NULL); break;
    case 2: EXACT(ERROR_INVALID_HANDLE, DetachVirtualDisk, handle, DETACH_VIRTUAL_DISK_FLAG_NONE, 0); break;
    case 3: EXACT(ERROR_INVALID_HANDLE, BreakMirrorVirtualDisk, handle); break;
    case 4: TRUTH(!CALL(CloseHandle, handle) && GetLastError() == ERROR_INVALID_HANDLE); break;
    default: TRUTH(!CALL(CancelIo, handle) && GetLastError() == ERROR_INVALID_HANDLE);
    }
}

static void *work(void *number) {
    thread *t = (thread *)calloc(1, sizeof *t);
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation((ULONGLONG)CELLS * CELL);
    char name[64];
    WCHAR path[1024];
    int cell;
    CHECK(t != NULL);
    t->number = *(int *)number;
    t->state = seed * 0x9E3779B97F4A7C15ull + (unsigned)t->number * 0xD1B54A32D192ED03ull + 1;
    t->event = CALL(CreateEventW, NULL, TRUE, FALSE, NULL);
    t->size = (ULONGLONG)CELLS * CELL;
    snprintf(name, sizeof name, "mirror-%d.vhdx", t->number);
    wide(t->names[0], name);
    wide(t->names[1], "shared-2-base.vhdx");
    own_name(t, 0, path);
    p.Version2.BlockSizeInBytes = 1 << 20;
    EXACT(ERROR_SUCCESS, CreateVirtualDisk, &any, path, VIRTUAL_DISK_ACCESS_NONE, NULL, CREATE_VIRTUAL_DISK_FLAG_NONE, 0,
          &p, NULL, &t->own);
    while (!is_over()) {
        switch (below(t, 8)) {
        case 0: case 1: case 2: own_step(t); break;
        case 3: stale_step(t); break;
        default: shared_step(t);
        }
    }
    for (cell = 0; cell < CELLS; cell++)
        own_check(t, cell);
    own_close(t);
    TRUTH(CALL(CloseHandle, t->event));
    free(t);
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS];
    int numbers[THREADS], i;
    unsigned long total = 0;
    unsigned seconds;
    CHECK(argc == 4);
    test_folder = argv[1];
    seconds = (unsigned)atoi(argv[2]);
    seed = strtoull(argv[3], NULL, 10);
    /* Whoever hangs is ended by a signal, and has failed. */
    alarm(seconds * 4 + 120 + LONGER);

    close_handle(create("shared-0.vhdx", 8 * MB));
    close_handle(create("shared-1.vhd", 8 * MB));
    close_handle(create("shared-2-base.vhdx", 8 * MB));
    close_handle(create_child("shared-2.vhdx", "shared-2-base.vhdx"));
    {
        CREATE_VIRTUAL_DISK_PARAMETERS p = creation(8 * MB);
        close_handle(create_with("shared-3.vhdx", CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION, &p));
    }
    shared_event = CreateEventW(NULL, TRUE, FALSE, NULL);
    over_at = now() + seconds;
    is_whole_run = seconds >= 10;
    for (i = 0; i < THREADS; i++) {
        numbers[i] = i;
        CHECK(pthread_create(&threads[i], NULL, work, &numbers[i]) == 0);
    }
    for (i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    for (i = 0; i < SLOTS; i++)
        CloseHandle(slots[i]);
    CHECK(CloseHandle(shared_event));
    for (i = 0; i < COUNT; i++) {
        printf("%s %lu\n", names[i], calls[i]);
        total += calls[i];
        CHECK(calls[i] > 0 || !is_whole_run);
    }
    printf("%lu calls\n", total);
    return 0;
}
