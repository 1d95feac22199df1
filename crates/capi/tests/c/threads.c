/* Every function from many threads at once (contract, P-07, P-13); handles that are closed meanwhile. */
#include "check.h"

#include <pthread.h>

static HANDLE disk, event;
static OVERLAPPED mirror;
static int stop;

static void *poll_progress(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&stop, __ATOMIC_ACQUIRE))
        progress(disk, &mirror);
    return NULL;
}

static void *read_and_write(void *number) {
    int n = *(int *)number, i;
    for (i = 0; i < 200; i++) {
        ULONGLONG place = (ULONGLONG)(n * 200 + i) * 4096;
        put(disk, place, n + 1);
        CHECK(get(disk, place) == n + 1);
        CHECK(virtual_size(disk) == 64 * MB);
    }
    return NULL;
}

static void *open_and_close(void *unused) {
    int i;
    (void)unused;
    for (i = 0; i < 200; i++) {
        HANDLE mine = CreateEventW(NULL, TRUE, FALSE, NULL), asks = NULL;
        CHECK(SetEvent(mine));
        EXPECT(WAIT_OBJECT_0, WaitForSingleObject(mine, INFINITE));
        close_handle(mine);
        CHECK(!SetEvent(mine));
        EXPECT(ERROR_SUCCESS, try_open("threads.vhdx", OPEN_VIRTUAL_DISK_FLAG_NONE, TRUE, FALSE, &asks));
        CHECK(virtual_size(asks) == 64 * MB);
        close_handle(asks);
    }
    return NULL;
}

/* One thread uses a handle that another one closes. */
static void *use_until_closed(void *handle) {
    for (;;) {
        DWORD code = try_info((HANDLE)handle, GET_VIRTUAL_DISK_INFO_SIZE);
        if (code == ERROR_INVALID_HANDLE)
            return NULL;
        EXPECT(ERROR_SUCCESS, code);
    }
}

static void *wait_for_event(void *unused) {
    (void)unused;
    EXPECT(WAIT_OBJECT_0, WaitForSingleObject(event, INFINITE));
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[8];
    int numbers[3] = {0, 1, 2}, i;
    HANDLE other;
    start(argc, argv);
    {
        OPEN_VIRTUAL_DISK_FLAG cached = OPEN_VIRTUAL_DISK_FLAG_CACHED_IO;
        CREATE_VIRTUAL_DISK_PARAMETERS p = creation(64 * MB);
        p.Version2.OpenFlags = cached;
        disk = create_with("threads.vhdx", CREATE_VIRTUAL_DISK_FLAG_NONE, &p);
    }
    attach(disk);
    mirror = with_event();
    event = mirror.hEvent;
    EXPECT(ERROR_IO_PENDING, start_mirror(disk, "threads-copy.vhdx", MIRROR_VIRTUAL_DISK_FLAG_NONE, &mirror));
    for (i = 0; i < 3; i++)
        CHECK(pthread_create(&threads[i], NULL, read_and_write, &numbers[i]) == 0);
    CHECK(pthread_create(&threads[3], NULL, open_and_close, NULL) == 0);
    CHECK(pthread_create(&threads[4], NULL, wait_for_event, NULL) == 0);
    CHECK(pthread_create(&threads[5], NULL, poll_progress, NULL) == 0);
    CHECK(pthread_create(&threads[6], NULL, poll_progress, NULL) == 0);
    for (i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    wait_mirrored(disk, &mirror);
    __atomic_store_n(&stop, 1, __ATOMIC_RELEASE);
    pthread_join(threads[5], NULL);
    pthread_join(threads[6], NULL);
    EXPECT(ERROR_SUCCESS, BreakMirrorVirtualDisk(disk));
    pthread_join(threads[4], NULL);
    EXPECT(ERROR_SUCCESS, progress(disk, &mirror).OperationStatus);
    for (i = 0; i < 3; i++)
        CHECK(get(disk, (ULONGLONG)(i * 200 + 199) * 4096) == i + 1);
    close_handle(disk);
    close_handle(event);
    CHECK(get_from("threads-copy.vhdx", 599 * 4096) == 3);

    for (i = 0; i < 20; i++) {
        other = open_read_only("threads.vhdx");
        CHECK(pthread_create(&threads[0], NULL, use_until_closed, other) == 0);
        CHECK(pthread_create(&threads[1], NULL, use_until_closed, other) == 0);
        Sleep(1);
        close_handle(other);
        pthread_join(threads[0], NULL);
        pthread_join(threads[1], NULL);
    }
    return 0;
}
