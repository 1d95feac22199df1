/* Creates a disk with the content of another one, and shows how far it is.
 *
 *     create TARGET MEGABYTES      an empty fixed disk
 *     create TARGET SOURCE         a dynamic disk with the content of SOURCE, of whatever format
 *
 * The name's extension says what is made: .vhd or .vhdx. */
#include <windows.h>
#include <initguid.h>
#include <virtdisk.h>

#include <stdio.h>
#include <stdlib.h>

#include "arguments.h"

/* Polls the operation until it is over. Only OperationStatus says when that is: 100 % is not the end. */
static DWORD WaitWithProgress(HANDLE disk, LPOVERLAPPED overlapped) {
    VIRTUAL_DISK_PROGRESS progress;
    ULONGLONG shown = 0;
    DWORD status;

    printf("  0 %%\n");
    for (;;) {
        ZeroMemory(&progress, sizeof(progress));
        status = GetVirtualDiskOperationProgress(disk, overlapped, &progress);
        if (status != ERROR_SUCCESS)
            return status;
        if (progress.OperationStatus != ERROR_IO_PENDING)
            return progress.OperationStatus;
        if (progress.CompletionValue != 0) {
            ULONGLONG percent = progress.CurrentValue * 100 / progress.CompletionValue;
            if (percent >= shown + 25) {
                shown = percent;
                printf("%3u %%\n", (unsigned)percent);
            }
        }
        /* Whichever comes first: the end, or the time to look again. */
        WaitForSingleObject(overlapped->hEvent, 10);
    }
}

int main(int argc, char **argv) {
    VIRTUAL_STORAGE_TYPE storageType;
    CREATE_VIRTUAL_DISK_PARAMETERS parameters;
    CREATE_VIRTUAL_DISK_FLAG flags = CREATE_VIRTUAL_DISK_FLAG_NONE;
    OVERLAPPED overlapped;
    HANDLE disk = INVALID_HANDLE_VALUE;
    LPCWSTR path;
    DWORD status;
    char *end;

    if (argc != 3 || (path = FullPath(argv[1])) == NULL) {
        fprintf(stderr, "usage: create TARGET MEGABYTES | create TARGET SOURCE\n");
        return 2;
    }

    /* Unknown: the extension decides. */
    storageType.DeviceId = VIRTUAL_STORAGE_TYPE_DEVICE_UNKNOWN;
    storageType.VendorId = VIRTUAL_STORAGE_TYPE_VENDOR_UNKNOWN;

    ZeroMemory(&parameters, sizeof(parameters));
    parameters.Version = CREATE_VIRTUAL_DISK_VERSION_2;
    parameters.Version2.BlockSizeInBytes = CREATE_VIRTUAL_DISK_PARAMETERS_DEFAULT_BLOCK_SIZE;
    parameters.Version2.SectorSizeInBytes = CREATE_VIRTUAL_DISK_PARAMETERS_DEFAULT_SECTOR_SIZE;
    parameters.Version2.MaximumSize = strtoull(argv[2], &end, 10) * 1024 * 1024;
    if (*end == '\0') {
        flags = CREATE_VIRTUAL_DISK_FLAG_FULL_PHYSICAL_ALLOCATION;
    } else {
        parameters.Version2.MaximumSize = 0; /* that of the source */
        parameters.Version2.SourcePath = FullPath(argv[2]);
    }

    ZeroMemory(&overlapped, sizeof(overlapped));
    overlapped.hEvent = CreateEvent(NULL, TRUE, FALSE, NULL);
    if (overlapped.hEvent == NULL)
        return 1;

    status = CreateVirtualDisk(&storageType, path, VIRTUAL_DISK_ACCESS_NONE, NULL, flags, 0, &parameters, &overlapped,
                               &disk);
    if (status == ERROR_IO_PENDING || status == ERROR_SUCCESS) {
        status = WaitWithProgress(disk, &overlapped);
        CloseHandle(disk);
    }
    CloseHandle(overlapped.hEvent);

    if (status != ERROR_SUCCESS) {
        printf("not created: error %u (0x%X)\n", (unsigned)status, (unsigned)status);
        return 1;
    }
    printf("created\n");
    return 0;
}
