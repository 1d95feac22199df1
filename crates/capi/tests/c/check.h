/* What the tests share: checks that say where they failed, and disks in the folder that the program was given. */
#ifndef CHECK_H
#define CHECK_H

#include <virtdisk.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "line %d: %s\n", __LINE__, #condition);                                \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* The call gives this code. */
#define EXPECT(code, call)                                                                         \
    do {                                                                                           \
        DWORD found_ = (call), wanted_ = (code);                                                   \
        if (found_ != wanted_) {                                                                   \
            fprintf(stderr, "line %d: %s gave %u (0x%08X), not %u (0x%08X)\n", __LINE__, #call,    \
                    found_, found_, wanted_, wanted_);                                             \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* The call fails, for this reason. */
#define EXPECT_LAST_ERROR(code, call)                                                              \
    do {                                                                                           \
        CHECK(!(call));                                                                            \
        EXPECT(code, GetLastError());                                                              \
    } while (0)

#define MB (1024ull * 1024ull)

static const char *test_folder;

static inline void start(int argc, char **argv) {
    CHECK(argc == 2);
    test_folder = argv[1];
}

/* A path in the folder; the last eight stay valid. */
static inline PCWSTR at(const char *name) {
    static WCHAR paths[8][1024];
    static int next;
    char path[1024];
    WCHAR *wide = paths[next++ % 8];
    snprintf(path, sizeof path, "%s/%s", test_folder, name);
    CHECK(MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, 1024) > 0);
    return wide;
}

/* By the extension of the name. */
static inline PVIRTUAL_STORAGE_TYPE any_type(void) {
    static VIRTUAL_STORAGE_TYPE type;
    memset(&type, 0, sizeof type);
    return &type;
}

static inline CREATE_VIRTUAL_DISK_PARAMETERS creation(ULONGLONG size) {
    CREATE_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = CREATE_VIRTUAL_DISK_VERSION_2;
    p.Version2.MaximumSize = size;
    return p;
}

static inline HANDLE create_with(const char *name, CREATE_VIRTUAL_DISK_FLAG flags,
                                 CREATE_VIRTUAL_DISK_PARAMETERS *p) {
    HANDLE handle = NULL;
    EXPECT(ERROR_SUCCESS, CreateVirtualDisk(any_type(), at(name), VIRTUAL_DISK_ACCESS_NONE, NULL,
                                            flags, 0, p, NULL, &handle));
    CHECK(handle != NULL && handle != INVALID_HANDLE_VALUE);
    return handle;
}

static inline HANDLE create(const char *name, ULONGLONG size) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(size);
    return create_with(name, CREATE_VIRTUAL_DISK_FLAG_NONE, &p);
}

static inline HANDLE create_child(const char *name, const char *parent) {
    CREATE_VIRTUAL_DISK_PARAMETERS p = creation(0);
    p.Version2.ParentPath = at(parent);
    return create_with(name, CREATE_VIRTUAL_DISK_FLAG_NONE, &p);
}

static inline DWORD try_open(const char *name, OPEN_VIRTUAL_DISK_FLAG flags, BOOL info_only,
                             BOOL read_only, HANDLE *handle) {
    OPEN_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = OPEN_VIRTUAL_DISK_VERSION_2;
    p.Version2.GetInfoOnly = info_only;
    p.Version2.ReadOnly = read_only;
    return OpenVirtualDisk(any_type(), at(name), VIRTUAL_DISK_ACCESS_NONE, flags, &p, handle);
}

static inline HANDLE open_v2(const char *name) {
    HANDLE handle = NULL;
    EXPECT(ERROR_SUCCESS, try_open(name, OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, FALSE, &handle));
    return handle;
}

static inline HANDLE open_read_only(const char *name) {
    HANDLE handle = NULL;
    EXPECT(ERROR_SUCCESS, try_open(name, OPEN_VIRTUAL_DISK_FLAG_NONE, FALSE, TRUE, &handle));
    return handle;
}

static inline DWORD try_open_v1(const char *name, VIRTUAL_DISK_ACCESS_MASK mask, ULONG rw_depth,
                                HANDLE *handle) {
    OPEN_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = OPEN_VIRTUAL_DISK_VERSION_1;
    p.Version1.RWDepth = rw_depth;
    return OpenVirtualDisk(any_type(), at(name), mask, OPEN_VIRTUAL_DISK_FLAG_NONE, &p, handle);
}

static inline HANDLE open_v1(const char *name, VIRTUAL_DISK_ACCESS_MASK mask, ULONG rw_depth) {
    HANDLE handle = NULL;
    EXPECT(ERROR_SUCCESS, try_open_v1(name, mask, rw_depth, &handle));
    return handle;
}

static inline void close_handle(HANDLE handle) { CHECK(CloseHandle(handle)); }

static inline ATTACH_VIRTUAL_DISK_FLAG raw(int read_only) {
    return (ATTACH_VIRTUAL_DISK_FLAG)(ATTACH_VIRTUAL_DISK_FLAG_NO_LOCAL_HOST |
                                      (read_only ? ATTACH_VIRTUAL_DISK_FLAG_READ_ONLY
                                                 : ATTACH_VIRTUAL_DISK_FLAG_NONE));
}

static inline void attach(HANDLE handle) {
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, raw(0), 0, NULL, NULL));
}

static inline void detach(HANDLE handle) {
    EXPECT(ERROR_SUCCESS, DetachVirtualDisk(handle, DETACH_VIRTUAL_DISK_FLAG_NONE, 0));
}

static inline OVERLAPPED at_offset(ULONGLONG offset) {
    OVERLAPPED o;
    memset(&o, 0, sizeof o);
    o.Offset = (DWORD)offset;
    o.OffsetHigh = (DWORD)(offset >> 32);
    return o;
}

/* Writes a sector full of one byte, and reads one. */
static inline void put(HANDLE handle, ULONGLONG offset, int byte) {
    unsigned char sector[512];
    DWORD n = 0;
    OVERLAPPED o = at_offset(offset);
    memset(sector, byte, sizeof sector);
    if (!WriteFile(handle, sector, sizeof sector, &n, &o)) {
        fprintf(stderr, "write at %llu: %u\n", (unsigned long long)offset, GetLastError());
        exit(1);
    }
    CHECK(n == sizeof sector);
}

static inline int get(HANDLE handle, ULONGLONG offset) {
    unsigned char sector[512];
    DWORD n = 0;
    size_t i;
    OVERLAPPED o = at_offset(offset);
    CHECK(ReadFile(handle, sector, sizeof sector, &n, &o) && n == sizeof sector);
    for (i = 1; i < sizeof sector; i++)
        CHECK(sector[i] == sector[0]);
    return sector[0];
}

/* Writes through an attachment of its own. */
static inline void put_in(const char *name, ULONGLONG offset, int byte) {
    HANDLE handle = open_v2(name);
    attach(handle);
    put(handle, offset, byte);
    close_handle(handle);
}

static inline int get_from(const char *name, ULONGLONG offset) {
    HANDLE handle = open_read_only(name);
    int byte;
    EXPECT(ERROR_SUCCESS, AttachVirtualDisk(handle, NULL, raw(1), 0, NULL, NULL));
    byte = get(handle, offset);
    close_handle(handle);
    return byte;
}

static inline GET_VIRTUAL_DISK_INFO info(HANDLE handle, GET_VIRTUAL_DISK_INFO_VERSION kind) {
    GET_VIRTUAL_DISK_INFO i;
    ULONG size = sizeof i, used = 0;
    memset(&i, 0, sizeof i);
    i.Version = kind;
    EXPECT(ERROR_SUCCESS, GetVirtualDiskInformation(handle, &size, &i, &used));
    CHECK(used > 8 && used <= sizeof i);
    return i;
}

static inline DWORD try_info(HANDLE handle, GET_VIRTUAL_DISK_INFO_VERSION kind) {
    GET_VIRTUAL_DISK_INFO i;
    ULONG size = sizeof i;
    memset(&i, 0, sizeof i);
    i.Version = kind;
    return GetVirtualDiskInformation(handle, &size, &i, NULL);
}

static inline ULONGLONG virtual_size(HANDLE handle) {
    return info(handle, GET_VIRTUAL_DISK_INFO_SIZE).Size.VirtualSize;
}

static inline int same_guid(GUID a, GUID b) { return memcmp(&a, &b, sizeof a) == 0; }

static inline GUID guid_of(int n) {
    GUID g;
    memset(&g, n, sizeof g);
    return g;
}

/* An OVERLAPPED with an event of its own. */
static inline OVERLAPPED with_event(void) {
    OVERLAPPED o = at_offset(0);
    o.hEvent = CreateEventW(NULL, TRUE, FALSE, NULL);
    CHECK(o.hEvent != NULL);
    return o;
}

static inline VIRTUAL_DISK_PROGRESS progress(HANDLE handle, OVERLAPPED *o) {
    VIRTUAL_DISK_PROGRESS p;
    memset(&p, 0xEE, sizeof p);
    EXPECT(ERROR_SUCCESS, GetVirtualDiskOperationProgress(handle, o, &p));
    if (p.OperationStatus == ERROR_IO_PENDING)
        CHECK(p.CompletionValue > 0 && p.CurrentValue <= p.CompletionValue);
    return p;
}

/* Polls as programs do, to the end. */
static inline DWORD finish(HANDLE handle, OVERLAPPED *o) {
    for (;;) {
        VIRTUAL_DISK_PROGRESS p = progress(handle, o);
        if (p.OperationStatus != ERROR_IO_PENDING)
            return p.OperationStatus;
        Sleep(1);
    }
}

/* The result of a start and of what followed it. */
static inline DWORD finish_started(DWORD started, HANDLE handle, OVERLAPPED *o) {
    return started == ERROR_IO_PENDING || started == ERROR_SUCCESS ? finish(handle, o) : started;
}

static inline DWORD start_mirror(HANDLE handle, const char *name, MIRROR_VIRTUAL_DISK_FLAG flags,
                                 OVERLAPPED *o) {
    MIRROR_VIRTUAL_DISK_PARAMETERS p;
    memset(&p, 0, sizeof p);
    p.Version = MIRROR_VIRTUAL_DISK_VERSION_1;
    p.Version1.MirrorVirtualDiskPath = at(name);
    return MirrorVirtualDisk(handle, flags, &p, o);
}

/* Polls until both copies are the same. */
static inline void wait_mirrored(HANDLE handle, OVERLAPPED *o) {
    for (;;) {
        VIRTUAL_DISK_PROGRESS p = progress(handle, o);
        EXPECT(ERROR_IO_PENDING, p.OperationStatus);
        if (p.CurrentValue == p.CompletionValue)
            return;
        Sleep(1);
    }
}

#endif
