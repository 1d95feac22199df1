/* Keeps a text of one's own in a VHDX, beside the disk's content.
 *
 *     metadata DISK            lists what there is
 *     metadata DISK TEXT       stores it
 *     metadata DISK --delete   deletes it */
#include <windows.h>
#include <initguid.h>
#include <virtdisk.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arguments.h"

/* Whoever stores something chooses an identifier for it: {5C0A8F63-4A4B-4F0C-9C54-2F3D1E6B7A90} */
DEFINE_GUID(NOTE, 0x5C0A8F63, 0x4A4B, 0x4F0C, 0x9C, 0x54, 0x2F, 0x3D, 0x1E, 0x6B, 0x7A, 0x90);

static DWORD List(HANDLE disk) {
    GUID *items = NULL;
    ULONG count = 0, size, i;
    char *data;
    DWORD status;

    status = EnumerateVirtualDiskMetadata(disk, &count, NULL);
    if (status != ERROR_SUCCESS && status != ERROR_INSUFFICIENT_BUFFER && status != ERROR_MORE_DATA)
        return status;
    printf("%u items\n", (unsigned)count);
    if (count == 0)
        return ERROR_SUCCESS;
    items = (GUID *)malloc(count * sizeof(GUID));
    if (items == NULL)
        return ERROR_NOT_ENOUGH_MEMORY;
    status = EnumerateVirtualDiskMetadata(disk, &count, items);
    for (i = 0; status == ERROR_SUCCESS && i < count; i++) {
        /* The first call says how large it is. */
        size = 0;
        status = GetVirtualDiskMetadata(disk, &items[i], &size, NULL);
        if (status != ERROR_SUCCESS && status != ERROR_INSUFFICIENT_BUFFER && status != ERROR_MORE_DATA)
            break;
        data = (char *)malloc(size + 1);
        if (data == NULL) {
            status = ERROR_NOT_ENOUGH_MEMORY;
            break;
        }
        status = GetVirtualDiskMetadata(disk, &items[i], &size, data);
        if (status == ERROR_SUCCESS)
            printf("  %s: %.*s\n", memcmp(&items[i], &NOTE, sizeof NOTE) == 0 ? "note" : "other", (int)size, data);
        free(data);
    }
    free(items);
    return status;
}

int main(int argc, char **argv) {
    VIRTUAL_STORAGE_TYPE storageType;
    OPEN_VIRTUAL_DISK_PARAMETERS parameters;
    HANDLE disk = INVALID_HANDLE_VALUE;
    LPCWSTR path;
    DWORD status;

    if (argc < 2 || argc > 3 || (path = FullPath(argv[1])) == NULL) {
        fprintf(stderr, "usage: metadata DISK [TEXT | --delete]\n");
        return 2;
    }

    ZeroMemory(&storageType, sizeof(storageType));
    ZeroMemory(&parameters, sizeof(parameters));
    parameters.Version = OPEN_VIRTUAL_DISK_VERSION_2;
    /* Looking needs no right to change anything, nor the parents. */
    parameters.Version2.GetInfoOnly = argc == 2;
    status = OpenVirtualDisk(&storageType, path, VIRTUAL_DISK_ACCESS_NONE, OPEN_VIRTUAL_DISK_FLAG_NO_PARENTS,
                             &parameters, &disk);
    if (status == ERROR_SUCCESS) {
        if (argc == 2)
            status = List(disk);
        else if (strcmp(argv[2], "--delete") == 0)
            status = DeleteVirtualDiskMetadata(disk, &NOTE);
        else
            status = SetVirtualDiskMetadata(disk, &NOTE, (ULONG)strlen(argv[2]), argv[2]);
        CloseHandle(disk);
    }
    if (status == ERROR_NOT_FOUND)
        printf("there is no note\n");
    else if (status == ERROR_VHD_INVALID_TYPE)
        printf("only a VHDX has a place for it\n");
    else if (status != ERROR_SUCCESS)
        printf("error %u (0x%X)\n", (unsigned)status, (unsigned)status);
    else if (argc == 3)
        printf("done\n");
    return status == ERROR_SUCCESS ? 0 : 1;
}
